"""What onnxruntime says of a graph: types and sizes of all values, seen in one run, and its errors as one line."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.graphs.pieces import pieces_of
from splitload.graphs.runtime import Beside, GraphRuntime, Refusal, Signature, is_of_device
from splitload.plan.graph import Tensor, used_names
from splitload.runtime.inputs import DTYPES, example_inputs

# what onnxruntime puts before the message: its code, the file once more, and a place in its own source
_NOISE = re.compile(
    r"^\d+ : [A-Z_]+ : |(?:Load model from \S+ failed: ?)|/onnxruntime_src/\S+:\d+ .*?\)(?: const)? (?=[A-Z])"
)


def plain_options() -> Any:
    """Return session options that take a graph file as it is: no optimisation, no prepacking, own messages off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def one_line(error: BaseException) -> str:
    """Return an error of onnxruntime or protobuf as one line, without its code and place in the source."""
    text = " ".join(str(error).split()).rpartition("[ONNXRuntimeError] : ")[2]
    return _NOISE.sub("", text)[:400] or type(error).__name__


def observe(
    path: Path, proto: Any, body: list[Any], feeds: Mapping[str, Any] | None, runtime: GraphRuntime
) -> dict[str, tuple[Tensor, tuple[int, ...] | None]]:
    """Return type, declared shape, size and seen shape of each value, from onnxruntime itself.

    Every value is made a model output, so that onnxruntime tells types and shapes also of the tensors of its own
    operators, which the file leaves out. Sizes come from one run on example inputs, piece by piece; where that fails,
    they follow from declared shapes.

    Args:
        path: The graph's file; what is stored outside it lies beside it.
        proto: What it says.
        body: Its nodes that are no constants.
        feeds: Its inputs; made up where they are missing.
        runtime: Which onnxruntime.

    Raises:
        ModelError: If it does not load, or not run on `feeds`.
    """
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.value_info[:]
    given = {value.name for value in probe.graph.output}
    names = used_names(name for node in body for name in node.output)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    whole = Beside(path.parent, probe.SerializeToString())
    try:
        signature = runtime.open(whole)
    except Refusal as error:
        raise ModelError(
            f"onnxruntime {runtime.version} does not tell the types of '{path.name}': {one_line(error)}"
        ) from error
    found: dict[str, tuple[Tensor, tuple[int, ...] | None]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    given_feeds = example_inputs(signature.inputs, feeds) if feeds else None
    try:
        ready = given_feeds or example_inputs(signature.inputs)
        shapes = _seen(runtime, whole, signature, ready, proto, body)
    except Exception as error:  # the made-up inputs may not suit the model; sizes then come from declared shapes
        if is_of_device(error):
            raise
        if given_feeds:
            raise ModelError(f"the model does not run on the given inputs: {one_line(error)}") from error
    for info in [*signature.inputs, *signature.outputs]:
        seen = shapes.get(info.name)
        # onnxruntime gives [] for an unknown rank as well as for a scalar
        shape: tuple[Any, ...] | None = info.shape if info.shape or seen == () else None
        if shape is not None and seen is not None:
            shape = _as_seen(shape, seen)
        known = seen if seen is not None else shape
        itemsize = _itemsize(info.type)
        nbytes = (
            math.prod(int(size) for size in known) * itemsize
            if known is not None and itemsize and all(isinstance(size, int) for size in known)
            else None
        )
        found[info.name] = (Tensor(info.name, info.type, shape, nbytes), seen)
    return found


def _as_seen(shape: tuple[Any, ...], seen: tuple[int, ...]) -> tuple[Any, ...] | None:
    """Return a declared shape without the sizes that a run gave the lie to; onnxruntime only warns of them."""
    if len(shape) != len(seen):
        return None
    return tuple(
        None if isinstance(size, int) and size != real else size for size, real in zip(shape, seen, strict=True)
    )


def _seen(
    runtime: GraphRuntime, whole: Beside, signature: Signature, feeds: Mapping[str, Any], proto: Any, body: list[Any]
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor in a run, the inputs among them.

    Args:
        runtime: What runs it.
        whole: The graph, with every value an output.
        signature: Of it.
        feeds: Its inputs.
        proto: What the graph's file says.
        body: Its nodes that are no constants.
    """
    import onnx
    import onnxruntime as ort

    if all(isinstance(value, ort.OrtValue) or _is_numeric(value) for value in feeds.values()):
        types = {
            info.name: onnx.helper.make_tensor_type_proto(elem_type(info.type), None)
            for info in signature.outputs
            if info.type.startswith("tensor(")
        }
        types |= {value.name: value.type for value in proto.graph.input}  # with sizes, which feeds must have
        inputs = {name: shape for name, value in feeds.items() if (shape := _shape_of(value)) is not None}
        return inputs | runtime.shapes(whole.folder, pieces_of(proto, body, types), feeds)
    # strings, lists and maps cannot be OrtValues
    names = [value.name for value in signature.outputs if value.type in DTYPES]
    values = {**feeds, **(dict(zip(names, runtime.run(whole, names, feeds), strict=True)) if names else {})}
    return {name: shape for name, value in values.items() if (shape := _shape_of(value)) is not None}


def _is_numeric(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype.kind in "biufc"


def _shape_of(value: Any) -> tuple[int, ...] | None:
    if isinstance(value, np.ndarray):
        return tuple(value.shape)
    return tuple(value.shape()) if hasattr(value, "is_tensor") and value.is_tensor() else None


def elem_type(type_name: str) -> int:
    """Return the TensorProto type for onnxruntime's word, for example FLOAT for "tensor(float)".

    Raises:
        ModelError: If there is none.
    """
    import onnx

    word = type_name.removeprefix("tensor(").removesuffix(")").upper()
    try:
        return int(onnx.TensorProto.DataType.Value(word))
    except ValueError as error:
        raise ModelError(f"a {type_name} cannot be handed from one stage to the next") from error


def _itemsize(type_name: str) -> int:
    import onnx

    if not type_name.startswith("tensor(") or type_name == "tensor(string)":
        return 0
    return int(onnx.helper.tensor_dtype_to_np_dtype(elem_type(type_name)).itemsize)


def flops(node: Any, shapes: Mapping[str, tuple[int, ...] | None], weights: Mapping[str, tuple[int, ...]]) -> int:
    """Estimate the floating-point operations of a node: 2 x multiply-adds for products, one an element otherwise.

    Args:
        node: The node.
        shapes: Seen sizes of values, by name.
        weights: Sizes of weights, by name.
    """
    out = shapes.get(node.output[0]) if node.output else None
    if out is None:
        return 0
    elements = math.prod(out)
    if node.op_type in ("Conv", "FusedConv", "ConvTranspose") and len(node.input) > 1:
        kernel = weights.get(node.input[1])
        if node.op_type == "ConvTranspose":  # each input element meets the whole kernel of its channel
            elements = math.prod(shapes.get(node.input[0]) or (0,))
        if kernel and kernel[0]:
            return 2 * elements * math.prod(kernel) // kernel[0]
    if "MatMul" in node.op_type or "Gemm" in node.op_type:
        left = shapes.get(node.input[0]) or weights.get(node.input[0])
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        if left:
            return 2 * elements * left[-2 if transposed and len(left) > 1 else -1]
    return elements

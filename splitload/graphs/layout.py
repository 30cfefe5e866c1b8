"""Matrix products in the layout their kernels read, so that a mapped weight needs no rearranging at load or run time.

onnxruntime rearranges the constant side of a MatMul or Gemm either at load time (prepacking: slow to load, a second
copy in memory) or in every run. Convolutions have no such cost: their weights are stored in blocks of channels. A
product `X[M, K] · W[K, N]` is a 1 x 1 convolution over M pixels, so it can be stored that way as well. DistilBERT runs
as fast as with prepacked weights, without making them.
"""

from __future__ import annotations

import itertools
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.kept import kept
from splitload.base.scratch import scratch_folder
from splitload.graphs.here import HERE
from splitload.graphs.observe import observe
from splitload.graphs.proto import (
    all_tensors,
    attributes,
    external_entry,
    is_external,
    node_inputs,
    split_constants,
)
from splitload.graphs.runtime import Beside, GraphRuntime, is_of_device
from splitload.graphs.tidy import DOMAIN, ROWS, tidy
from splitload.runtime.inputs import example_inputs

MIN_ROWS = 16  # with fewer rows the product reads its weights once anyway
# what both FusedGemm and the blocked Conv can do after the product, and its parameters
_ACTIVATIONS = {"Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("activation_alpha",)}
TOLERATED = 1.05  # what the blocked graph may lose in a run: it never needs a second copy of its weights


@kept
def channel_block(runtime: GraphRuntime = HERE) -> int | None:
    """Return how many channels onnxruntime's blocked layout holds together on a processor, or None without one."""
    import onnx
    from onnx import TensorProto, helper

    outputs, inputs = 24, 32  # 24 is a multiple of 8, and not of 16
    weights = helper.make_tensor("w", TensorProto.FLOAT, (outputs, inputs, 1, 1), [0.0] * outputs * inputs)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"])],
        "probe",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, inputs, 4, 4))],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (1, outputs, 4, 4))],
        [weights],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with scratch_folder(Path(tempfile.gettempdir()), "splitload-probe-") as folder:
        path = folder / "probe.onnx"
        runtime.optimize(Beside(folder, model.SerializeToString()), path, "all")
        optimized = onnx.load_model(str(path), load_external_data=False)
    if not any(node.domain == DOMAIN for node in optimized.graph.node):
        return None
    filters = next(tensor for tensor in optimized.graph.initializer if len(tensor.dims) == 4)
    return 8 if filters.dims[0] == outputs else 16


def to_blocks(weights: Any, block: int) -> Any:
    """Return `weights[N, K]` as `[N / block, K / block, K in a block, N in a block]`, as 1 x 1 filters are stored."""
    rows, columns = weights.shape
    return weights.reshape(rows // block, block, columns // block, block).transpose(0, 2, 3, 1)


def block_products_of(path: Path, feeds: Mapping[str, Any] | None, runtime: GraphRuntime = HERE) -> None:
    """Store matrix products of an optimised .onnx file in blocks where that is faster on a runtime.

    A model that does not run stays as it is, unless `feeds` are given.
    """
    import onnx

    signature = runtime.open(path)
    try:
        ready = example_inputs(signature.inputs, feeds)
        proto = onnx.load_model(str(path), format="protobuf", load_external_data=False)
        seen = observe(path, proto, split_constants(proto.graph)[0], ready, runtime)
    except Exception as error:  # onnxruntime has no common root for its errors
        if feeds or is_of_device(error):
            raise
        return
    sizes = {size for name in ready for size in seen[name][0].shape or () if size is not None}
    declared = {name: tensor.shape for name, (tensor, _) in seen.items() if tensor.shape}
    shapes = {
        name: seen[name][1]
        for name, (*rows, columns) in declared.items()
        # sizes that only a run can tell may be 0; those of inputs are the caller's
        if isinstance(columns, int) and all(isinstance(size, int) or size in sizes for size in rows)
    }
    counts = {
        name: math.prod(size for size in shape if isinstance(size, int))
        for name, shape in declared.items()
        if all(isinstance(size, int) for size in shape)
    }
    block_products(path, shapes, ready, counts, runtime)


def block_products(
    path: Path,
    shapes: Mapping[str, tuple[int, ...] | None],
    feeds: Mapping[str, Any],
    counts: Mapping[str, int],
    runtime: GraphRuntime = HERE,
) -> int:
    """Store the matrix products of an optimised graph as blocked convolutions, unless the graph then runs slower.

    Args:
        path: The optimised .onnx file; it is replaced, and the weights beside it.
        shapes: Shape, as seen in a run, of each value of known rank and columns that never has no rows: only products
            of such are rewritten, as convolutions need a pixel, and never tell how many columns there were.
        feeds: Inputs to measure with.
        counts: How many elements those values have whose shape is declared in full.
        runtime: What it is for.

    Returns:
        How many products were rewritten.
    """
    import onnx

    block = channel_block(runtime)
    model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    products = [] if block is None else _products(model.graph, shapes, block)
    if block is None or not products:
        return 0
    [location] = {external_entry(tensor)[0] for tensor in all_tensors(model.graph) if is_external(tensor)}
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".blocked-") as made:
        changed = Path(made) / path.name
        shutil.copyfile(path.with_name(location), changed.with_name(location))
        for name, node in {node.input[1]: node for node in products}.items():
            _rewrite_weights(initializers[name], _is_transposed(node), block, changed.with_name(location))
        rows = _rewrite_nodes(model, products, shapes)
        tidy(model.graph, {**counts, **{name: counts[value] for name, value in rows.items() if value in counts}})
        changed.write_bytes(model.SerializeToString())
        if not is_as_fast(changed, path, feeds, TOLERATED, runtime):
            return 0
        changed.with_name(location).replace(path.with_name(location))
        changed.replace(path)
    return len(products)


def _products(graph: Any, shapes: Mapping[str, tuple[int, ...] | None], block: int) -> list[Any]:
    """Return the MatMul, Gemm and FusedGemm nodes that can be rewritten."""
    weights = {
        tensor.name: tensor
        for tensor in graph.initializer
        if is_external(tensor) and tensor.data_type == 1 and len(tensor.dims) == 2 and not any(
            size % block for size in tensor.dims
        )
    }  # fmt: skip
    initializers = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found = []
    for node in graph.node:
        if len(node.input) < 2 or node.input[1] not in weights or not _is_plain(node, initializers):
            continue
        shape = shapes.get(node.input[0])
        if shape is not None and 2 <= len(shape) <= 4 and int(np.prod(shape[:-1])) >= MIN_ROWS:
            found.append(node)
    uses = Counter(itertools.chain.from_iterable(node_inputs(node) for node in graph.node))
    uses.update(value.name for value in graph.output)
    ours = Counter(node.input[1] for node in found)
    sides = {(node.input[1], _is_transposed(node)) for node in found}
    both = {name for name, count in Counter(name for name, _ in sides).items() if count > 1}
    return [node for node in found if uses[node.input[1]] == ours[node.input[1]] and node.input[1] not in both]


def _is_plain(node: Any, initializers: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether the node is a MatMul, or a Gemm that only multiplies and adds one constant to each column.

    An activation that onnxruntime has fused with the Gemm may follow.
    """
    kind = (node.domain, node.op_type)
    if kind in (("", "MatMul"), ("ai.onnx", "MatMul")):
        return True
    if kind not in (("", "Gemm"), ("ai.onnx", "Gemm"), ("com.microsoft", "FusedGemm")):
        return False
    values = attributes(node)
    if node.op_type == "FusedGemm" and _activation(node)[0] not in _ACTIVATIONS:
        return False
    return (
        not values.get("transA", 0)
        and values.get("alpha", 1.0) == 1.0
        and (
            not any(node.input[2:])
            or (
                values.get("beta", 1.0) == 1.0
                and initializers.get(node.input[2]) == (initializers[node.input[1]][0 if _is_transposed(node) else 1],)
            )
        )
    )


def _activation(node: Any) -> tuple[str, list[float]]:
    """Return the activation fused with a node, "" for none, and its parameters."""
    values = attributes(node)
    kind = values.get("activation", b"").decode()
    return kind, [values[name] for name in _ACTIVATIONS.get(kind, ()) if name in values]


def _is_transposed(node: Any) -> bool:
    """Return whether the weights are stored as [N, K]."""
    return bool(attributes(node).get("transB"))


def _rewrite_weights(tensor: Any, transposed: bool, block: int, data: Path) -> None:
    """Rearrange one weight in its place in the file, and give it the shape of a filter."""
    _, offset, _ = external_entry(tensor)
    stored = np.memmap(data, np.float32, "r+", offset, tuple(tensor.dims))
    weights = np.array(stored if transposed else stored.T)
    stored[:] = to_blocks(weights, block).reshape(stored.shape)
    stored.flush()
    tensor.dims[:] = [*weights.shape, 1, 1]


def _rewrite_nodes(model: Any, products: Iterable[Any], shapes: Mapping[str, tuple[int, ...] | None]) -> dict[str, str]:
    """Replace each product by a convolution between two changes of layout.

    Returns:
        Which product's result each new value holds the elements of.
    """
    from onnx import helper, numpy_helper

    model.ir_version = max(model.ir_version, 4)  # before, every initializer had to be an input as well
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    graph = model.graph
    chosen = {id(node) for node in products}
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    nodes: list[Any] = []
    rows: dict[str, str] = {}

    def constant(name: str, *values: int) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    def with_axis(kind: str, value: str, made: str) -> Any:
        if opset < 13:
            return helper.make_node(kind, [value], [made], axes=[2])
        return helper.make_node(kind, [value, constant(f"{made}/axes", 2)], [made])

    for node in graph.node:
        if id(node) not in chosen:
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        stem = f"{result}/blocked"
        rank = len(shapes[source] or ())
        channels, columns, *_ = dims[node.input[1]]
        pixels, last = (source, result) if rank == 4 else (f"{stem}/pixels", f"{stem}/rows")
        rows[last] = result
        if rank == 2:
            nodes.append(
                helper.make_node("Reshape", [source, constant(f"{stem}/pixels/shape", *ROWS, columns)], [pixels])
            )
        elif rank == 3:
            nodes.append(with_axis("Unsqueeze", source, pixels))
        nodes += _blocked(node, pixels, last, stem, channels)
        if rank == 2:
            nodes.append(helper.make_node("Reshape", [last, constant(f"{stem}/rows/shape", -1, channels)], [result]))
        elif rank == 3:
            nodes.append(with_axis("Squeeze", last, result))
    del graph.node[:]
    graph.node.extend(nodes)
    if not any(entry.domain == DOMAIN for entry in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return rows


def _blocked(node: Any, pixels: str, last: str, stem: str, channels: int) -> list[Any]:
    """Return a product as a convolution of 1 x 1 on blocks, from `pixels` to `last`, both with channels last."""
    from onnx import helper

    blocks, filtered = f"{stem}/in", f"{stem}/out"
    bias = [name for name in node.input[2:3] if name]
    kind, parameters = _activation(node)
    activation: dict[str, Any] = {"activation": kind} if kind else {}
    if parameters:
        activation["activation_params"] = parameters
    return [
        helper.make_node("ReorderInput", [pixels], [blocks], domain=DOMAIN, channels_last=1),
        helper.make_node(
            "Conv", [blocks, node.input[1], *bias], [filtered], node.name or node.output[0], domain=DOMAIN,
            kernel_shape=[1, 1], strides=[1, 1], pads=[0, 0, 0, 0], dilations=[1, 1], group=1, **activation,
        ),
        helper.make_node("ReorderOutput", [filtered], [last], domain=DOMAIN, channels=channels, channels_last=1),
    ]  # fmt: skip


def is_as_fast(
    changed: Path, original: Path, feeds: Mapping[str, Any], share: float, runtime: GraphRuntime = HERE
) -> bool:
    """Return whether the changed graph computes the same within rounding, in less than a share of the time.

    The time is the least of runs in turns.
    """
    race = runtime.race(changed, original, feeds)
    return race.alike and race.changed_s < share * race.original_s

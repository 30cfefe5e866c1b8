"""ONNX files: checked, optimised once as a whole by onnxruntime, and read as a `ModelGraph`."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.errors import ModelError, OutputError
from splitload.graph import DEFAULT_MAX_BLOCKS, GraphKind, ModelGraph, Node, Tensor, used_names
from splitload.inputs import example_inputs
from splitload.machine import cpu_architecture

MAX_PROTOBUF_BYTES = (2 << 30) - 1
EXTERNAL_FROM_BYTES = 1024  # smaller weights stay inside the graph file
_CACHE_VERSION = 1
_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


@dataclass(frozen=True, slots=True)
class Source:
    """An ONNX file that was found readable.

    Attributes:
        name: Name of the model, for people.
        path: The file.
        sha256: Hash over the file and its external data.
        size_bytes: Size of the file and its external data.
    """

    name: str
    path: Path
    sha256: str
    size_bytes: int

    @classmethod
    def open(cls, path: Path, name: str) -> Source:
        """Check and hash the file.

        Raises:
            ModelError: If it is missing, truncated, not ONNX, or its external data is.
        """
        if not path.is_file():
            raise ModelError(f"no model file '{path}'; give an .onnx file, zoo:NAME or package.module:factory")
        if path.stat().st_size > MAX_PROTOBUF_BYTES:
            raise ModelError(f"'{path}' is over 2 GB; save its weights as external data")
        files = [path, *_external_files(_read(path), path)]
        digest = hashlib.sha256()
        for file in files:
            with file.open("rb") as stream:
                while chunk := stream.read(8 << 20):
                    digest.update(chunk)
        return cls(name, path, digest.hexdigest(), sum(file.stat().st_size for file in files))


def load_graph(
    source: Source,
    kind: GraphKind,
    cache: Path,
    *,
    max_blocks: int = DEFAULT_MAX_BLOCKS,
    feeds: Mapping[str, Any] | None = None,
) -> ModelGraph:
    """Optimise the whole model once, and return what can be cut.

    The optimised file is kept in `cache`, by the hash of the model, the runtime version and the processor. "native"
    takes every optimisation of onnxruntime, "portable" only those that leave standard operators. A model that
    onnxruntime cannot optimise, because it already was, is taken as it is.

    Args:
        source: The model.
        kind: Which graph is wanted.
        cache: The user's cache folder.
        max_blocks: The most blocks, at least 1.
        feeds: Inputs for the run that sees the sizes of tensors; made up where they are missing.

    Raises:
        ModelError: If onnxruntime cannot load the model.
        OutputError: If the optimised file cannot be written.
    """
    folder = _optimized_folder(source, kind, cache)
    path = folder / "model.onnx"
    proto = _read(path)
    graph = proto.graph
    weights = {tensor.name: _tensor_bytes(tensor) for tensor in graph.initializer}
    weights |= {sparse.values.name: _tensor_bytes(sparse.values) for sparse in graph.sparse_initializer}
    body, constants = split_constants(graph)
    if not body:
        raise ModelError(f"'{source.path}' computes nothing from its inputs: there is nothing to load in stages")
    uses = {id(node): _with_constants(node_inputs(node), constants) for node in body}
    seen = _observe(path, proto, body, feeds)
    tensors = {name: tensor for name, (tensor, _) in seen.items()}
    sizes = {name: size for name, (_, size) in seen.items()}
    nodes = tuple(
        Node(
            node.name,
            node.op_type,
            tuple(name for name in uses[id(node)] if name in tensors),
            used_names(node.output),
            tuple(name for name in uses[id(node)] if name in weights),
            _flops(node, sizes, {tensor.name: tensor.dims for tensor in graph.initializer}),
        )
        for node in body
    )
    inputs = tuple(value.name for value in graph.input if value.name not in weights)
    return ModelGraph(
        source.name, source.sha256, source.size_bytes, kind, path, nodes, tensors, inputs,
        tuple(value.name for value in graph.output), weights, max_blocks,
    )  # fmt: skip


def plain_options() -> Any:
    """Return session options that take a graph file as it is: no optimisation, no prepacking, own messages off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.add_session_config_entry("session.disable_prepacking", "1")
    return options


def one_line(error: BaseException) -> str:
    """Return an error of onnxruntime or protobuf as one line without its code prefix."""
    text = " ".join(str(error).split())
    return text.rpartition("[ONNXRuntimeError] : ")[2][:400] or type(error).__name__


def node_inputs(node: Any) -> tuple[str, ...]:
    """Return the names a node reads from the graph it stands in, those its bodies capture included."""
    return used_names([*node.input, *_captured(node)])


def split_constants(graph: Any) -> tuple[list[Any], dict[str, Any]]:
    """Divide the nodes of a graph into those that depend on its inputs and those that only prepare constants.

    A tensor derived from constants would look alive across every cut; its makers are repeated in each stage instead.
    Random nodes and makers of a model output are never constants.

    Returns:
        The nodes to cut, in topological order, and the constant node behind each constant tensor.
    """
    fixed = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    outputs = {value.name for value in graph.output}
    body: list[Any] = []
    constants: dict[str, Any] = {}
    for node in graph.node:
        is_constant = (
            all(name in fixed for name in node_inputs(node))
            and node.op_type not in _RANDOM
            and not any(name in outputs for name in node.output)
            and not any(True for _ in _bodies(node))
        )
        if is_constant:
            fixed.update(name for name in node.output if name)
            constants.update((name, node) for name in node.output if name)
        else:
            body.append(node)
    return body, constants


def all_tensors(graph: Any) -> Iterator[Any]:
    """Yield every stored tensor of a graph, those in attributes and bodies included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for body in _bodies(node):
            yield from all_tensors(body)


def external_entry(tensor: Any) -> tuple[str, int, int | None]:
    """Return the location, offset and length (None: to the end of the file) of an external tensor."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    length = entries.get("length")
    return entries.get("location", ""), int(entries.get("offset") or 0), int(length) if length else None


def is_external(tensor: Any) -> bool:
    """Return whether a tensor's bytes lie in another file."""
    return bool(tensor.data_location == 1)  # TensorProto.EXTERNAL


def _read(path: Path) -> Any:
    """Parse the file without its external data."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"'{path}' is truncated or not an ONNX model") from error
    except OSError as error:
        raise ModelError(f"cannot read '{path}': {error.strerror}") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ModelError(f"'{path}' is truncated or not an ONNX model: it holds no graph with outputs")
    return model


def _external_files(model: Any, path: Path) -> list[Path]:
    """Return the external data files of a model, checked to lie beside it and to be long enough."""
    needed: dict[str, int] = {}
    for tensor in all_tensors(model.graph):
        if is_external(tensor):
            location, offset, length = external_entry(tensor)
            needed[location] = max(needed.get(location, 0), offset + (length or 0))
    files = []
    root = path.parent.resolve()
    for location, size in sorted(needed.items()):
        file = (root / location).resolve()
        if not location or not file.is_relative_to(root):
            raise ModelError(f"'{path}' wants external data at '{location}', outside its own folder; refused")
        if not file.is_file():
            raise ModelError(f"'{path}' wants its weights in '{location}', which is missing beside it")
        if file.stat().st_size < size:
            raise ModelError(f"'{location}' is truncated: {file.stat().st_size} bytes, '{path.name}' needs {size}")
        files.append(file)
    return files


def _tensor_bytes(tensor: Any) -> int:
    """Return the size of a stored tensor in bytes."""
    import onnx

    if is_external(tensor):
        length = external_entry(tensor)[2]
        if length is not None:
            return length
    if tensor.raw_data:
        return len(tensor.raw_data)
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(value) for value in tensor.string_data)
    itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return math.prod(tensor.dims) * int(itemsize)


def _optimized_folder(source: Source, kind: GraphKind, cache: Path) -> Path:
    """Return the folder with the optimised model, made now unless the cache has it."""
    import onnxruntime as ort

    machine = f"-{cpu_architecture()}" if kind == "native" else ""
    folder = cache / "graphs" / f"{source.sha256[:24]}-{kind}-ort{ort.__version__}{machine}-v{_CACHE_VERSION}"
    if (folder / "model.onnx").is_file():
        return folder
    levels = ort.GraphOptimizationLevel
    wanted = [levels.ORT_ENABLE_ALL] if kind == "native" else []
    wanted += [levels.ORT_ENABLE_BASIC, levels.ORT_DISABLE_ALL]
    first_error: Exception | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for level in wanted:
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".making-") as made:
                try:
                    _optimize(source.path, level, Path(made))
                except OSError:
                    raise
                except Exception as error:  # onnxruntime has no common root for its errors
                    first_error = first_error or error
                    _refuse_full_disk(folder.parent, source.size_bytes, error)
                    continue
                try:
                    Path(made).rename(folder)
                except OSError:
                    if not (folder / "model.onnx").is_file():  # not made by someone else meanwhile
                        raise
                else:
                    Path(made).mkdir()  # for TemporaryDirectory to remove
                return folder
    except OSError as error:
        raise OutputError(
            f"cannot write the optimised model to '{folder.parent}': {error.strerror or error}"
        ) from error
    assert first_error is not None  # noqa: S101
    raise ModelError(f"onnxruntime {ort.__version__} cannot load '{source.path}': {one_line(first_error)}")


def _refuse_full_disk(folder: Path, needed_bytes: int, error: Exception) -> None:
    """Raise `OutputError` if `error` came from a disk with no room for the optimised model."""
    free = shutil.disk_usage(folder).free
    if "No space left" in str(error) or free < needed_bytes // 8:
        raise OutputError(f"no space left for the optimised model in '{folder}': {free >> 20} MiB are free") from error


def _optimize(path: Path, level: Any, folder: Path) -> None:
    """Have onnxruntime optimise `path` into `folder`, and make sure that what it wrote loads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.optimized_model_filepath = str(folder / "model.onnx")
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.bin")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_FROM_BYTES)
    )
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    _drop_inputs_of_weights(folder / "model.onnx", {value.name for value in session.get_inputs()})
    del session
    ort.InferenceSession(str(folder / "model.onnx"), plain_options(), providers=["CPUExecutionProvider"])


def _drop_inputs_of_weights(path: Path, inputs: set[str]) -> None:
    """Take out declarations of inputs that were defaults for weights: folding leaves them behind without a value."""
    model = _read(path)
    kept = [value for value in model.graph.input if value.name in inputs]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        path.write_bytes(model.SerializeToString())


def _bodies(node: Any) -> Iterator[Any]:
    """Yield the graphs in a node's attributes: the bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def _captured(node: Any) -> Iterator[str]:
    """Yield the names that the bodies of a node take from outside."""
    for body in _bodies(node):
        known = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        known |= {sparse.values.name for sparse in body.sparse_initializer}
        for inner in body.node:
            yield from (name for name in node_inputs(inner) if name not in known)
            known.update(inner.output)
        yield from (value.name for value in body.output if value.name not in known)


def _with_constants(names: Iterable[str], constants: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `names` and all that the constant nodes behind them read."""
    found = list(used_names(names))
    for name in found:
        if name in constants:
            found.extend(extra for extra in node_inputs(constants[name]) if extra not in found)
    return tuple(found)


def _observe(
    path: Path, proto: Any, body: list[Any], feeds: Mapping[str, Any] | None
) -> dict[str, tuple[Tensor, tuple[int, ...] | None]]:
    """Return type, declared shape, size and seen shape of each value, from onnxruntime itself.

    Every value is made a model output, so that onnxruntime tells types and shapes also of the tensors of its own
    operators, which the file leaves out. Sizes come from one run on example inputs; where that fails, they follow
    from declared shapes.
    """
    import onnx
    import onnxruntime as ort

    probe = onnx.ModelProto()
    probe.CopyFrom(proto)
    del probe.graph.value_info[:]
    given = {value.name for value in probe.graph.output}
    names = used_names(name for node in body for name in node.output)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in given)
    handle, file = tempfile.mkstemp(dir=path.parent, prefix=".probe-", suffix=".onnx")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(probe.SerializeToString())
        session = ort.InferenceSession(file, plain_options(), providers=["CPUExecutionProvider"])
    except OSError as error:
        raise OutputError(f"cannot write to '{path.parent}': {error.strerror}") from error
    finally:
        Path(file).unlink(missing_ok=True)
    found: dict[str, tuple[Tensor, tuple[int, ...] | None]] = {}
    values: dict[str, Any] = {}
    given_feeds = example_inputs(session.get_inputs(), feeds) if feeds else None
    try:
        ready = given_feeds or example_inputs(session.get_inputs())
        outputs = [value.name for value in session.get_outputs()]
        # a feed may be a list or map, which only `run` takes
        plain = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in ready.items()}
        values = plain | dict(zip(outputs, session.run_with_ort_values(outputs, plain), strict=True))
    except Exception as error:  # the made-up inputs may not suit the model; sizes then come from declared shapes
        if given_feeds:
            raise ModelError(f"the model does not run on the given inputs: {one_line(error)}") from error
    for info in [*session.get_inputs(), *session.get_outputs()]:
        value = values.get(info.name)
        shape = None if info.shape is None else tuple(info.shape)
        seen = tuple(value.shape()) if value is not None and value.is_tensor() else None
        known = seen if seen is not None else shape
        itemsize = _itemsize(info.type)
        nbytes = (
            math.prod(int(size) for size in known) * itemsize
            if known is not None and itemsize and all(isinstance(size, int) for size in known)
            else None
        )
        found[info.name] = (Tensor(info.name, info.type, shape, nbytes), seen)
    return found


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


def _flops(node: Any, shapes: Mapping[str, tuple[int, ...] | None], weights: Mapping[str, Any]) -> int:
    """Estimate the floating-point operations of a node: 2 x multiply-adds for products, one an element otherwise."""
    out = shapes.get(node.output[0]) if node.output else None
    if out is None:
        return 0
    elements = math.prod(out)
    if node.op_type in ("Conv", "FusedConv", "ConvTranspose") and len(node.input) > 1:
        kernel = weights.get(node.input[1])
        if kernel is not None and kernel[0]:
            return 2 * elements * math.prod(kernel) // int(kernel[0])
    if "MatMul" in node.op_type or "Gemm" in node.op_type:
        left = shapes.get(node.input[0]) or tuple(weights.get(node.input[0], ()))
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        if left:
            return 2 * elements * int(left[-2 if transposed and len(left) > 1 else -1])
    return elements

"""ONNX files: checked, optimised once as a whole by onnxruntime, and read as a `ModelGraph`."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from splitload.base.entries import is_whole, making
from splitload.base.errors import ModelError, OutputError
from splitload.base.machine import cpu_architecture
from splitload.bundle.manifest import Metadata
from splitload.graphs.folding import narrow, unfold
from splitload.graphs.hoisting import weights_outside_bodies
from splitload.graphs.integers import faster_integers
from splitload.graphs.layout import block_products_of
from splitload.graphs.names import NAME_CLASH, rename_weights
from splitload.graphs.observe import flops, observe, one_line, plain_options
from splitload.graphs.padding import unpad
from splitload.graphs.proto import (
    all_tensors,
    bodies,
    defaults_of,
    external_files,
    external_sizes,
    is_external,
    metadata_of,
    node_inputs,
    split_constants,
    tensor_bytes,
    with_constants,
)
from splitload.graphs.rewrite import EXTERNAL_FROM_BYTES, raw_bytes
from splitload.graphs.shared import unshared_bytes
from splitload.graphs.tidy import join_concats
from splitload.plan.graph import DEFAULT_MAX_BLOCKS, GraphKind, ModelGraph, Node, used_names
from splitload.runtime.stock import path_option, session_beside, stock_session
from splitload.runtime.variants import check_floor

MAX_PROTOBUF_BYTES = (2 << 30) - 1
TOLERATED, TOLERATED_BYTES = 0.08, 64 << 10  # what a bundle may hold twice; the larger one counts
TOO_LARGE = "too-large"
_CACHE_VERSION = 8


@dataclass(frozen=True, slots=True)
class Source:
    """An ONNX file that was found readable.

    Attributes:
        name: Name of the model, for people.
        path: The file.
        sha256: Hash over the file and its external data.
        size_bytes: Size of the file and its external data.
        examples: Inputs that came with the model, by name; empty for a file.
        metadata: What the model says of itself; None where that is not known.
        data_files: Its external data files, as the model names them.
        defaults: Names of inputs that have a default value, which is built into what is made of it.
    """

    name: str
    path: Path
    sha256: str
    size_bytes: int
    examples: Mapping[str, Any] = field(default_factory=dict)
    metadata: Metadata | None = None
    data_files: tuple[str, ...] = ()
    defaults: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, name: str, examples: Mapping[str, Any] | None = None) -> Source:
        """Check and hash the file.

        Raises:
            ModelError: If it is missing, truncated, not ONNX, or its external data is.
        """
        if not path.is_file():
            raise ModelError(f"no model file '{path}'; give an .onnx file, zoo:NAME or package.module:factory")
        if path.stat().st_size > MAX_PROTOBUF_BYTES:
            raise ModelError(f"'{path}' is over 2 GB; save its weights as external data")
        model = read_model(path)
        files = (path, *external_files(model, path))
        digest = hashlib.sha256()
        try:
            for file in files:
                with file.open("rb") as stream:
                    while chunk := stream.read(8 << 20):
                        digest.update(chunk)
            size_bytes = sum(file.stat().st_size for file in files)
        except OSError as error:
            raise ModelError(f"cannot read '{error.filename or path}': {error.strerror}") from error
        name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # of a file, in whatever encoding
        described = metadata_of(model), tuple(external_sizes(model)), defaults_of(model)
        return cls(name, path, digest.hexdigest(), size_bytes, examples or {}, *described)


def model_files(path: Path) -> tuple[Path, ...]:
    """Return an .onnx file and those that hold its weights.

    Raises:
        ModelError: If one is missing, truncated, or lies elsewhere.
    """
    return path, *external_files(read_model(path), path)


def load_graph(
    source: Source,
    kind: GraphKind,
    cache: Path,
    *,
    max_blocks: int = DEFAULT_MAX_BLOCKS,
    feeds: Mapping[str, Any] | None = None,
) -> ModelGraph:
    """Optimise the whole model once, and return what can be cut.

    The optimised file is kept in `cache`, by the hash of the model, the runtime version and the processor; where
    matrix products are stored in blocks, the first feeds decide. "native"
    takes every optimisation of onnxruntime, "portable" only those that leave standard operators. A model that
    onnxruntime cannot optimise, because it already was, is taken as it is.

    The native graph must share its weights with the portable one. Where it does not, as with trees, which are no
    tensors, or with weights of 4 bits, which it packs in an order of its own, a bundle of both would be about twice as
    large as the model. Then the portable graph is returned, which onnxruntime optimises when it loads it.

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
    path = _optimized_folder(source, "portable", cache, feeds) / "model.onnx"
    if kind == "native":
        native = _optimized_folder(source, kind, cache, feeds, path)
        if not (native / TOO_LARGE).exists():
            path = native / "model.onnx"
        else:
            kind = "portable"
    return read_graph(path, source, kind, max_blocks=max_blocks, feeds=feeds)


def read_graph(
    path: Path,
    source: Source,
    kind: GraphKind,
    *,
    max_blocks: int = DEFAULT_MAX_BLOCKS,
    feeds: Mapping[str, Any] | None = None,
    tail: frozenset[str] = frozenset(),
    trainable: tuple[str, ...] = (),
) -> ModelGraph:
    """Read an optimised file as what can be cut; see `load_graph`.

    Args:
        path: The file, in a folder of the cache.
        source: The model it was made of.
        kind: Which graph it is.
        max_blocks: The most blocks, at least 1.
        feeds: Inputs for the run that sees the sizes of tensors; made up where they are missing.
        tail: Outputs of the nodes of the trainable tail, which come last.
        trainable: Names of the weights that are trained.
    """
    proto = read_model(path)
    graph = proto.graph
    weights = {tensor.name: tensor_bytes(tensor) for tensor in graph.initializer}
    weights |= {sparse.values.name: tensor_bytes(sparse.values) for sparse in graph.sparse_initializer}
    dims = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    body, constants = split_constants(graph)
    if not body:
        raise ModelError(f"'{source.path}' computes nothing from its inputs: there is nothing to load in stages")
    uses = {id(node): with_constants(node_inputs(node), constants) for node in body}
    for index, node in enumerate(body):
        if own := sum(tensor_bytes(tensor) for inner in bodies(node) for tensor in all_tensors(inner)):
            name = f"{node.op_type}#{index} bodies"  # what the bodies of a node hold counts as one weight of its own
            weights[name] = own
            uses[id(node)] += (name,)
    seen = observe(path, proto, body, feeds)
    tensors = {name: tensor for name, (tensor, _) in seen.items()}
    sizes = {name: size for name, (_, size) in seen.items()}
    nodes = tuple(
        Node(
            node.name,
            node.op_type,
            tuple(name for name in uses[id(node)] if name in tensors and name not in weights),
            used_names(node.output),
            tuple(name for name in uses[id(node)] if name in weights),
            flops(node, sizes, dims),
        )
        for node in body
    )
    inputs = tuple(value.name for value in graph.input if value.name not in weights)
    return ModelGraph(
        source.name, source.sha256, source.size_bytes, kind, path, nodes, tensors, inputs,
        tuple(value.name for value in graph.output), weights, max_blocks,
        next((index for index, node in enumerate(body) if not tail.isdisjoint(node.output)), None), trainable,
    )  # fmt: skip


def read_model(path: Path) -> Any:
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


def read_whole(path: Path) -> Any:
    """Parse the file and read its external data into it.

    onnx's own reader refuses files of several hard links, which is how file systems and package managers save room.

    Raises:
        ModelError: If it cannot be read, or its data lies elsewhere or is truncated.
    """
    model = read_model(path)
    external_files(model, path)
    try:
        for tensor in all_tensors(model.graph):
            if is_external(tensor):
                data = raw_bytes(tensor, path.parent)
                tensor.ClearField("data_location")
                del tensor.external_data[:]
                tensor.raw_data = data
    except OSError as error:
        raise ModelError(f"cannot read '{error.filename}': {error.strerror}") from error
    return model


def _optimized_folder(
    source: Source, kind: GraphKind, cache: Path, feeds: Mapping[str, Any] | None, portable: Path | None = None
) -> Path:
    """Return the folder with the optimised model, made now unless the cache has it.

    The native one is fitted to the file of the `portable` one: filled filters lose their filling, and where
    the two would hold too much twice, a file `TOO_LARGE` says so.
    """

    def fit(made: Path) -> None:
        if portable is not None:
            unpad(made / "model.onnx", portable)
            missing, total = unshared_bytes(made / "model.onnx", portable)
            if missing > max(TOLERATED * total, TOLERATED_BYTES):
                (made / TOO_LARGE).touch()

    folder = folder_of(source, kind, cache)
    if not is_whole(folder):
        optimize_into(folder, source.path, source, kind, feeds, fit)
    return folder


def folder_of(source: Source, kind: GraphKind, cache: Path, part: str = "") -> Path:
    """Return the place in the cache of an optimised model, or of one of which a part stays as it is.

    Raises:
        MissingPackageError: If onnxruntime is older than splitload needs.
    """
    import onnxruntime as ort

    check_floor(ort.__version__)
    machine = f"-{cpu_architecture()}" if kind == "native" else ""
    return cache / "graphs" / f"{source.sha256[:24]}{part}-{kind}-ort{ort.__version__}{machine}-v{_CACHE_VERSION}"


def optimize_into(
    folder: Path,
    path: Path,
    source: Source,
    kind: GraphKind,
    feeds: Mapping[str, Any] | None,
    finish: Callable[[Path], None] = lambda _: None,
) -> None:
    """Optimise a model file as far as onnxruntime can, and put the result into the cache, whole or not at all.

    Args:
        folder: Of the cache; `model.onnx` in it will be the optimised model.
        path: The file.
        source: The model it is, or is a part of.
        kind: How it is optimised.
        feeds: Inputs of the runs that decide what is stored in blocks, and in what way integers are computed; made up
            where they are missing.
        finish: Called with the folder of the optimised model, before it is put in place.

    Raises:
        ModelError: If onnxruntime cannot load it.
        OutputError: If it cannot be written.
    """
    import onnxruntime as ort

    levels = ort.GraphOptimizationLevel
    wanted = [levels.ORT_ENABLE_ALL] if kind == "native" else []
    wanted += [levels.ORT_ENABLE_BASIC, levels.ORT_DISABLE_ALL]
    errors: list[Exception] = []
    for level in wanted:
        try:
            with making(folder, "the optimised model") as made:
                with _refusals():
                    plain = weights_outside_bodies(path, made, read_whole)
                    _optimize_and_tidy(plain, made, level)
                if level == levels.ORT_ENABLE_ALL:
                    plain = faster_integers(plain, made, feeds, read_whole, partial(_optimize_and_tidy, level=level))
                    block_products_of(made / "model.onnx", feeds)
                    narrow(made / "model.onnx", plain)
                for copy in filter(Path.is_dir, made.iterdir()):
                    shutil.rmtree(copy)
                finish(made)
            return
        except _NotOptimizedError as refused:
            errors.append(refused.error)
            refuse_full_disk(folder.parent, source.size_bytes, refused.error)
    raise ModelError(f"onnxruntime {ort.__version__} cannot load '{source.path}': {one_line(errors[0])}")


class _NotOptimizedError(Exception):
    """What onnxruntime raised instead of optimising a model; it has no common root for its errors."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Raise `_NotOptimizedError` for what goes wrong, but for files that cannot be read or written."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # onnxruntime has no common root for its errors
        raise _NotOptimizedError(error) from error


def _optimize_and_tidy(path: Path, folder: Path, level: Any) -> None:
    """Have onnxruntime optimise `path` into `folder`, but for what that costs in size, and join what it can."""
    import onnxruntime as ort

    optimize(path, folder, level)
    unfold(folder / "model.onnx", path, native=level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    _join_concats_of_file(folder / "model.onnx")


def refuse_full_disk(folder: Path, needed_bytes: int, error: Exception) -> None:
    """Raise `OutputError` if `error` came from a disk with no room for the optimised model."""
    free = shutil.disk_usage(folder).free  # what was written is removed already
    writing = any(words in str(error) for words in ("Failed to write", "Protobuf serialization failed"))
    if "No space left" in str(error) or free < (needed_bytes if writing else needed_bytes // 8):
        raise OutputError(f"no space left for the optimised model in '{folder}': {free >> 20} MiB are free") from error
    if writing:
        raise OutputError(f"cannot write the optimised model to '{folder}': {one_line(error)}") from error


def optimize(path: Path, folder: Path, level: Any) -> None:
    """Have onnxruntime optimise `path` into `folder`, and make sure that what it wrote loads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    options.optimized_model_filepath = path_option(folder / "model.onnx")
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "model.bin")
    options.add_session_config_entry(
        "session.optimized_model_external_initializers_min_size_in_bytes", str(EXTERNAL_FROM_BYTES)
    )
    try:
        session = stock_session(str(path), options)
    except Exception as error:  # onnxruntime has no common root for its errors
        if NAME_CLASH not in str(error):
            raise
        model = read_model(path)
        rename_weights(model.graph)
        session = session_beside(path.parent, model.SerializeToString(), options)
    _drop_inputs_of_weights(folder / "model.onnx", {value.name for value in session.get_inputs()})
    del session
    stock_session(str(folder / "model.onnx"), plain_options())


def _join_concats_of_file(path: Path) -> None:
    """Have each Concat read what an earlier one has joined already; see `tidy`."""
    model = read_model(path)
    if join_concats(model.graph):
        path.write_bytes(model.SerializeToString())


def _drop_inputs_of_weights(path: Path, inputs: set[str]) -> None:
    """Take out declarations of inputs that were defaults for weights: folding leaves them behind without a value."""
    model = read_model(path)
    kept = [value for value in model.graph.input if value.name in inputs]
    if len(kept) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(kept)
        path.write_bytes(model.SerializeToString())

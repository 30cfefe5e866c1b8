"""ONNX files: checked, optimised once as a whole by onnxruntime, and read as a `ModelGraph`."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitload.base.entries import RECORD, is_whole, making
from splitload.base.errors import ModelError
from splitload.bundle.manifest import Metadata
from splitload.graphs.here import HERE
from splitload.graphs.large_weights import cut_large_weights, large_weights
from splitload.graphs.layout import channel_block
from splitload.graphs.observe import flops, observe
from splitload.graphs.optimize import optimize_into
from splitload.graphs.padding import unpad
from splitload.graphs.proto import (
    all_tensors,
    bodies,
    defaults_of,
    external_files,
    external_sizes,
    metadata_of,
    node_inputs,
    split_constants,
    tensor_bytes,
    with_constants,
)
from splitload.graphs.read import parse_model
from splitload.graphs.runtime import GraphRuntime
from splitload.graphs.shared import unshared_bytes
from splitload.plan.graph import DEFAULT_MAX_BLOCKS, GraphKind, ModelGraph, Node, used_names
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
        model = parse_model(path)
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
    return path, *external_files(parse_model(path), path)


def load_graph(
    source: Source,
    kind: GraphKind,
    cache: Path,
    *,
    max_blocks: int = DEFAULT_MAX_BLOCKS,
    max_weight_bytes: int | None = None,
    feeds: Mapping[str, Any] | None = None,
    runtime: GraphRuntime = HERE,
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
        max_weight_bytes: The most bytes of one weight; larger ones are cut where they can be, see `cut_large_weights`.
            None to leave them whole.
        feeds: Inputs for the run that sees the sizes of tensors; made up where they are missing.
        runtime: What a native graph is made for, and by.

    Raises:
        ModelError: If onnxruntime cannot load the model.
        OutputError: If the optimised file cannot be written.
    """
    path = _optimized_folder(source, "portable", cache, feeds, HERE) / "model.onnx"
    if kind == "native":
        native = _optimized_folder(source, kind, cache, feeds, runtime, path)
        if not (native / TOO_LARGE).exists():
            path = native / "model.onnx"
        else:
            kind = "portable"
    if max_weight_bytes is not None:
        path = _with_cut_weights(path, max_weight_bytes)
    return read_graph(
        path, source, kind, max_blocks=max_blocks, max_weight_bytes=max_weight_bytes, feeds=feeds, runtime=runtime
    )


def read_graph(
    path: Path,
    source: Source,
    kind: GraphKind,
    *,
    max_blocks: int = DEFAULT_MAX_BLOCKS,
    max_weight_bytes: int | None = None,
    feeds: Mapping[str, Any] | None = None,
    tail: frozenset[str] = frozenset(),
    trainable: tuple[str, ...] = (),
    runtime: GraphRuntime = HERE,
) -> ModelGraph:
    """Read an optimised file as what can be cut; see `load_graph`.

    Args:
        path: The file, in a folder of the cache.
        source: The model it was made of.
        kind: Which graph it is.
        max_blocks: The most blocks, at least 1.
        max_weight_bytes: The most bytes of weights in a block of several nodes; None for any.
        feeds: Inputs for the run that sees the sizes of tensors; made up where they are missing.
        tail: Outputs of the nodes of the trainable tail, which come last.
        trainable: Names of the weights that are trained.
        runtime: What a native graph was made for; any other graph is run here.
    """
    proto = parse_model(path)
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
    seen = observe(path, proto, body, feeds, runtime if kind == "native" else HERE)
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
        max_weight_bytes,
    )  # fmt: skip


def _optimized_folder(
    source: Source,
    kind: GraphKind,
    cache: Path,
    feeds: Mapping[str, Any] | None,
    runtime: GraphRuntime,
    portable: Path | None = None,
) -> Path:
    """Return the folder with the optimised model, made now unless the cache has it.

    The native one is fitted to the file of the `portable` one: filled filters lose their filling, and where
    the two would hold too much twice, a file `TOO_LARGE` says so.
    """

    def fit(made: Path) -> None:
        if portable is not None:
            block = channel_block(runtime)
            unpad(made / "model.onnx", portable, block)
            missing, total = unshared_bytes(made / "model.onnx", portable, block)
            if missing > max(TOLERATED * total, TOLERATED_BYTES):
                (made / TOO_LARGE).touch()

    folder = folder_of(source, kind, cache, runtime)
    if not is_whole(folder):
        size = source.size_bytes
        optimize_into(
            folder, source.path, kind, feeds, model=source.path, model_bytes=size, runtime=runtime, finish=fit
        )
    return folder


def _with_cut_weights(path: Path, max_weight_bytes: int) -> Path:
    """Return an optimised file, or if weights in it are cut the file with their parts, from the cache or made now."""
    folder = path.parent.with_name(f"{path.parent.name}-parts{max_weight_bytes}")
    if is_whole(folder):
        return folder / path.name
    if not large_weights(parse_model(path), max_weight_bytes):
        return path
    with making(folder, "the model with its large weights cut") as made:
        for file in path.parent.iterdir():
            if file.name == path.name:
                shutil.copyfile(file, made / file.name)
            elif file.name != RECORD:
                (made / file.name).symlink_to(file.absolute())  # only read, and left behind
        cut_large_weights(made / path.name, max_weight_bytes)
    return folder / path.name


def folder_of(source: Source, kind: GraphKind, cache: Path, runtime: GraphRuntime, part: str = "") -> Path:
    """Return the place in the cache of an optimised model, or of one of which a part stays as it is.

    A native one is named by the processor and the onnxruntime that it is made for, a portable one by this machine's.

    Raises:
        MissingPackageError: If onnxruntime is older than splitload needs.
    """
    maker = runtime if kind == "native" else HERE
    check_floor(maker.version)
    machine = f"-{maker.cpu}" if kind == "native" else ""
    return cache / "graphs" / f"{source.sha256[:24]}{part}-{kind}-ort{maker.version}{machine}-v{_CACHE_VERSION}"

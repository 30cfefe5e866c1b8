"""Models whose tail stays open for training: the body is optimised, the tail kept as it was exported, in one graph."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.base.entries import is_whole
from splitload.base.errors import ModelError
from splitload.base.pieces import PIECE_BYTES
from splitload.base.scratch import scratch_folder
from splitload.frontends.onnx import Source, folder_of, read_graph
from splitload.graphs.here import HERE
from splitload.graphs.large_weights import cut_large_weights
from splitload.graphs.observe import elem_type, observe, one_line
from splitload.graphs.optimize import optimize_into
from splitload.graphs.proto import bodies, point, split_constants, store_constants, tensor_bytes
from splitload.graphs.read import parse_model, read_whole
from splitload.graphs.rewrite import EXTERNAL_FROM_BYTES, save_with_data
from splitload.graphs.runtime import GraphRuntime, Refusal
from splitload.plan.graph import DEFAULT_MAX_BLOCKS, GraphKind, ModelGraph
from splitload.training.division import Division, divide, parts

TAIL = "tail.onnx"  # in the folder of the merged graph, with its weights beside it
_TAIL_WEIGHTS = "tail.bin"
_ALIGNED = 64  # bytes
_VERSION = 2  # raise it when a change here changes a file


@dataclass(frozen=True, slots=True)
class Opened:
    """A model with a tail to train.

    Attributes:
        graph: What can be cut; its last block is the tail.
        tail: File of the tail alone, an ONNX model whose inputs are the features.
        division: Where the model is divided.
    """

    graph: ModelGraph
    tail: Path
    division: Division


def load_opened(
    source: Source,
    kind: GraphKind,
    cache: Path,
    trainable: str | Collection[str],
    *,
    max_blocks: int = DEFAULT_MAX_BLOCKS,
    max_weight_bytes: int | None = None,
    feeds: Mapping[str, Any] | None = None,
    runtime: GraphRuntime = HERE,
) -> Opened:
    """Divide a model before its first trainable layer, optimise what comes before, and return what can be cut.

    Args:
        source: The model.
        kind: How the body is optimised; see `load_graph`.
        cache: The user's cache folder.
        trainable: A count of last layers, a pattern of their names, or the names of the trained weights.
        max_blocks: The most blocks.
        max_weight_bytes: The most bytes of one weight before the trainable layers; see `load_graph`.
        feeds: Inputs for the run that sees the sizes of tensors; made up where they are missing.
        runtime: What a native body is made for, and by.

    Raises:
        UsageError: If the layers cannot be trained.
        ModelError: If onnxruntime cannot load the model.
        OutputError: If the graph cannot be written to the cache.
    """
    whole = parse_model(source.path).graph
    store_constants(whole)
    division = divide(whole, trainable)
    outputs = [value.name for value in whole.output]
    parts_of = (_VERSION, division.weights, division.features)
    part = "-" + hashlib.sha256(repr(parts_of).encode()).hexdigest()[:12]
    if max_weight_bytes is not None:
        part += f"-parts{max_weight_bytes}"
    folder = folder_of(source, kind, cache, runtime, part)
    if not is_whole(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(folder.parent, ".opened-") as made:
            tail = _separate(source, division, made, feeds)

            def finish(place: Path) -> None:
                if max_weight_bytes is not None:
                    cut_large_weights(place / "model.onnx", max_weight_bytes)
                _merge(place / "model.onnx", tail, division, outputs, made, runtime if kind == "native" else HERE)

            optimize_into(
                folder,
                made / "body.onnx",
                kind,
                feeds,
                model=source.path,
                model_bytes=source.size_bytes,
                runtime=runtime,
                finish=finish,
            )
    graph = read_graph(
        folder / "model.onnx",
        source,
        kind,
        max_blocks=max_blocks,
        max_weight_bytes=max_weight_bytes,
        feeds=feeds,
        tail=division.tail,
        trainable=division.weights,
        runtime=runtime,
    )
    return Opened(graph, folder / TAIL, division)


def _separate(source: Source, division: Division, folder: Path, feeds: Mapping[str, Any] | None) -> Any:
    """Write the body into a folder and return the tail, whose weights lie in a file there."""
    model = read_whole(source.path)
    store_constants(model.graph)
    whole = folder / "whole.onnx"
    save_with_data(model, whole)
    model = parse_model(whole)
    nodes, _ = split_constants(model.graph)
    seen = observe(whole, model, nodes, feeds, HERE)
    types = {
        name: (elem_type(tensor.type), sizes if tensor.shape is None else tensor.shape)
        for name, (tensor, sizes) in seen.items()
        if name in division.features and tensor.can_cross
    }
    missing = [name for name in division.features if name not in types]
    if missing or any(shape is None for _, shape in types.values()):
        raise ModelError(f"the shape of '{[*missing, *types][0]}' is not known; give fitting inputs with --input")
    body, tail = parts(model, division, {name: (kind, list(shape or ())) for name, (kind, shape) in types.items()})
    (folder / "body.onnx").write_bytes(body.SerializeToString())
    return tail


def _merge(
    path: Path, tail: Any, division: Division, outputs: Sequence[str], folder: Path, runtime: GraphRuntime
) -> None:
    """Put the tail behind the optimised body, and beside both the tail alone, its weights in a file of their own."""
    (folder / TAIL).write_bytes(tail.SerializeToString())
    tail = read_whole(folder / TAIL)
    _rename_constants(tail.graph, division)
    _store_weights(tail.graph, division, path.parent / _TAIL_WEIGHTS)
    (path.parent / TAIL).write_bytes(tail.SerializeToString())
    model = parse_model(path)
    known = {tensor.name for tensor in model.graph.initializer}
    known |= {name for node in model.graph.node for name in node.output}
    clash = known & {name for node in tail.graph.node for name in node.output}
    clash |= known & {tensor.name for tensor in tail.graph.initializer}
    if clash:  # a trained weight, or what a node of the tail makes
        raise ModelError(f"'{min(clash)}' stands both before and behind the first trainable layer; choose other layers")
    model.graph.node.extend(tail.graph.node)
    model.graph.initializer.extend(tail.graph.initializer)
    known_functions = {(each.domain, each.name) for each in model.functions}
    model.functions.extend(each for each in tail.functions if (each.domain, each.name) not in known_functions)
    declared = {value.name: value for value in (*model.graph.output, *tail.graph.output)}
    del model.graph.output[:]
    model.graph.output.extend(declared[name] for name in outputs)
    domains = {entry.domain for entry in model.opset_import}
    model.opset_import.extend(entry for entry in tail.opset_import if entry.domain not in domains)
    path.write_bytes(model.SerializeToString())
    try:
        runtime.open(path)
    except Refusal as error:
        raise ModelError(f"the model divided before its trainable layers does not load: {one_line(error)}") from error


def _rename_constants(graph: Any, division: Division) -> None:
    """Give constants names of the tail's own: the body may hold the same ones, and change them."""
    own = {tensor.name for tensor in graph.initializer if tensor.name not in division.weights}
    own |= {name for node in graph.node for name in node.output if name and name not in division.tail}
    names = {name: f"tail/{name}" for name in own}
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for node in graph.node:
        if any(True for _ in bodies(node)):
            raise ModelError(f"the operator {node.op_type} behind the first trainable layer holds graphs of its own")
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _store_weights(graph: Any, division: Division, file: Path) -> None:
    """Move trained weights, and others that are not small, to a file."""
    from onnx import numpy_helper

    with file.open("wb", PIECE_BYTES) as out:
        for tensor in graph.initializer:
            if tensor.name not in division.weights and tensor_bytes(tensor) < EXTERNAL_FROM_BYTES:
                continue
            data = numpy_helper.to_array(tensor).tobytes()
            name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
            tensor.Clear()
            tensor.name, tensor.data_type, tensor.data_location = name, kind, tensor.EXTERNAL
            tensor.dims.extend(dims)
            out.write(b"\0" * (-out.tell() % _ALIGNED))
            point(tensor, file.name, out.tell(), len(data))
            out.write(data)

"""Sizes of all values of a graph, seen in a run piece by piece, so that never all of them are in memory at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from splitload.graphs.proto import node_inputs, split_constants, with_constants
from splitload.graphs.runtime import GraphPiece
from splitload.plan.graph import used_names

_PIECES = 32  # at most; a piece holds all of its values at once, and each takes a session


def pieces_of(proto: Any, body: Sequence[Any], types: Mapping[str, Any]) -> Iterator[GraphPiece]:
    """Yield the pieces of a graph, in the order in which they are run.

    Args:
        proto: The graph's file.
        body: Its nodes that are no constants, in topological order.
        types: The type of each input and each tensor as a `TypeProto`; no piece hands anything else on.
    """
    _, constants = split_constants(proto.graph)
    for nodes, alive in _pieces(body, types):
        piece = _piece(proto, nodes, constants, types)
        yield GraphPiece(
            piece.SerializeToString(),
            tuple(value.name for value in piece.graph.input),
            tuple(value.name for value in piece.graph.output),
            tuple(sorted(alive)),
        )


def _pieces(body: Sequence[Any], types: Mapping[str, Any]) -> Iterator[tuple[Sequence[Any], set[str]]]:
    """Yield the pieces of a graph, each with the values that later ones read; all of these are plain tensors."""
    last_use = {name: index for index, node in enumerate(body) for name in node_inputs(node)}
    made_here = {name for node in body for name in node.output}
    size = -(-len(body) // _PIECES)
    alive: set[str] = set()
    start = 0
    for end, node in enumerate(body, start=1):
        alive = {name for name in (*alive, *node.output) if last_use.get(name, -1) >= end}
        is_whole = end == len(body)
        if is_whole or (end - start >= size and all(name in types for name in alive & made_here)):
            yield body[start:end], alive
            start = end


def _piece(proto: Any, nodes: Sequence[Any], constants: Mapping[str, Any], types: Mapping[str, Any]) -> Any:
    """Return some nodes of a graph as a model of their own, of which every value is an output."""
    import onnx

    wanted = set(with_constants([name for node in nodes for name in node_inputs(node)], constants))
    makers = {id(constants[name]): constants[name] for name in wanted if name in constants}
    stored = {tensor.name for tensor in proto.graph.initializer}
    stored |= {sparse.values.name for sparse in proto.graph.sparse_initializer}
    made = used_names(name for node in nodes for name in node.output)
    known = {*stored, *made, *constants}
    piece = onnx.ModelProto(ir_version=proto.ir_version)
    piece.opset_import.extend(proto.opset_import)
    piece.functions.extend(proto.functions)
    piece.graph.name = "piece"
    piece.graph.node.extend([node for node in proto.graph.node if id(node) in makers] + list(nodes))
    piece.graph.initializer.extend(tensor for tensor in proto.graph.initializer if tensor.name in wanted)
    piece.graph.sparse_initializer.extend(s for s in proto.graph.sparse_initializer if s.values.name in wanted)
    piece.graph.input.extend(
        onnx.ValueInfoProto(name=name, type=types[name]) for name in sorted(wanted - known) if name in types
    )
    piece.graph.output.extend(onnx.ValueInfoProto(name=name) for name in made)
    return piece

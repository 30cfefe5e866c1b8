"""The graphs that a shared plan has machines compute, made of the graph that its bundle's stages are cut from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from splitload.bundle.collaboration import RowTensor
from splitload.collaborative.levels import Levels
from splitload.collaborative.operators import opened
from splitload.collaborative.program import Compute
from splitload.graphs.layout import channel_block
from splitload.graphs.observe import elem_type
from splitload.graphs.row_graph import RowGraph
from splitload.graphs.row_models import PieceWriter
from splitload.graphs.row_pieces import Ranges, plan_piece
from splitload.plan.graph import ModelGraph


@dataclass(frozen=True)
class ComputedPiece:
    """A graph for one step of a program.

    Attributes:
        model: The onnx.ModelProto; its weights lie beside the graph's file.
        reads: The rows of each of its inputs, in their order.
        gives: The rows of each of its outputs, in their order.
    """

    model: Any
    reads: Ranges
    gives: Ranges


class Pieces:
    """Makes the graphs of steps.

    Args:
        model: What is shared.
        most_levels: The most levels between inputs and outputs.

    Attributes:
        levels: Of the model.
        source: The graph that all are made of, an onnx.ModelProto.
        tensors: Those at levels, by name, as a collaboration has them.
    """

    def __init__(self, model: ModelGraph, most_levels: int | None = None) -> None:
        proto, constants, graph = opened(model)
        self.levels = Levels.of(model, graph) if most_levels is None else Levels.of(model, graph, most_levels)
        block = channel_block() if graph.blocked else None
        self._graph, self.source = graph, proto
        self._writer = PieceWriter(proto, graph, constants, lambda name: elem_type(model.tensors[name].type), block)
        names = [name for level in self.levels.levels for name in level.tensors]
        self.tensors = {name: _row_tensor(model, graph, name, block) for name in (*names, *model.inputs)}

    def of(self, step: Compute) -> ComputedPiece:
        """Return the graph of a step; tensors that pass by are not among what it gives."""
        nodes = self.levels.nodes(step.first, step.last)
        made = {name for at in nodes for name in self._graph.nodes[at].proto.output}
        wanted = {name: rows for name, rows in self.levels.wanted(step.last, step.rows).items() if name in made}
        piece = plan_piece(self._graph, nodes, wanted)
        name = f"levels {step.first}-{step.last}, rows {step.rows.start}-{step.rows.stop}"
        return ComputedPiece(self._writer.model(piece, wanted, name), piece.needed, wanted)


def _row_tensor(model: ModelGraph, graph: RowGraph, name: str, block: int | None) -> RowTensor:
    """Return how the rows of a tensor lie in memory.

    Args:
        model: What is shared.
        graph: The same as operators on rows.
        name: Of the tensor.
        block: Channels in a block of the blocked layout.
    """
    shape, axis = graph.shapes[name], graph.axes.get(name)
    lines = math.prod(shape[: axis or 0])
    if name in graph.blocked and axis is not None and axis > 1:
        assert block is not None  # noqa: S101 - no tensor is blocked without
        lines //= block
    return RowTensor(name, model.tensors[name].type, shape, axis, lines)

"""The graphs that a shared plan has machines compute, made of the graph that its bundle's stages are cut from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitload.collaborative.levels import Levels
from splitload.collaborative.operators import opened
from splitload.collaborative.program import Compute
from splitload.collaborative.row_store import RowLayout
from splitload.graphs.layout import channel_block
from splitload.graphs.observe import elem_type
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
        layouts: How the rows of each tensor at a level lie in memory.
    """

    def __init__(self, model: ModelGraph, most_levels: int | None = None) -> None:
        proto, constants, graph = opened(model)
        self.levels = Levels.of(model, graph) if most_levels is None else Levels.of(model, graph, most_levels)
        block = channel_block() if graph.blocked else None
        self._graph = graph
        self._writer = PieceWriter(proto, graph, constants, lambda name: elem_type(model.tensors[name].type), block)
        names = [name for level in self.levels.levels for name in level.tensors]
        self.layouts = {name: RowLayout.of(graph, name, block) for name in (*names, *model.inputs)}

    def of(self, step: Compute) -> ComputedPiece:
        """Return the graph of a step; tensors that pass by are not among what it gives."""
        nodes = self.levels.nodes(step.first, step.last)
        made = {name for at in nodes for name in self._graph.nodes[at].proto.output}
        wanted = {name: rows for name, rows in self.levels.wanted(step.last, step.rows).items() if name in made}
        piece = plan_piece(self._graph, nodes, wanted)
        name = f"levels {step.first}-{step.last}, rows {step.rows.start}-{step.rows.stop}"
        return ComputedPiece(self._writer.model(piece, wanted, name), piece.needed, wanted)

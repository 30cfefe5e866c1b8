"""Which rows of which tensors a run of operators must compute and read for some rows of what it gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from splitload.graphs.row_graph import RowGraph, RowNode
from splitload.graphs.row_windows import Window


class Range(NamedTuple):
    """Rows `[start, stop)` of a tensor."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many."""
        return self.stop - self.start

    def hull(self, other: Range | None) -> Range:
        """Return the smallest range that has both."""
        return self if other is None else Range(min(self.start, other.start), max(self.stop, other.stop))


Ranges = Mapping[str, Range | None]
"""Rows of tensors by name; None for a tensor that has none, and is there whole."""


@dataclass(frozen=True)
class Piece:
    """Rows of tensors that a run of operators computes.

    Attributes:
        rows: The rows that each operator computes, by its position in the graph, in order; None where it is done whole.
        made: What that gives of each tensor.
        needed: What it reads of each tensor that no operator of it gives, weights left out.
    """

    rows: Mapping[int, Range | None]
    made: Ranges
    needed: Ranges


def clipped(window: Window, made: Range, size: int) -> tuple[Range, int, int]:
    """Return the rows of an input that some rows of an output need, and how many they lack before and behind those.

    Args:
        window: Of the input.
        made: Rows of the output.
        size: How many rows the input has.
    """
    first, last = window.rows(*made)
    start = min(max(first, 0), size - 1)
    stop = max(min(last, size), start + 1)
    return Range(start, stop), start - first, last - stop


def plan_piece(graph: RowGraph, nodes: Sequence[int], wanted: Ranges) -> Piece:
    """Return what operators must compute and read for some rows of what they give.

    Each tensor is computed once, with all rows that the others and the caller need of it.

    Args:
        graph: What the operators are part of.
        nodes: Positions of the operators, in order.
        wanted: Rows of tensors that they give; None for all of a tensor.
    """
    needed = {
        name: Range(0, graph.size(name)) if rows is None and name in graph.axes else rows
        for name, rows in wanted.items()
    }
    rows: dict[int, Range | None] = {}
    made: dict[str, Range | None] = {}
    for at in reversed(nodes):
        node = graph.nodes[at]
        outputs = [name for name in node.proto.output if name in needed]
        if not outputs:
            continue
        rows[at] = range_ = _hull(graph, node, {name: needed.pop(name) for name in outputs})
        made.update((name, range_ if name in graph.axes else None) for name in node.proto.output if name)
        for place, name in enumerate(node.proto.input):
            if name in graph.values:
                own = _needed(graph, node, place, range_)
                needed[name] = None if own is None else own.hull(needed.get(name))
    return Piece(dict(reversed(rows.items())), made, needed)


def _hull(graph: RowGraph, node: RowNode, wanted: Ranges) -> Range | None:
    """Return the rows that an operator computes for some of its outputs."""
    if node.rows is None:
        return None
    found: Range | None = None
    for name, rows in wanted.items():
        found = (rows or Range(0, graph.shapes[name][node.rows.axis])).hull(found)
    return found


def _needed(graph: RowGraph, node: RowNode, place: int, rows: Range | None) -> Range | None:
    """Return the rows of an input that rows of the outputs need; None where the input has no rows."""
    name = node.proto.input[place]
    if name not in graph.axes:
        return None
    if rows is None or node.rows is None or place not in node.rows.needs:
        return Range(0, graph.size(name))
    return clipped(node.rows.needs[place].window, rows, graph.size(name))[0]

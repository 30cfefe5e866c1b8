"""Rows of tensors as they come: each written to its place, and read again by whoever needs some."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitload.graphs.row_graph import RowGraph
from splitload.graphs.row_pieces import Range

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class RowLayout:
    """How the rows of a tensor lie in memory.

    Attributes:
        shape: Of the whole tensor.
        axis: Along which its rows lie; None where it has none.
        lines: How often rows begin anew: the elements before the axis, those of a block of channels as one.
    """

    shape: tuple[int, ...]
    axis: int | None
    lines: int

    @classmethod
    def of(cls, graph: RowGraph, name: str, block: int | None) -> RowLayout:
        """Return the layout of a tensor.

        Args:
            graph: It is a tensor of.
            name: Its name.
            block: Channels in a block of the blocked layout.
        """
        shape, axis = graph.shapes[name], graph.axes.get(name)
        lines = math.prod(shape[: axis or 0])
        if name in graph.blocked and axis is not None and axis > 1:
            assert block is not None  # noqa: S101 - no tensor is blocked without
            lines //= block
        return cls(shape, axis, lines)

    def part(self, rows: Range) -> tuple[int, ...]:
        """Return the shape of some rows."""
        assert self.axis is not None  # noqa: S101 - what has rows
        return (*self.shape[: self.axis], rows.size, *self.shape[self.axis + 1 :])


class RowStore:
    """Tensors of which rows are there or not.

    Args:
        layouts: Of each tensor, by name.
    """

    def __init__(self, layouts: Mapping[str, RowLayout]) -> None:
        self._layouts = layouts
        self._whole: dict[str, Array] = {}

    def put(self, name: str, rows: Range | None, value: Array) -> None:
        """Write rows of a tensor; None for all of it."""
        layout = self._layouts[name]
        if rows is None or layout.axis is None:
            self._whole[name] = value
            return
        count = layout.shape[layout.axis]
        if name not in self._whole:
            inner = math.prod(layout.shape) // (layout.lines * count)
            self._whole[name] = np.empty((layout.lines, count, inner), value.dtype)
        target = self._whole[name]
        target[:, rows.start : rows.stop] = value.reshape(layout.lines, rows.size, -1)

    def get(self, name: str, rows: Range | None) -> Array:
        """Return rows of a tensor in one piece of memory, with its shape."""
        layout, value = self._layouts[name], self._whole[name]
        if rows is None or layout.axis is None:
            return value.reshape(layout.shape)
        count = layout.shape[layout.axis]
        lines = value.reshape(layout.lines, count, -1)
        return np.ascontiguousarray(lines[:, rows.start : rows.stop]).reshape(layout.part(rows))

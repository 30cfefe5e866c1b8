"""Rows of tensors as they come, each part where it was made or received, and joined for whoever needs others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from splitload.base.errors import StageError

if TYPE_CHECKING:
    from splitload.bundle.collaboration import RowTensor

Array = np.ndarray[Any, Any]


class RowStore:
    """Tensors of which rows are there or not.

    Args:
        tensors: What is known of each, by name.
    """

    def __init__(self, tensors: Mapping[str, RowTensor]) -> None:
        self._tensors = tensors
        self._parts: dict[str, list[tuple[int, int, Array]]] = {}

    def put(self, name: str, start: int, stop: int | None, value: Array) -> None:
        """Take rows of a tensor, which must not change any more.

        Args:
            name: Of the tensor.
            start: The first row.
            stop: Behind the last one; None for all of the tensor.
            value: The rows, of any shape with as many elements.
        """
        tensor = self._tensors[name]
        if stop is None or tensor.axis is None:
            start, stop = 0, _count(tensor)
        lines = value.reshape(tensor.lines, stop - start, -1)
        self._parts.setdefault(name, []).append((start, stop, lines))

    def get(self, name: str, start: int, stop: int | None) -> Array:
        """Return rows of a tensor in one piece of memory, with its shape; arguments as of `put`.

        Raises:
            StageError: If one is not there.
        """
        tensor = self._tensors[name]
        if stop is None or tensor.axis is None:
            start, stop = 0, _count(tensor)
        shape = tensor.shape
        if tensor.axis is not None:
            shape = (*shape[: tensor.axis], stop - start, *shape[tensor.axis + 1 :])
        parts = self._parts.get(name, [])
        for first, last, lines in parts:
            if (first, last) == (start, stop):
                return lines.reshape(shape)  # as it came, without a copy
        return self._joined(name, start, stop, parts).reshape(shape)

    def _joined(self, name: str, start: int, stop: int, parts: list[tuple[int, int, Array]]) -> Array:
        """Return rows that lie in several parts, or in one that has more."""
        joined: Array | None = None
        at = start
        for first, last, lines in sorted(parts, key=lambda part: part[0]):
            if first <= at < last:
                end = min(last, stop)
                if joined is None:
                    joined = np.empty((lines.shape[0], stop - start, lines.shape[2]), lines.dtype)
                joined[:, at - start : end - start] = lines[:, at - first : end - first]
                at = end
        if joined is None or at < stop:
            raise StageError(f"rows {at} to {stop} of '{name}' are not there; the plan is damaged")
        return joined


def _count(tensor: RowTensor) -> int:
    """Return how many rows a tensor has; 1 where it has none of which some could be apart."""
    return 1 if tensor.axis is None else tensor.shape[tensor.axis]

"""Rows of tensors as they come: each written to its place, and read again by whoever needs some."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

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
        self._whole: dict[str, Array] = {}

    def put(self, name: str, start: int, stop: int | None, value: Array) -> None:
        """Write rows of a tensor.

        Args:
            name: Of the tensor.
            start: The first row.
            stop: Behind the last one; None for all of the tensor.
            value: The rows, of any shape with as many elements.
        """
        tensor = self._tensors[name]
        if stop is None or tensor.axis is None:
            self._whole[name] = value
            return
        count = tensor.shape[tensor.axis]
        if name not in self._whole:
            inner = math.prod(tensor.shape) // (tensor.lines * count)
            self._whole[name] = np.empty((tensor.lines, count, inner), value.dtype)
        self._lines(name, count)[:, start:stop] = value.reshape(tensor.lines, stop - start, -1)

    def get(self, name: str, start: int, stop: int | None) -> Array:
        """Return rows of a tensor in one piece of memory, with its shape; arguments as of `put`."""
        tensor = self._tensors[name]
        if stop is None or tensor.axis is None:
            return self._whole[name].reshape(tensor.shape)
        shape = (*tensor.shape[: tensor.axis], stop - start, *tensor.shape[tensor.axis + 1 :])
        lines = self._lines(name, tensor.shape[tensor.axis])
        return np.ascontiguousarray(lines[:, start:stop]).reshape(shape)

    def _lines(self, name: str, count: int) -> Array:
        return self._whole[name].reshape(self._tensors[name].lines, count, -1)

"""Memory for what stages hand on: large tensors lie outside the arena of all stages, in arrays that live for one run.

A tensor that a stage has written into the arena stays there while the next stage runs, and the arena keeps the place
for ever. An array is free as soon as no stage reads it: the next tensor of the run takes it, or the system has it back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from splitload.bundle.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

LARGE_BYTES = 4 << 20  # from here on numpy has the system map an array in huge pages, which takes a tenth of the time
_ITEM_BYTES = {"tensor(float16)": 2, "tensor(float)": 4, "tensor(double)": 8}


class Boundaries:
    """The arrays of one run.

    Args:
        otherwise: Names of tensors that have other shapes than declared; what a run finds is added.
    """

    def __init__(self, otherwise: set[str] | None = None) -> None:
        self.otherwise = set[str]() if otherwise is None else otherwise
        self._lent: dict[int, tuple[Array, Array]] = {}  # what a stage writes, by its id, and the memory it is part of
        self._free: Array | None = None  # what was freed last; more would pile up where sizes differ

    def lend(self, specs: Sequence[TensorSpec], needed: Sequence[str]) -> dict[str, Any]:
        """Return an array for each output that is wanted, large, and of a size that is known.

        Args:
            specs: Outputs of a stage.
            needed: The names of those wanted.
        """
        return {
            spec.name: self._array(shape, _ITEM_BYTES[spec.type])
            for spec in specs
            if spec.name in needed and spec.name not in self.otherwise and (shape := _large_shape(spec))
        }

    def take_back(self, value: Any) -> None:
        """Let a later tensor have the memory of one that no stage reads any more, if it was lent."""
        if lent := self._lent.pop(id(value), None):
            self._free = lent[1]

    def _array(self, shape: tuple[int, ...], item_bytes: int) -> Array:
        import numpy as np

        size = math.prod(shape) * item_bytes
        memory, self._free = self._free, None
        if memory is None or not size <= memory.nbytes <= 2 * size:  # it may be an answer, which the caller keeps
            memory = np.empty(size, np.uint8)
        array = memory[:size].view(f"f{item_bytes}").reshape(shape)
        self._lent[id(array)] = array, memory
        return array


def _large_shape(spec: TensorSpec) -> tuple[int, ...] | None:
    """Return the shape of a large tensor of floats; None for another one, or where a size is open."""
    shape = tuple(size for size in spec.shape or () if isinstance(size, int))
    is_known = len(shape) == len(spec.shape or ())
    return shape if is_known and math.prod(shape) * _ITEM_BYTES.get(spec.type, 0) >= LARGE_BYTES else None

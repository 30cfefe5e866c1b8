"""Memory for what stages hand on: large tensors lie outside the arena of all stages, in arrays that live for one run.

A tensor that a stage has written into the arena stays there while the next stage runs, and the arena keeps the place
for ever. An array is free as soon as no stage reads it: a later tensor of the run takes it, and the system has it back
after the run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from splitload.manifest import TensorSpec

if TYPE_CHECKING:
    import numpy as np

LARGE_BYTES = 4 << 20  # from here on numpy has the system map an array in huge pages, which takes a tenth of the time
_ITEM_BYTES = {"tensor(float16)": 2, "tensor(float)": 4, "tensor(double)": 8}


class Boundaries:
    """The arrays of one run."""

    def __init__(self) -> None:
        self._lent: list[np.ndarray[Any, Any]] = []
        self._free: list[np.ndarray[Any, Any]] = []

    def lend(self, specs: Sequence[TensorSpec], needed: Sequence[str]) -> dict[str, Any]:
        """Return an array for each output that is wanted, large, and of a size that is known.

        Args:
            specs: Outputs of a stage.
            needed: The names of those wanted.
        """
        return {
            spec.name: self._array(tuple(map(int, spec.shape or ())), _ITEM_BYTES[spec.type])  # type: ignore[arg-type]
            for spec in specs
            if spec.name in needed and _bytes(spec) >= LARGE_BYTES
        }

    def take_back(self, value: Any) -> None:
        """Let a later tensor have the array of one that no stage reads any more, if it was lent."""
        for index, lent in enumerate(self._lent):
            if lent is value:
                self._free.append(self._lent.pop(index))
                return

    def _array(self, shape: tuple[int, ...], item_bytes: int) -> np.ndarray[Any, Any]:
        import numpy as np

        size = math.prod(shape) * item_bytes
        # no more than twice as large: it may be an answer, which the caller keeps
        fitting = [index for index, each in enumerate(self._free) if size <= each.nbytes <= 2 * size]
        memory = self._free.pop(fitting[0]).reshape(-1).view(np.uint8) if fitting else np.empty(size, np.uint8)
        array = memory[:size].view(f"f{item_bytes}").reshape(shape)
        self._lent.append(array)
        return array


def _bytes(spec: TensorSpec) -> int:
    """Return the size of a tensor of floats, or 0 where it is open or of another type."""
    sizes = [size for size in spec.shape or () if isinstance(size, int)]
    return math.prod(sizes) * _ITEM_BYTES.get(spec.type, 0) if len(sizes) == len(spec.shape or ()) else 0

"""Memory for what stages hand on: large tensors lie outside the arena of all stages, in memory that lives for one run.

A tensor that a stage has written into the arena stays there while the next stage runs, and the arena keeps the place
for ever. Such memory is free as soon as no stage reads it: the next tensor of the run takes it, or the system has it
back.
"""

from __future__ import annotations

import math

from splitload.bundle.manifest import TensorSpec
from splitload.runtime.capi.elements import ELEMENTS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

LARGE_BYTES = 4 << 20  # from here on numpy has the system map an array in huge pages, which takes a tenth of the time
_ITEM_BYTES = {element.type: element.item_bytes for element in ELEMENTS if element.kind == "f"}


class Boundaries:
    """The tensors of one run.

    Args:
        allocate: Returns memory of so many bytes.
        lent: Returns a tensor of a type and shape over the beginning of memory.
        otherwise: Names of tensors that have other shapes than declared; what a run finds is added.
    """

    def __init__(
        self,
        allocate: Callable[[int], Any],
        lent: Callable[[Any, TensorSpec, tuple[int, ...]], Any],
        otherwise: set[str] | None = None,
    ) -> None:
        self.otherwise = set[str]() if otherwise is None else otherwise
        self._allocate, self._view = allocate, lent
        self._lent: dict[int, tuple[Any, Any]] = {}  # what a stage writes, by its id, and the memory it is part of
        self._free: Any = None  # what was freed last; more would pile up where sizes differ

    def lend(self, specs: Sequence[TensorSpec], needed: Sequence[str]) -> dict[str, Any]:
        """Return a tensor for each output that is wanted, large, and of a size that is known.

        Args:
            specs: Outputs of a stage.
            needed: The names of those wanted.
        """
        return {
            spec.name: self._tensor(spec, shape)
            for spec in specs
            if spec.name in needed and spec.name not in self.otherwise and (shape := _large_shape(spec))
        }

    def take_back(self, value: Any) -> None:
        """Let a later tensor have the memory of one that no stage reads any more, if it was lent."""
        if lent := self._lent.pop(id(value), None):
            self._free = lent[1]

    def _tensor(self, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
        size = math.prod(shape) * _ITEM_BYTES[spec.type]
        memory, self._free = self._free, None
        if memory is None or not size <= len(memory) <= 2 * size:  # it may be an answer, which the caller keeps
            memory = self._allocate(size)
        tensor = self._view(memory, spec, shape)
        self._lent[id(tensor)] = tensor, memory
        return tensor


def in_arrays(otherwise: set[str] | None = None) -> Boundaries:
    """Return such memory as numpy's arrays."""
    import numpy as np

    def lent(memory: Any, spec: TensorSpec, shape: tuple[int, ...]) -> Any:
        item_bytes = _ITEM_BYTES[spec.type]
        return memory[: math.prod(shape) * item_bytes].view(f"f{item_bytes}").reshape(shape)

    return Boundaries(lambda size: np.empty(size, np.uint8), lent, otherwise)


def _large_shape(spec: TensorSpec) -> tuple[int, ...] | None:
    """Return the shape of a large tensor of floats; None for another one, or where a size is open."""
    shape = tuple(size for size in spec.shape or () if isinstance(size, int))
    is_known = len(shape) == len(spec.shape or ())
    return shape if is_known and math.prod(shape) * _ITEM_BYTES.get(spec.type, 0) >= LARGE_BYTES else None

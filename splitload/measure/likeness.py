"""Whether two ways to compute an output give alike values; numbers are compared without numpy, which may be missing."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping, Sequence
from operator import sub
from typing import Any

from splitload.runtime.capi.memory import Memory, memory_of
from splitload.runtime.capi.session import Value
from splitload.runtime.capi.tensor import bytes_of, tensor_of

# by bytes of a float: what two ways to compute the same differ by, of the largest
ROUNDING = {2: 2e-2, 4: 1e-3, 8: 1e-3}
_FLOATS = ("float16", "float32", "float64", "bfloat16")
_AT_ONCE = 1 << 16  # elements that are numbers of Python's at a time


def alike(left: Any, right: Any, rounding: Mapping[int, float] = ROUNDING) -> bool:
    """Return whether two outputs have the same type, shape and values, floats within the rounding of their type.

    Args:
        left: An output in the form of either engine.
        right: The other one.
        rounding: By bytes of a float, what two may differ by, of the largest magnitude.
    """
    one, other = _memory(left), _memory(right)
    if one is None or other is None:
        return one is other and _otherwise_alike(left, right)
    if (one.element.type, one.shape) != (other.element.type, other.shape):
        return False
    if bytes(bytes_of(one)) == bytes(bytes_of(other)):
        return True
    return one.element.name in _FLOATS and relative_error(one, other) <= rounding[one.element.item_bytes]


def relative_error(left: Memory, right: Memory) -> float:
    """Return the largest difference of floats relative to the largest finite magnitude on the right.

    It is inf where one is finite and the other is not, or both are not and differ; NaN is like NaN.
    """
    difference = magnitude = 0.0
    for start in range(0, math.prod(left.shape), _AT_ONCE):
        here, there = _numbers(left, start), _numbers(right, start)
        if not (math.isfinite(sum(here)) and math.isfinite(sum(there))):  # which it may be without one that is not
            finite = [pair for pair in zip(here, there, strict=True) if all(map(math.isfinite, pair))]
            others = [pair for pair in zip(here, there, strict=True) if not all(map(math.isfinite, pair))]
            if any(a != b and not (math.isnan(a) and math.isnan(b)) for a, b in others):
                return math.inf
            here, there = [a for a, _ in finite], [b for _, b in finite]
        difference = max(difference, max(map(abs, map(sub, here, there)), default=0.0))
        magnitude = max(magnitude, max(map(abs, there), default=0.0))
    return difference / max(magnitude, 1e-30)


def _numbers(memory: Memory, start: int) -> Sequence[float]:
    """Return the elements from one on, as numbers of Python's."""
    count = min(math.prod(memory.shape) - start, _AT_ONCE)
    address = memory.address + start * memory.element.item_bytes
    return tensor_of(Memory(address, (count,), memory.element, memory)).numbers()


def _memory(value: Any) -> Memory | None:
    """Return where the elements of a tensor of numbers lie; None for whatever else there is."""
    if isinstance(value, Value):
        return value.memory
    try:
        return memory_of(value)
    except TypeError:  # text, sequences, maps, and types of a few bits
        return None


def _otherwise_alike(left: Any, right: Any) -> bool:
    """Return whether two outputs of the Python module that are no numbers in memory are alike."""
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(alike, left, right))
    if type(left).__name__ == type(right).__name__ == "OrtValue" and left.is_tensor() and right.is_tensor():
        described = [(each.data_type(), each.shape()) for each in (left, right)]
        return described[0] == described[1] and _raw(left) == _raw(right)
    from splitload.runtime.answers import relative_error as error_of

    return error_of(left, right) <= ROUNDING[4]  # maps hold float32


def _raw(value: Any) -> bytes:
    """Return the bytes of a tensor, of 4 bits an element perhaps."""
    size = value.tensor_size_in_bytes()
    return bytes((ctypes.c_char * size).from_address(value.data_ptr())) if size else b""

"""Whether two answers of a model are the same, to the last bit or within rounding."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from splitload.runtime.inputs import InputSpec

TOLERANCE = 1e-4  # of the largest element of an output
_AT_ONCE = 1 << 18  # elements that are compared at a time

# types that numpy lacks, and what helps where an output is of one
LACKING = {
    "tensor(bfloat16)": 'ParallelLoader(…, arrays="buffers") can; for others let the model end in a Cast to float',
    "tensor(int4)": "let the model end in a Cast to int8",
    "tensor(uint4)": "let the model end in a Cast to uint8",
}


def unreturned(outputs: Iterable[InputSpec]) -> str | None:
    """Return which output onnxruntime's Python module cannot return, and what helps; None where it returns all."""
    for spec in outputs:
        if (cure := LACKING.get(spec.type)) is not None:
            return f"onnxruntime's Python module cannot return the output '{spec.name}', a {spec.type}; {cure}"
    return None


def identical(left: Any, right: Any) -> bool:
    """Return whether two outputs have the same type, shape and values, numbers to the last bit."""
    if isinstance(left, np.ndarray) and isinstance(right, np.ndarray):
        if left.dtype != right.dtype or left.shape != right.shape:
            return False
        return bool(np.array_equal(left, right)) if left.dtype.hasobject else left.tobytes() == right.tobytes()
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(identical, left, right))
    return type(left) is type(right) and bool(left == right)


def relative_error(left: Any, right: Any) -> float:
    """Return the largest difference relative to the largest finite magnitude; inf where that makes no sense."""
    if isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        return max(map(relative_error, left, right), default=0.0)
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        return relative_error(np.array([*left.values()]), np.array([right[key] for key in left]))
    if not (isinstance(left, np.ndarray) and isinstance(right, np.ndarray)) or left.dtype.kind not in "fc":
        return 0.0 if identical(left, right) else float("inf")
    if left.shape != right.shape:
        return float("inf")
    wide = np.complex128 if left.dtype.kind == "c" else np.float64
    difference = magnitude = 0.0
    flat, other = left.reshape(-1), right.reshape(-1)
    for start in range(0, flat.size, _AT_ONCE):  # doubles of all of a large output would be several times its size
        here, there = flat[start : start + _AT_ONCE].astype(wide), other[start : start + _AT_ONCE].astype(wide)
        finite = np.isfinite(there)
        if not np.array_equal(np.isfinite(here), finite):
            return float("inf")
        if not np.array_equal(here[~finite], there[~finite], equal_nan=True):
            return float("inf")
        difference = max(difference, float(np.abs(here[finite] - there[finite]).max(initial=0.0)))
        magnitude = max(magnitude, float(np.abs(there[finite]).max(initial=0.0)))
    return difference / max(magnitude, 1e-30)

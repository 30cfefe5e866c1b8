"""Types, shapes and numbers that tests of tensors go through."""

from __future__ import annotations

from typing import Any

import numpy as np

from splitload.runtime.capi.elements import ELEMENTS

NUMPY = [element for element in ELEMENTS if element.kind != "V"]
SHAPES: tuple[tuple[int, ...], ...] = ((), (3,), (2, 3), (0, 3), (2, 0), (1,) * 12)


def numbers(dtype: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return zeros and ones in turns."""
    return (np.arange(int(np.prod(shape))) % 2).astype(dtype).reshape(shape)

"""The worker: whether two outputs of a stage are alike, numbers within rounding and everything else to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from splitload.measure.stages import _alike, _same

ONE = np.ones(3, np.float32)
TEXTS = np.array(["a", "b"], object)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (ONE, ONE * np.float32(1 + 5e-4)),
        (ONE.astype("f2"), (ONE * 1.01).astype("f2")),
        (np.array([np.nan, np.inf]), np.array([np.nan, np.inf])),
        (np.array([1, 2]), np.array([1, 2])),
        (TEXTS, TEXTS.copy()),
        ([ONE, ONE[:2]], [ONE.copy(), ONE[:2]]),
        ([{"a": 0.5}], [{"a": 0.5 + 1e-5}]),
        (None, None),
    ],
)
def test_alike(left: Any, right: Any) -> None:
    assert _alike(left, right)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (ONE, ONE * np.float32(1.01)),
        (ONE, ONE.astype(np.float64)),
        (ONE, ONE.astype(np.int64)),
        (ONE.astype(np.int32), ONE.astype(np.int64)),
        (ONE, ONE.reshape(1, 3)),
        (ONE, np.ones(4, np.float32)),
        (np.array([np.nan, 1.0]), np.array([0.0, 1.0])),
        (np.array([np.inf]), np.array([-np.inf])),
        (np.array([1, 2]), np.array([1, 3])),
        (np.array([True]), np.array([False])),
        (TEXTS, TEXTS[::-1]),
        (TEXTS, TEXTS.astype(str)),
        ([ONE], [ONE, ONE]),
        ([TEXTS], [TEXTS[::-1]]),
        ([{"a": 0.5}], [{"b": 0.5}]),
        ([{"a": 0.5}], [{"a": 0.6}]),
        (ONE, [ONE]),
        (None, ONE),
    ],
)
def test_not_alike(left: Any, right: Any) -> None:
    assert not _alike(left, right)
    assert not _alike(right, left)


def bfloat16(*values: float) -> ort.OrtValue:
    bits = (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, 16)


def test_types_that_numpy_lacks_are_compared() -> None:
    assert _same(ort, bfloat16(1.0, 300.0, np.inf), bfloat16(1.5, 302.0, np.inf))
    assert _same(ort, bfloat16(), bfloat16())
    assert not _same(ort, bfloat16(1.0, 300.0), bfloat16(1.0, 330.0))
    assert not _same(ort, bfloat16(1.0), bfloat16(np.nan))
    assert not _same(ort, bfloat16(1.0), bfloat16(1.0, 1.0))
    assert _same(ort, *[ort.OrtValue.ortvalue_from_numpy(ONE)] * 2)

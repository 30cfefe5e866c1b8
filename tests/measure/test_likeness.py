"""Whether two outputs are alike: numbers within rounding and everything else to the last bit, without numpy or with."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from splitload.measure import likeness
from splitload.measure.likeness import alike
from splitload.runtime.answers import relative_error
from splitload.runtime.capi.elements import BY_TYPE
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.tensor import Tensor, tensor_over

ONE = np.ones(3, np.float32)
TEXTS = np.array(["a", "b"], object)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (ONE, ONE * np.float32(1 + 5e-4)),
        (ONE.astype("f2"), (ONE * 1.01).astype("f2")),
        (np.array([np.nan, np.inf, 1]), np.array([-np.nan, np.inf, 1 + 1e-9])),
        (np.array([1e308, 1e308]), np.array([1e308, 1.0001e308])),  # their sum is not finite
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)),
        (np.array([1, 2]), np.array([1, 2])),
        (TEXTS, TEXTS.copy()),
        ([ONE, ONE[:2]], [ONE.copy(), ONE[:2]]),
        ([{"a": 0.5}], [{"a": 0.5 + 1e-5}]),
        (None, None),
    ],
)
def test_alike(left: Any, right: Any) -> None:
    assert alike(left, right)
    assert alike(right, left)


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
        (np.array([np.inf, 0]), np.array([-np.inf, 0])),
        (np.array([np.inf]), np.array([1e308])),
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
    assert not alike(left, right)
    assert not alike(right, left)


def bits(*values: float) -> Any:
    return (np.array(values, np.float32).view(np.uint32) >> 16).astype(np.uint16)


def bfloat16(*values: float) -> Any:
    return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(bits(*values), 16)


def in_library(*values: float) -> Tensor:
    return tensor_over(bytearray(bits(*values).tobytes()), BY_TYPE["tensor(bfloat16)"], (len(values),))


@pytest.mark.parametrize("make", [bfloat16, in_library])
def test_types_that_numpy_lacks_are_compared(make: Any) -> None:
    assert alike(make(1.0, 300.0, np.inf), make(1.5, 302.0, np.inf))
    assert alike(make(), make())
    assert not alike(make(1.0, 300.0), make(1.0, 330.0))
    assert not alike(make(1.0), make(np.nan))
    assert not alike(make(1.0), make(1.0, 1.0))
    assert alike(*[ort.OrtValue.ortvalue_from_numpy(ONE)] * 2)


def test_types_of_four_bits_are_compared_to_the_last_one() -> None:
    one, same, other = (ort.OrtValue.ortvalue_from_shape_and_type([3], 22) for _ in range(3))  # of ONNX's INT4
    for value, raw in ((one, 1), (same, 1), (other, 2)):
        likeness.ctypes.memset(value.data_ptr(), raw, 2)
    assert alike(one, same)
    assert not alike(one, other)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_the_error_is_that_of_numpy(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(likeness, "_AT_ONCE", 64)
    rng = np.random.default_rng(0)
    left = rng.normal(size=(5, 40)).astype(kind)
    right = (left * (1 + 1e-2 * rng.normal(size=left.shape))).astype(kind)
    for special in ([], [np.nan], [np.inf, -np.inf]):
        left[2, : len(special)] = right[2, : len(special)] = special
        assert likeness.relative_error(memory_of(left), memory_of(right)) == relative_error(left, right) > 0

"""Where the elements of what a caller gives lie, whatever says it, and what reads tensors back."""

from __future__ import annotations

import array
import ctypes
import gc
import struct
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import onnxruntime as ort
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tensor_cases import NUMPY, SHAPES, numbers

from splitload.runtime.capi.elements import BY_TYPE, of_format
from splitload.runtime.capi.memory import DLTensor, UnknownKindError, capsule_pointer, memory_of
from splitload.runtime.capi.tensor import Tensor, in_form, tensor_of

BOOL_IN_DLPACK = np.lib.NumpyVersion(np.__version__) >= "1.25.0"  # older ones read none


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("element", NUMPY, ids=lambda element: element.name)
def test_arrays_go_in_and_come_out_without_a_copy(element: Any, shape: tuple[int, ...]) -> None:
    values = numbers(element.name, shape)
    memory = memory_of(values)
    assert (memory.address, memory.shape, memory.element) == (values.ctypes.data, shape, element)
    tensor = tensor_of(memory)
    assert isinstance(tensor, Tensor)
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == (shape, element.name, values.nbytes)
    ways = [np.asarray, np.from_dlpack] if element.name != "bool" or BOOL_IN_DLPACK else [np.asarray]
    for back in (way(tensor) for way in ways):  # type: ignore[operator]
        assert (back.ctypes.data, back.dtype, back.shape) == (values.ctypes.data, values.dtype, shape)
    assert tensor.tolist() == values.tolist()
    assert tensor.tobytes() == values.tobytes()
    assert memory_of(tensor) is memory
    assert in_form(tensor, "buffers").shape == shape
    copy = in_form(tensor, "numpy")
    assert np.array_equal(copy, values)
    assert copy.dtype == values.dtype
    assert not np.shares_memory(copy, values)


def test_bfloat16_comes_from_its_array_and_goes_to_torch() -> None:
    values = np.array([[1.0, -2.5]], ml_dtypes.bfloat16)
    tensor = tensor_of(memory_of(values))
    assert (tensor.dtype, tensor.tolist()) == ("bfloat16", [[1.0, -2.5]])
    assert torch.equal(torch.from_dlpack(tensor), torch.tensor([[1.0, -2.5]], dtype=torch.bfloat16))
    assert memory_of(torch.ones(2, dtype=torch.bfloat16)).element.name == "bfloat16"
    with pytest.raises(RuntimeError, match="numpy has no type for bfloat16"):
        in_form(tensor, "numpy")


def test_what_is_not_in_order_is_copied_or_told_of() -> None:
    wide = np.arange(12, dtype=np.float32).reshape(2, 6)
    for given_ in (wide[:, ::2], wide.T, wide[::-1], wide.astype(">f4"), wide.T.astype(">f8")):
        assert np.array_equal(np.asarray(tensor_of(memory_of(given_))), given_)
    with pytest.raises(TypeError, match=r"not in C order; give a copy that is, such as \.contiguous"):
        memory_of(torch.ones(2, 3).t())


def test_all_that_has_a_buffer_or_an_interface_is_read() -> None:
    class Interface:
        def __init__(self, values: Any) -> None:
            self.values = values
            self.__array_interface__ = values.__array_interface__

    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    frozen = values.copy()
    frozen.setflags(write=False)
    raw = bytearray(values.tobytes())
    kinds = [
        frozen,
        memoryview(raw).cast("f", (2, 3)),
        memoryview(bytes(raw)).cast("B").cast("f", (2, 3)),
        (ctypes.c_float * 3 * 2).from_buffer(raw),
        Interface(values),
        torch.from_numpy(values),
        ort.OrtValue.ortvalue_from_numpy(values),
    ]
    for each in kinds:
        memory = memory_of(each)
        assert (memory.shape, memory.element.name) == ((2, 3), "float32")
        assert np.array_equal(np.asarray(tensor_of(memory)), values)
    assert memory_of(array.array("l", [1, 2])).element.name == "int64"
    assert memory_of(b"ab").element.name == "uint8"


@pytest.mark.parametrize("given_", ["a", 3, None, {}, [1], np.float32(3), object()])
def test_what_has_no_elements_is_of_an_unknown_kind(given_: Any) -> None:
    with pytest.raises(UnknownKindError, match="Unable to handle object of type"):
        memory_of(given_)


class Backwards:
    """An interface of an array in another order, as of a library that has no buffers."""

    def __init__(self, **changes: Any) -> None:
        values = np.ones((2, 3), np.float32)
        self.values = values
        self.__array_interface__ = {**values.__array_interface__, **changes}


class Strange:
    """What answers to every name, with itself."""

    def __getattr__(self, name: str) -> Any:
        return self


class Raising:
    """What has an interface that raises."""

    @property
    def __array_interface__(self) -> Any:
        raise RuntimeError("not today")


BAD: list[Any] = [
    np.array(["a"]),
    np.array([None]),
    np.zeros(2, "c8"),
    np.zeros(2, "M8[s]"),
    np.zeros(2, [("a", "f4")]),
    torch.ones(2, dtype=torch.complex64),
    Backwards(strides=(4, 8)),
    Backwards(typestr=">f4"),
    Backwards(typestr="<f"),
    Backwards(data=None),
    Backwards(data=()),
    Backwards(data=(0, False)),
    Backwards(data=("0x10", False)),
    Backwards(data=(-8, False)),
    Backwards(data=(1 << 64, False)),
    Backwards(data=((1 << 64) - 8, False)),
    Backwards(shape=None),
    Backwards(shape=(2.0, 3)),
    Backwards(shape=(-2, -3)),
    Backwards(shape=(-1,)),
    Backwards(shape=((1 << 64) + 3,)),
    Backwards(shape=(1 << 62, 4)),
    Backwards(shape=(0, 1 << 64)),
    Backwards(strides=(4,)),
    Backwards(strides=3),
    Backwards(typestr=b"<f4"),
    Backwards(typestr=None),
    Backwards(typestr="<f4444444444"),
    Backwards(mask=np.ones(2, bool)),
    Strange(),
    Raising(),
    torch.ones(2, requires_grad=True),
    torch.ones(2).to_sparse(),
    torch.ones(2, device="meta"),
    ort.OrtValue.ortvalue_from_numpy_with_onnx_type(np.zeros(2, np.uint8), 17),
]


@pytest.mark.parametrize("given_", BAD, ids=range(len(BAD)))
def test_elements_that_cannot_be_read_are_a_type_error(given_: Any) -> None:
    with pytest.raises(TypeError) as caught:
        memory_of(given_)
    assert not isinstance(caught.value, UnknownKindError)


class Packed:
    """DLPack as another library has it, with some of its fields changed."""

    def __init__(self, **changes: Any) -> None:
        self.capsule = np.ones((2, 3), np.float32).__dlpack__()
        for name, value in changes.items():
            setattr(DLTensor.from_address(capsule_pointer(self.capsule, b"dltensor")), name, value)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __dlpack__(self) -> Any:
        return self.capsule


@pytest.mark.parametrize(
    "changes",
    [
        {"ndim": -1},
        {"ndim": 65},
        {"data": None},
        {"shape": None},
        {"device_type": 2},
        {"lanes": 2},
        {"bits": 4},
        {"byte_offset": (1 << 64) - 1},
        {"shape": (ctypes.c_int64 * 2)(-1, 3)},
        {"shape": (ctypes.c_int64 * 2)(1 << 62, 4)},
    ],
)
def test_dlpack_that_says_what_cannot_be_is_a_type_error(changes: dict[str, Any]) -> None:
    assert memory_of(Packed()).shape == (2, 3)
    with pytest.raises(TypeError):
        memory_of(Packed(**changes))


def test_a_sign_that_is_not_in_memory_is_a_type_error() -> None:
    class Negated(Packed):
        def is_neg(self) -> bool:
            return True

    with pytest.raises(TypeError, match=r"resolve_neg\(\)"):
        memory_of(Negated())


def test_dlpack_on_another_device_is_a_type_error() -> None:
    class Elsewhere:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

        def __dlpack__(self) -> Any:
            raise AssertionError("it is not asked for")

    with pytest.raises(TypeError, match="lies on device 2 of DLPack's; copy it to the processor's memory"):
        memory_of(Elsewhere())


class Watched(array.array):  # type: ignore[type-arg]
    """Memory whose end is seen."""


def watched() -> tuple[Tensor, weakref.ref[Watched]]:
    """Return a tensor of two ones of bfloat16, and its memory."""
    memory = Watched("H", [0x3F80, 0x3F80])
    return tensor_of(memory_of(memory)._replace(element=BY_TYPE["tensor(bfloat16)"])), weakref.ref(memory)


def test_what_dlpack_has_lent_is_given_back_whoever_takes_it() -> None:
    tensor, memory = watched()
    taken, unused = torch.from_dlpack(tensor), tensor.__dlpack__()
    del tensor
    gc.collect()
    assert taken.sum() == 2
    del taken
    gc.collect()
    assert memory() is not None
    del unused
    gc.collect()
    assert memory() is None


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (np.from_dlpack, RuntimeError),  # numpy has no bfloat16, and lets go of the capsule while it raises
        (lambda tensor: torch.add(torch.from_dlpack(tensor), "x"), TypeError),
        (lambda tensor: len(torch.from_dlpack(tensor), 1), TypeError),
        (lambda tensor: len(tensor.__dlpack__(), 1), TypeError),
    ],
)
def test_an_error_that_ends_what_dlpack_has_lent_stays_the_error(
    fail: Any, error: type[Exception], capfd: pytest.CaptureFixture[str]
) -> None:
    tensor, memory = watched()
    with pytest.raises(error):
        fail(tensor)
    assert capfd.readouterr().err == ""
    del tensor
    gc.collect()
    assert memory() is None


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([element.name for element in NUMPY]),
    st.lists(st.integers(0, 3), max_size=20).map(tuple),
    st.booleans(),
    st.booleans(),
    st.data(),
)
def test_any_array_is_read_as_what_it_is(
    dtype: str, shape: tuple[int, ...], swapped: bool, frozen: bool, data: st.DataObject
) -> None:
    if np.prod([size or 1 for size in shape]) > 1 << 16:
        return
    values = numbers(dtype, shape)
    if swapped:
        values = values.astype(values.dtype.newbyteorder())
    if shape:
        steps = data.draw(st.lists(st.sampled_from([1, 2, -1]), min_size=len(shape), max_size=len(shape)))
        values = values[tuple(slice(None, None, step) for step in steps)]
        values = values.transpose(data.draw(st.permutations(range(len(shape)))))
    values.setflags(write=not frozen)
    read = tensor_of(memory_of(values))
    assert read.shape == values.shape
    assert read.tolist() == values.tolist()


@settings(max_examples=300, deadline=None)
@given(st.text("@=<>!?bBhHiIlLqQnNefdgcxspPZ0123456789T{}", max_size=4), st.integers(0, 16))
def test_a_format_means_a_type_of_its_size_or_none(code: str, item_bytes: int) -> None:
    element = of_format(code, item_bytes)
    if element is not None:
        assert element.item_bytes == item_bytes
        assert struct.calcsize(element.format) == item_bytes

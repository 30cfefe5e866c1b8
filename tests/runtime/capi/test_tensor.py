"""The tensor that a loader returns without numpy: its buffer, its array interface, DLPack, copies and pickles."""

from __future__ import annotations

import copy
import gc
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from tensor_cases import NUMPY, SHAPES, numbers

from splitload.runtime.capi.elements import ELEMENTS, Element, of_format
from splitload.runtime.capi.memory import DLTensor, Memory, capsule_pointer, memory_of
from splitload.runtime.capi.tensor import Tensor, empty_view, tensor_of


@pytest.mark.parametrize("element", NUMPY, ids=lambda element: element.name)
def test_a_tensor_has_the_buffer_of_its_type(element: Any) -> None:
    values = numbers(element.name, (2, 3))
    tensor = tensor_of(memory_of(values))
    if element.name == "float16" and sys.version_info < (3, 12):
        with pytest.raises(TypeError):
            memoryview(tensor)  # type: ignore[arg-type]
        return
    view = memoryview(tensor)  # type: ignore[arg-type]
    assert (view.shape, view.itemsize, view.tobytes()) == ((2, 3), element.item_bytes, values.tobytes())
    assert of_format(view.format, view.itemsize) == element
    assert (view.format, view.tolist(), view[1, 2]) == (element.format, values.tolist(), values[1, 2])
    view[0, 0] = 1
    assert values[0, 0] == 1
    del tensor
    gc.collect()
    assert view.tolist() == values.tolist()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_view_of_a_tensor_is_indexed_whatever_its_shape(shape: tuple[int, ...]) -> None:
    values = numbers("float32", shape)
    view = memoryview(tensor_of(memory_of(values)))  # type: ignore[arg-type]
    assert (view.shape, view.format, view.readonly, view.tolist()) == (shape, "f", False, values.tolist())
    if 0 in shape:  # as Python 3.12 makes them
        view = empty_view("f", shape)
        assert (view.shape, view.format, view.nbytes, view.tolist()) == (shape, "f", 0, values.tolist())


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_a_tensor_is_copied_and_pickled(element: Any) -> None:
    for shape in SHAPES:
        raw = np.ones(shape, f"u{element.item_bytes}")
        tensor = tensor_of(memory_of(raw)._replace(element=element))
        for made in (copy.copy(tensor), copy.deepcopy([tensor, tensor])[0], pickle.loads(pickle.dumps(tensor))):  # noqa: S301
            assert (made.shape, made.dtype, made.tobytes()) == (shape, element.name, raw.tobytes())
            assert made._memory.address != tensor._memory.address
            assert isinstance(made, Tensor)


def test_a_tensor_shows_what_it_is_and_nothing_of_ctypes() -> None:
    for shape in ((2, 3), ()):
        tensor = tensor_of(memory_of(np.ones(shape, np.float32)))
        assert repr(tensor) == str(tensor) == f"Tensor(shape={shape}, dtype='float32')"
        shown = {name for name in dir(tensor) if not name.startswith("__")}
        assert shown == {"dtype", "nbytes", "numbers", "shape", "tobytes", "tolist"}


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_dlpack_keeps_the_type_and_does_what_is_wished(element: Element) -> None:
    tensor = tensor_of(memory_of(np.ones((2, 3), f"u{element.item_bytes}"))._replace(element=element))
    taken = memory_of(torch.from_dlpack(tensor))
    assert (taken.element, taken.shape, taken.address) == (element, (2, 3), tensor._memory.address)
    if np.lib.NumpyVersion(np.__version__) >= "2.1.0":
        copied = DLTensor.from_address(capsule_pointer(tensor.__dlpack__(copy=True), b"dltensor"))
        assert copied.data != tensor._memory.address
        with pytest.raises((ValueError, BufferError)):
            tensor.__dlpack__(dl_device=(2, 0))


def test_dlpack_without_numpy_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = tensor_of(memory_of(np.ones(2, np.float32)))
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(BufferError, match="DLPack needs numpy: 'pip install numpy'"):
        tensor.__dlpack__()


def test_a_tensor_keeps_its_memory() -> None:
    tensor = tensor_of(memory_of(np.full(1000, 7.0)))
    array_ = np.asarray(tensor)
    view = memoryview(tensor)  # type: ignore[arg-type]
    del tensor
    gc.collect()
    junk = [np.zeros(1000) for _ in range(100)]
    assert (array_ == 7).all()
    assert view.tobytes() == np.full(1000, 7.0).tobytes()
    assert len(junk) == 100


@pytest.mark.parametrize("element", NUMPY, ids=lambda element: element.name)
def test_a_tensor_without_memory_is_an_array_without_elements(element: Element) -> None:
    tensor = tensor_of(Memory(0, (2, 0), element, None))
    made = np.asarray(tensor)
    assert (made.shape, made.dtype.name) == ((2, 0), element.name)

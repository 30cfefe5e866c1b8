"""Tensors without numpy: read from .npy files and written as numpy does it, and made up as numpy makes them up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitload.base.errors import ModelError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.runtime.capi.elements import ELEMENTS
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.tensor import Tensor, tensor_of
from splitload.runtime.inputs import example_inputs, read_feeds
from splitload.runtime.light_inputs import read_npy, write_npy

NUMPY = [element.name for element in ELEMENTS if element.kind != "V"]


def saved(path: Path, array: Any, version: tuple[int, int] | None = None) -> Path:
    with path.open("wb") as stream:
        np.lib.format.write_array(stream, array, version, allow_pickle=True)
    return path


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3), (1,) * 12], ids=str)
@pytest.mark.parametrize("name", NUMPY)
def test_arrays_of_numbers_are_read(
    tmp_path: Path, name: str, shape: tuple[int, ...], version: tuple[int, int]
) -> None:
    array = (np.arange(int(np.prod(shape))) % 2).astype(name).reshape(shape)
    with saved(tmp_path / "x.npy", array, version).open("rb") as stream:
        tensor = read_npy(stream)
    assert isinstance(tensor, Tensor)
    assert (tensor.shape, tensor.dtype) == (shape, name)
    assert np.array_equal(np.asarray(tensor), array)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 3)], ids=str)
@pytest.mark.parametrize("name", NUMPY)
def test_tensors_are_written_as_numpy_reads_them(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    array = (np.arange(int(np.prod(shape))) % 2).astype(name).reshape(shape)
    write_npy(str(tmp_path / "x.npy"), tensor_of(memory_of(array)))
    read = np.load(tmp_path / "x.npy", allow_pickle=False)
    assert (read.dtype, read.shape) == (array.dtype, shape)
    assert np.array_equal(read, array)


OTHERS: dict[str, Any] = {
    "of text": np.array(["a", "b"]),
    "in another order of bytes": np.arange(6, dtype=">f4"),
    "in another order of axes": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "of complex numbers": np.ones(3, np.complex64),
    "of fields": np.zeros(2, [("a", "f4")]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_numpy_reads_the_others(tmp_path: Path, name: str) -> None:
    file = saved(tmp_path / "x.npy", OTHERS[name])
    with file.open("rb") as stream:
        assert read_npy(stream) is None
    read = read_feeds([f"x={file}"], "buffers")["x"]
    assert np.array_equal(read, OTHERS[name])


def header(text: str, data: bytes = bytes(64)) -> bytes:
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode() + data


DAMAGED = [
    b"", b"\x93NUMPY", b"\x93NUMPY\x09\x00\x10\x00", b"PK\x03\x04" + bytes(40), header(""), header("["), header("[1]"),
    header("{'descr': '<f4'}"), header("{'descr': '<f4', 'fortran_order': False, 'shape': (1 << 62,)}"),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000, 1000)}"),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}"),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (True,)}"),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': 3}"),
    header("{'descr': '<f4', 'fortran_order': 0, 'shape': (3,)}"),
    header("{'descr': 7, 'fortran_order': False, 'shape': (3,)}"),
    header("{'descr': '<f4', 'fortran_order': False, 'shape': (3,), 'more': 1}"),
    header("(" * 9000), header(" " * 20000),
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_what_is_damaged_is_left_to_numpy(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.npy"
    file.write_bytes(content)
    with file.open("rb") as stream:
        assert read_npy(stream) is None
    try:
        with file.open("rb") as stream:  # a file, which old ones read otherwise than what lies in memory
            expected = np.load(stream, allow_pickle=False)
    except Exception:
        with pytest.raises(UsageError, match=r"cannot read '.*' as a \.npy array"):
            read_feeds([f"x={file}"], "buffers")
    else:
        assert np.array_equal(read_feeds([f"x={file}"], "buffers")["x"], expected)


@pytest.mark.parametrize("element", ELEMENTS, ids=lambda element: element.name)
def test_tensors_are_made_up_as_arrays_are(element: Any) -> None:
    spec = TensorSpec("x", element.type, ("n", 3, 1000))
    tensor = example_inputs([spec], arrays="buffers")["x"]
    assert (tensor.shape, tensor.dtype) == ((1, 3, 1000), element.name)
    numbers = np.array(tensor.tolist(), np.float64)
    if element.kind == "f":
        assert abs(numbers.mean()) < 0.1
        assert 0.9 < numbers.std() < 1.1
        other = example_inputs([spec], seed=1, arrays="buffers")["x"]
        assert tensor.tobytes() == example_inputs([spec], arrays="buffers")["x"].tobytes() != other.tobytes()
    else:
        assert (numbers == 1).all()


def test_what_cannot_be_made_up_is_told_of() -> None:
    for kind in ("tensor(string)", "seq(tensor(float))"):
        with pytest.raises(ModelError, match="no example of that type can be made up"):
            example_inputs([TensorSpec("x", kind, (2,))], arrays="buffers")
    for size in (10**15, 10**30):
        with pytest.raises(ModelError, match=r"no example of input 'x' of shape .* fits in memory"):
            example_inputs([TensorSpec("x", "tensor(float)", (size, 256))], arrays="buffers")
    given = {"x": np.ones(2)}
    assert example_inputs([TensorSpec("x", "tensor(float)", (2,))], given, arrays="buffers") == given
    with pytest.raises(UsageError, match=r"the model has no input \['x'\]"):
        example_inputs([TensorSpec("z", "tensor(float)", (2,))], given, arrays="buffers")

"""Tensors on their way: every type comes back as it was, damage is refused, and compressing is chosen where it pays."""

from __future__ import annotations

import random
import struct

import pytest

from splitload.base.errors import StageError
from splitload.crowd.codec import EdgeCodec, decoded, encoded, opened, parcel
from splitload.runtime.capi.elements import BY_TYPE, ELEMENTS
from splitload.runtime.capi.memory import Memory
from splitload.runtime.capi.tensor import bytes_of, tensor_over
from splitload.runtime.light_inputs import made_up_tensor


def tensor(type_: str = "tensor(float)", shape: tuple[int, ...] = (3, 5)) -> Memory:
    return made_up_tensor(BY_TYPE[type_], shape)._memory


def zeros(count: int = 1 << 16) -> Memory:
    return tensor_over(bytearray(4 * count), BY_TYPE["tensor(float)"], (count,))._memory


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("type_", [element.type for element in ELEMENTS])
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3, 5)], ids=str)
def test_every_type_and_shape_comes_back(type_: str, shape: tuple[int, ...], compress: bool) -> None:
    given = tensor(type_, shape)
    back = decoded(encoded(given, compress=compress).data)
    assert (back.element, back.shape) == (given.element, given.shape)
    assert given.nbytes == 0 or bytes(bytes_of(back)) == bytes(bytes_of(given))


def test_what_grows_smaller_is_compressed_and_counted() -> None:
    packed, plain = encoded(zeros(), compress=True), encoded(zeros(), compress=False)
    assert len(packed.data) < 2000 < len(plain.data) == len(packed.data) + packed.saved_bytes
    assert plain.saved_bytes == 0
    noise = tensor_over(bytearray(random.Random(0).randbytes(4096)), BY_TYPE["tensor(uint8)"], (4096,))._memory  # noqa: S311
    assert len(encoded(noise, compress=True).data) == len(encoded(noise, compress=False).data)


def test_elements_are_aligned_wherever_they_came_to_lie() -> None:
    for shift in range(1, 5):
        data = bytes(shift) + encoded(tensor(), compress=False).data
        assert decoded(memoryview(data)[shift:]).address % 16 == 0


def test_a_parcel_holds_tensors_by_name() -> None:
    tensors = {name: encoded(tensor(shape=(size,)), compress=False).data for name, size in {"a/ü": 3, "b": 0}.items()}
    back = opened(parcel(tensors))
    assert {name: bytes(data) for name, data in back.items()} == tensors
    assert opened(parcel(back)) == tensors
    assert opened(parcel({})) == {}


def changed(data: bytes, place: int, piece: bytes) -> bytes:
    return data[:place] + piece + data[place + len(piece) :]


PLAIN, PACKED = encoded(tensor(), compress=False).data, encoded(zeros(), compress=True).data


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PLAIN[:20],
        PLAIN[:-1],
        PLAIN + b"x",
        changed(PLAIN, 0, b"slt2"),
        changed(PLAIN, 4, b"\x08"),  # a text
        changed(PLAIN, 5, b"\x02"),  # an unknown codec
        changed(PLAIN, 6, b"\xff"),  # more sizes than there are
        changed(PLAIN, 24, struct.pack("<Q", 1 << 62)),  # a size that no memory holds
        changed(PLAIN, 8, struct.pack("<Q", 1 << 40)),  # more than a tensor may have
        changed(PACKED, 40, b"\x00\x00\x00"),
        PACKED[:-4],
    ],
)
def test_a_damaged_tensor_is_refused(data: bytes) -> None:
    with pytest.raises(StageError, match="damaged"):
        decoded(data)


@pytest.mark.parametrize("cut", [2, 10, 17, -1])
def test_a_damaged_parcel_is_refused(cut: int) -> None:
    with pytest.raises(StageError, match="damaged"):
        opened(parcel({"a": PLAIN})[:cut])
    with pytest.raises(StageError, match="damaged"):
        opened(parcel({"a": PLAIN}) + b"x")


def test_no_more_is_unpacked_than_the_header_says() -> None:
    bomb = changed(PACKED, 8, struct.pack("<Q", 4096))
    bomb = changed(bomb, 24, struct.pack("<Q", 1024))
    with pytest.raises(StageError, match="another size"):
        decoded(bomb)


class Clock:
    """Moves by some seconds each time it is read."""

    def __init__(self, tick_s: float) -> None:
        self.now_s, self._tick_s = 0.0, tick_s

    def __call__(self) -> float:
        self.now_s += self._tick_s
        return self.now_s


def test_compressing_pays_on_a_slow_link_alone() -> None:
    codec = EdgeCodec(Clock(0.001))  # a sample of 64 KiB a millisecond, both ways
    assert not codec.pays(zeros(), None)
    assert codec.pays(zeros(), 5e6)
    assert not codec.pays(zeros(), 1e9)
    assert codec.ratio is not None and codec.ratio < 0.01
    assert codec.codec_s_per_byte == pytest.approx(0.001 / 65536)


def test_compressing_never_pays_for_what_stays_as_large() -> None:
    noise = tensor_over(bytearray(random.Random(0).randbytes(1 << 16)), BY_TYPE["tensor(uint8)"], (1 << 16,))._memory  # noqa: S311
    assert not EdgeCodec(Clock(1e-9)).pays(noise, 1000.0)

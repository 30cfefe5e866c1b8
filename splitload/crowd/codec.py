"""Tensors on their way between devices: type, shape and bytes in C order, compressed where that is faster.

A tensor is a header, its sizes and its body; a parcel is several, by name: what a task gives, and whatever later stages
still read. All numbers are little-endian, and so are elements.

- header: the sign "slt1", the number of the type (ONNXTensorElementDataType), 0 for a plain body or 1 for zlib, the
  number of sizes, one byte of nothing, and the bytes of the elements and of the body, 8 each;
- a size: 8 bytes; the last one changes fastest;
- parcel: the number of tensors in 4 bytes; for each the bytes of its name in 4 and of itself in 8, then both.
"""

from __future__ import annotations

import math
import struct
import sys
import time
import zlib
from collections.abc import Callable, Mapping

from splitload.base.errors import StageError
from splitload.base.record import Record
from splitload.runtime.capi.elements import BY_NUMBER
from splitload.runtime.capi.memory import Memory, address_of
from splitload.runtime.capi.tensor import bytes_of

Buffer = bytes | memoryview

MAX_TENSOR_BYTES = 1 << 32
_MAX_TENSORS, _MAX_NAME_BYTES, _MAX_SIZES = 4096, 4096, 32
_SIGN = b"slt1"
_HEADER = struct.Struct("<4sBBBxQQ")
_COUNT, _LENGTHS = struct.Struct("<I"), struct.Struct("<IQ")
_PLAIN, _ZLIB = 0, 1
_ALIGNED_BYTES = 16  # as the system aligns what it allocates
_LEVEL = 1  # of zlib: the others take several times as long for a few percent
_SAMPLE_BYTES = 1 << 16  # of a tensor, which tells how much smaller it becomes
_MEASURE_EVERY = 32  # tensors of an edge; what they hold changes slowly


class Encoded(Record):
    """A tensor that may travel; nothing of it is copied before it is put into a parcel.

    Attributes:
        head: Header and sizes.
        body: Its elements, or what they are compressed to.
        memory: What keeps them.
        saved_bytes: How much less the body takes than the elements.
    """

    head: bytes
    body: Buffer
    memory: Memory
    saved_bytes: int

    @property
    def data(self) -> bytes:
        """All of it in one piece."""
        return b"".join((self.head, self.body))


def encoded(memory: Memory, *, compress: bool) -> Encoded:
    """Return a tensor in the form that travels.

    Args:
        memory: Its elements, in C order.
        compress: Whether to try zlib; the body stays plain where that makes it no smaller.
    """
    if sys.byteorder != "little":
        raise StageError("tensors travel in little-endian order, which this processor does not have")
    plain = memoryview(bytes_of(memory)).cast("B") if memory.nbytes else memoryview(b"")
    body: Buffer = plain
    if compress and len(packed := zlib.compress(plain, _LEVEL)) < len(plain):
        body = packed
    header = _HEADER.pack(
        _SIGN, memory.element.number, _PLAIN if body is plain else _ZLIB, len(memory.shape), len(plain), len(body)
    )
    sizes = struct.pack(f"<{len(memory.shape)}Q", *memory.shape)
    return Encoded(header + sizes, body, memory, len(plain) - len(body))


def decoded(data: Buffer) -> Memory:
    """Return the elements of a tensor that has travelled; a plain one is copied only where it lies unaligned.

    Raises:
        StageError: If it is damaged, or larger than `MAX_TENSOR_BYTES`.
    """
    view = memoryview(data).cast("B")
    element_number, codec, num_sizes, plain_bytes, body_bytes = _header(view)
    element = BY_NUMBER.get(element_number)
    start = _HEADER.size + 8 * num_sizes
    if element is None or codec not in (_PLAIN, _ZLIB) or len(view) != start + body_bytes:
        raise _damaged("its header does not fit")
    shape = struct.unpack_from(f"<{num_sizes}Q", view, _HEADER.size)
    if math.prod(shape) * element.item_bytes != plain_bytes or (codec == _PLAIN and body_bytes != plain_bytes):
        raise _damaged("its sizes do not fit its bytes")
    packed = view[start:]
    body: Buffer = packed
    if codec == _ZLIB:
        body = _unpacked(packed, plain_bytes)
    elif plain_bytes and address_of(body) % _ALIGNED_BYTES:  # wherever it lay in what came over the network
        body = bytes(body)
    return Memory(address_of(body) if plain_bytes else 0, shape, element, body)


def parcel(tensors: Mapping[str, Buffer | Encoded]) -> bytes:
    """Return tensors as one piece.

    Args:
        tensors: What `encoded` gave, or `opened`, by name.
    """
    parts: list[Buffer] = [_COUNT.pack(len(tensors))]
    for name, tensor in tensors.items():
        pieces = (tensor.head, tensor.body) if isinstance(tensor, Encoded) else (tensor,)
        parts += [_LENGTHS.pack(len(name.encode()), sum(map(len, pieces))), name.encode(), *pieces]
    return b"".join(parts)


def opened(data: Buffer) -> dict[str, memoryview]:
    """Return the tensors of a parcel, by name, each as it was put there; nothing is copied.

    Raises:
        StageError: If it is damaged.
    """
    view = memoryview(data).cast("B")
    tensors: dict[str, memoryview] = {}
    try:
        (count,) = _COUNT.unpack_from(view)
        place = _COUNT.size
        for _ in range(count if count <= _MAX_TENSORS else 0):
            name_bytes, data_bytes = _LENGTHS.unpack_from(view, place)
            place += _LENGTHS.size
            end = place + name_bytes + data_bytes
            if name_bytes > _MAX_NAME_BYTES or end > len(view):
                raise _damaged("a tensor is longer than the parcel")
            tensors[str(view[place : place + name_bytes], "utf-8")] = view[place + name_bytes : end]
            place = end
    except (struct.error, UnicodeDecodeError) as error:
        raise _damaged("the parcel ends too early") from error
    if count != len(tensors) or place != len(view):
        raise _damaged("the parcel does not hold what it says")
    return tensors


class EdgeCodec:
    """Decides for one edge, the outputs of one stage, whether compressing is faster than sending plainly.

    The ratio and the codec's speed are measured on a sample of every few tensors. Compressing n bytes pays on a link
    of v bytes a second where packing, sending and unpacking take less time than sending: n p + n r / v + n u < n / v,
    with p and u the seconds per byte of packing and unpacking, and r the ratio of the bytes.

    Attributes:
        ratio: Bytes after packing ÷ before; None until it is measured.
        codec_s_per_byte: Seconds that packing and unpacking a byte take together; None until then.

    Args:
        clock: Seconds, of `time.perf_counter`.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.ratio: float | None = None
        self.codec_s_per_byte: float | None = None
        self._clock = clock
        self._left = 0

    def pays(self, memory: Memory, link_bytes_per_s: float | None) -> bool:
        """Return whether to compress a tensor.

        Args:
            memory: The tensor.
            link_bytes_per_s: What the link to the next device carries, in bytes a second; None where that is not known,
                and nothing is compressed.
        """
        if link_bytes_per_s is None or not memory.nbytes:
            return False
        if self._left == 0:
            self._measure(memory)
            self._left = _MEASURE_EVERY
        self._left -= 1
        if self.ratio is None or self.codec_s_per_byte is None:
            return False
        return self.codec_s_per_byte + self.ratio / link_bytes_per_s < 1 / link_bytes_per_s

    def _measure(self, memory: Memory) -> None:
        whole = memoryview(bytes_of(memory)).cast("B")
        start = max(0, (len(whole) - _SAMPLE_BYTES) // 2)  # the ends of a tensor are often padding
        sample = whole[start : start + _SAMPLE_BYTES]
        start_s = self._clock()
        packed = zlib.compress(sample, _LEVEL)
        zlib.decompress(packed)
        self.codec_s_per_byte = (self._clock() - start_s) / len(sample)
        self.ratio = len(packed) / len(sample)


def _header(view: memoryview) -> tuple[int, int, int, int, int]:
    """Return type, codec, number of sizes, and the bytes of elements and body.

    Raises:
        StageError: If there is no such header.
    """
    if len(view) < _HEADER.size:
        raise _damaged("it is shorter than a header")
    sign, element, codec, num_sizes, elements_bytes, body_bytes = _HEADER.unpack_from(view)
    if sign != _SIGN or num_sizes > _MAX_SIZES or elements_bytes > MAX_TENSOR_BYTES or body_bytes > elements_bytes:
        raise _damaged("its header is none")
    if len(view) < _HEADER.size + 8 * num_sizes:
        raise _damaged("it is shorter than its header")
    return element, codec, num_sizes, elements_bytes, body_bytes


def _unpacked(body: memoryview, size: int) -> bytes:
    """Return what zlib has packed, which must have this size; no more than that is ever unpacked."""
    unpacker = zlib.decompressobj()
    try:
        plain = unpacker.decompress(body, size + 1)
    except zlib.error as error:
        raise _damaged(str(error)) from error
    if len(plain) != size or not unpacker.eof or unpacker.unused_data:
        raise _damaged("what is compressed has another size")
    return plain


def _damaged(why: str) -> StageError:
    return StageError(f"a tensor that came from another device is damaged: {why}; both must have the same splitload")

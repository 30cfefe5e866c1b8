"""Tensors without numpy, whose import takes longer than most bundles load: made up, read from .npy files, written."""

from __future__ import annotations

import math
import os
import struct
from typing import BinaryIO

from splitload.runtime.capi.elements import BY_KIND, Element
from splitload.runtime.capi.tensor import Tensor, tensor_over

_DRAWN = 1024  # floats that are drawn; larger tensors repeat them
_MAGIC = b"\x93NUMPY"
_ALIGNED_BYTES = 64  # to whose multiples the header is filled
_MOST_HEADER_BYTES = 10_000  # as numpy takes
_MOST_SIZES = 32  # as all versions of numpy take
_BFLOAT16_ONE = 0x3F80  # the bits of 1.0


def made_up_tensor(element: Element, shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Return a tensor of standard normal floats; of another type, bfloat16 among them, of ones.

    Args:
        element: The type.
        shape: Its sizes.
        seed: Seed of the floats.

    Raises:
        MemoryError: If it is too large, or OverflowError.
    """
    import random

    count = math.prod(shape)
    if element.kind == "f":
        draw = random.Random(seed)  # noqa: S311 - nothing secret
        block = struct.pack(f"={_DRAWN}{element.format}", *(draw.gauss(0, 1) for _ in range(_DRAWN)))
    else:
        one = struct.pack("=H", _BFLOAT16_ONE) if element.name == "bfloat16" else struct.pack(f"={element.format}", 1)
        block = one * _DRAWN
    whole, rest = divmod(count, _DRAWN)
    raw = bytearray(block) * whole + block[: rest * element.item_bytes]
    return tensor_over(raw, element, shape)


def read_npy(stream: BinaryIO) -> Tensor | None:
    """Return the array of numbers in an .npy file; None for whatever numpy has to read, or to refuse.

    That is a file of another kind, text or objects, another order of bytes or of axes, and what is damaged.
    Source: numpy.lib.format, versions 1 to 3.
    """
    start = stream.read(8)
    wide = start[6:7] in (b"\x02", b"\x03")
    length = stream.read(4 if wide else 2)
    if start[:6] != _MAGIC or start[6:7] not in (b"\x01", b"\x02", b"\x03") or len(length) != (4 if wide else 2):
        return None
    size = int.from_bytes(length, "little")
    header = _header(stream.read(size)) if size <= _MOST_HEADER_BYTES else None
    if header is None:
        return None
    element, shape = header
    if math.prod(shape) * element.item_bytes > os.fstat(stream.fileno()).st_size - stream.tell():
        return None
    return tensor_over(bytearray(stream.read(math.prod(shape) * element.item_bytes)), element, shape)


def write_npy(path: str, tensor: Tensor) -> None:
    """Write a tensor to an .npy file; a bfloat16 is two bytes there.

    Source: numpy.lib.format, version 1.
    """
    interface = tensor.__array_interface__
    header = f"{{'descr': '{interface['typestr']}', 'fortran_order': False, 'shape': {tensor.shape}, }}"
    header += " " * (-(len(_MAGIC) + 4 + len(header) + 1) % _ALIGNED_BYTES) + "\n"
    with open(path, "wb") as file:
        file.write(_MAGIC + b"\x01\x00" + len(header).to_bytes(2, "little") + header.encode("latin-1"))
        file.write(tensor.tobytes())


def _header(text: bytes) -> tuple[Element, tuple[int, ...]] | None:
    """Return type and shape as the header of an .npy file says them."""
    import ast

    try:
        fields = ast.literal_eval(text.decode("latin-1"))
        kind, shape = fields["descr"], fields["shape"]
        element = BY_KIND[kind[1:2], int(kind[2:])]
    except (ValueError, SyntaxError, TypeError, LookupError, MemoryError, RecursionError):
        return None
    fits = kind == element.typestr and fields.keys() == {"descr", "fortran_order", "shape"}
    if not fits or fields["fortran_order"] is not False or not isinstance(shape, tuple) or len(shape) > _MOST_SIZES:
        return None
    return (element, shape) if all(type(size) is int and 0 <= size < 2**31 for size in shape) else None

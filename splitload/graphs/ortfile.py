"""onnxruntime's own file format: the weights of an .ort file, stood at its end in the order in which they are used.

onnxruntime writes them in the order of a hash table. A file that is not cached is then read a piece here and a piece
there, wherever the next operator happens to have its weights, and nobody can read ahead.

An .ort file is a flatbuffer. There offsets point forwards by up to 4 GiB, so everything else can be copied, table by
table, into a head, and the weights follow it. A file with a field that is not listed here stays as it is.
Source: onnxruntime's schema `ort.fbs`, whose field numbers are the places in `_TABLES`, and flatbuffers' description of
its binary format.
"""

from __future__ import annotations

import mmap
import shutil
import struct
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from splitload.base.pieces import PIECE_BYTES
from splitload.bundle.validate import MAX_ORT_BYTES

ALIGNMENT_BYTES = 64  # a line of the processor's cache
LENGTH_BYTES = 4  # before each vector, so before each weight
MIN_BYTES = 4096  # smaller ones stay in the head

# Kinds of fields, in the order of their numbers: bytes of a number; STRING; the name of a table; a list of STRING or a
# table; bytes of an element and alignment of a plain vector; UNION, after the byte that says which; DATA, of a weight;
# None for what is not known here
STRING, UNION, DATA = "string", "union", "data"
_TABLES: dict[str, tuple[Any, ...]] = {
    "InferenceSession": (STRING, "Model", None, "KernelTypeStrResolver"),
    "Model": (8, ["OperatorSetId"], STRING, STRING, STRING, 8, STRING, "Graph", STRING, ["StringStringEntry"]),
    "OperatorSetId": (STRING, 8),
    "StringStringEntry": (STRING, STRING),
    "Graph": (
        ["Tensor"], ["ValueInfo"], ["Node"], 4, ["NodeEdge"], [STRING], [STRING], ["SparseTensor"], None,
    ),
    "Tensor": (STRING, STRING, (8, 8), 4, DATA, [STRING], 8),
    "SparseTensor": ("Tensor", "Tensor", (8, 8)),
    "ValueInfo": (STRING, STRING, "TypeInfo"),
    "TypeInfo": (STRING, 1, UNION),
    "TensorTypeAndShape": (4, "Shape"),
    "SequenceType": ("TypeInfo",),
    "MapType": (4, "TypeInfo"),
    "Shape": (["Dimension"],),
    "Dimension": ("DimensionValue", STRING),
    "DimensionValue": (1, 8, STRING),
    "Node": (
        STRING, STRING, STRING, 4, 4, STRING, 4, STRING, [STRING], [STRING], ["Attribute"], (4, 4), [STRING],
    ),
    "NodeEdge": (4, (12, 4), (12, 4)),
    "Attribute": (
        STRING, STRING, 4, 4, 8, STRING, "Tensor", "Graph", (4, 4), (8, 8), [STRING], ["Tensor"], ["Graph"],
    ),
    "KernelTypeStrResolver": (["OpIdKernelTypeStrArgsEntry"],),
    "OpIdKernelTypeStrArgsEntry": (STRING, ["KernelTypeStrArgsEntry"]),
    "KernelTypeStrArgsEntry": (STRING, ["ArgTypeAndIndex"]),
    "ArgTypeAndIndex": (1, 4),
}  # fmt: skip
_UNIONS = {"TypeInfo": ("", "TensorTypeAndShape", "SequenceType", "MapType")}
_ROOT = "InferenceSession"


class _UnknownFieldError(Exception):
    """The file has something that this module does not know how to copy."""


class _Weight(NamedTuple):
    """Bytes of a weight, left out of the head.

    Attributes:
        name: Of the tensor.
        start: Where they lie in the old file.
        length: How many.
        field: Where in the head the offset to them stands, from its end.
    """

    name: str
    start: int
    length: int
    field: int


def format_version(data: bytes) -> str:
    """Return the version of the format that an .ort file says it has: the first field of its root table."""
    root = int.from_bytes(data[:4], "little")
    fields = root - struct.unpack_from("<i", data, root)[0]
    place = root + int.from_bytes(data[fields + 4 : fields + 6], "little")
    start = place + int.from_bytes(data[place : place + 4], "little")
    length = int.from_bytes(data[start : start + LENGTH_BYTES], "little")
    return data[start + LENGTH_BYTES : start + LENGTH_BYTES + length].decode()


def lay_out(path: Path, names: Iterable[str], last: Collection[str] = ()) -> tuple[int, ...]:
    """Put the weights of an .ort file in order, in place.

    Args:
        path: The file; it is replaced.
        names: Of weights, in the order of their use.
        last: Of those that are read in places only, however early.

    Returns:
        Where each weight of `MIN_BYTES` and more starts, in order, and where the last one ends that is not in `last`;
        nothing if the file stays as it was.

    Raises:
        OSError: If it cannot be read or written.
    """
    order = {name: number for number, name in enumerate(names)}
    lazy = set(last)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as old:
        copy = _Copy(old)
        try:
            head = copy.head()
        except _UnknownFieldError:
            return ()
        weights = sorted(copy.weights, key=lambda weight: (weight.name in lazy, order.get(weight.name, len(order))))
        places = []
        end = len(head)
        read_until = end
        for weight in weights:
            start = _aligned(end + LENGTH_BYTES)
            places.append(start)
            end = start + weight.length
            if weight.name not in lazy:
                read_until = end
        if end > MAX_ORT_BYTES:
            return ()
        for weight, start in zip(weights, places, strict=True):
            field = len(head) - weight.field
            struct.pack_into("<I", head, field, start - LENGTH_BYTES - field)
        made = path.with_name(f"{path.name}.new")
        try:
            with made.open("wb", PIECE_BYTES) as out:
                out.write(head)
                for weight, start in zip(weights, places, strict=True):
                    out.write(b"\0" * (start - LENGTH_BYTES - out.tell()) + struct.pack("<I", weight.length))
                    for piece in range(weight.start, weight.start + weight.length, PIECE_BYTES):
                        out.write(old[piece : min(piece + PIECE_BYTES, weight.start + weight.length)])
            shutil.copymode(path, made)
            made.replace(path)
        finally:
            made.unlink(missing_ok=True)
    return (*places, read_until)


def weight_places(data: Any) -> dict[str, tuple[int, int]]:
    """Return the first byte and the length of each weight of `MIN_BYTES` and more in an .ort file, by its name.

    Args:
        data: The file, as bytes or mapped. Nothing is found in one with a field that is not known here.
    """
    copy = _Copy(data)
    try:
        copy.head()
    except _UnknownFieldError:
        return {}
    return {weight.name: (weight.start, weight.length) for weight in copy.weights}


def _aligned(position: int) -> int:
    return -(-position // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class _Copy:
    """Copies all of a flatbuffer but the bytes of weights."""

    def __init__(self, data: Any) -> None:
        import flatbuffers

        self.weights: list[_Weight] = []
        self._data = data
        self._builder = flatbuffers.Builder(1 << 16)
        self._builder.StartVector(1, 0, 1)
        self._nothing = self._builder.EndVector()  # stands for each weight until its place is known
        self._strings: dict[int, int] = {}

    def head(self) -> bytearray:
        """Return the copy, which names no place for the weights yet."""
        identifier = bytes(self._data[4:8])
        self._builder.Finish(self._table(_ROOT, self._target(0)), file_identifier=identifier)
        return bytearray(self._builder.Output())

    def _number(self, place: int, size: int) -> int:
        return int.from_bytes(self._data[place : place + size], "little")

    def _target(self, place: int) -> int:
        """Return where the offset at `place` points to."""
        return place + self._number(place, 4)

    def _table(self, kind: str, place: int) -> int:
        """Copy a table; return its place in the copy."""
        data, builder, kinds = self._data, self._builder, _TABLES[kind]
        fields = place - struct.unpack_from("<i", data, place)[0]
        count = (self._number(fields, 2) - 4) // 2
        found: list[tuple[int, Any, int, int]] = []
        which = 0
        for number in range(count):
            offset = self._number(fields + 4 + 2 * number, 2)
            if not offset:
                continue
            of = kinds[number] if number < len(kinds) else None
            at = place + offset
            if of is None:
                raise _UnknownFieldError(f"{kind} has field {number}")
            if isinstance(of, int):
                value = which = self._number(at, of)
            elif of == UNION:
                if not 0 < which < len(_UNIONS[kind]):
                    raise _UnknownFieldError(f"{kind} is of type {which}")
                value = self._table(_UNIONS[kind][which], self._target(at))
            elif of == DATA and self._number(self._target(at), 4) >= MIN_BYTES:
                value = self._nothing
            else:
                value = self._object(of, self._target(at))
            found.append((number, of, value, at))
        builder.StartObject(len(kinds))
        for number, of, value, at in found:
            if isinstance(of, int):
                {1: builder.PrependUint8, 4: builder.PrependUint32, 8: builder.PrependUint64}[of](value)
                builder.Slot(number)
                continue
            builder.PrependUOffsetTRelativeSlot(number, value, 0)
            if value == self._nothing:
                vector = self._target(at)
                length = self._number(vector, LENGTH_BYTES)
                name = self._name(place, fields)
                self.weights.append(_Weight(name, vector + LENGTH_BYTES, length, int(builder.Offset())))
        return int(builder.EndObject())

    def _object(self, of: Any, place: int) -> int:
        """Copy what an offset points to; return its place in the copy."""
        data, builder = self._data, self._builder
        if isinstance(of, str) and of not in (STRING, DATA):
            return self._table(of, place)
        if of == STRING:
            if place not in self._strings:
                self._strings[place] = int(builder.CreateString(self._text(place)))
            return self._strings[place]
        count = self._number(place, LENGTH_BYTES)
        start = place + LENGTH_BYTES
        if isinstance(of, list):
            made = [self._object(of[0], self._target(start + 4 * number)) for number in range(count)]
            builder.StartVector(4, count, 4)
            for each in reversed(made):
                builder.PrependUOffsetTRelative(each)
            return int(builder.EndVector())
        size, alignment = (1, 8) if of == DATA else of
        builder.StartVector(size, count, alignment)
        builder.head -= size * count
        builder.Bytes[builder.head : builder.head + size * count] = data[start : start + size * count]
        return int(builder.EndVector())

    def _name(self, place: int, fields: int) -> str:
        """Return the name of a tensor, its first field."""
        offset = self._number(fields + 4, 2)
        if not offset:
            return ""
        return self._text(self._target(place + offset)).decode()

    def _text(self, place: int) -> bytes:
        start = place + LENGTH_BYTES
        return bytes(self._data[start : start + self._number(place, LENGTH_BYTES)])

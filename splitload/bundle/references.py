"""Which other files an ONNX graph reads its weights from, found in its protobuf without the onnx package.

Only the messages on the way to a stored tensor are looked into; everything else is stepped over by its length.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from splitload.base.errors import BundleError
from splitload.base.regular import open_regular, regular_size

MAX_DEPTH = 64  # of graphs inside graphs, each of which takes three
# Fields of onnx.proto by message: those that hold a stored tensor, or lead to one.
FIELDS = {
    "Model": {7: "Graph", 20: "TrainingInfo", 25: "Function"},
    "TrainingInfo": {1: "Graph", 2: "Graph"},
    "Function": {7: "Node", 11: "Attribute"},
    "Graph": {1: "Node", 5: "Tensor", 15: "SparseTensor"},
    "Node": {5: "Attribute"},
    "Attribute": {5: "Tensor", 6: "Graph", 10: "Tensor", 11: "Graph", 22: "SparseTensor", 23: "SparseTensor"},
    "SparseTensor": {1: "Tensor", 2: "Tensor"},
    "Tensor": {13: "Entry"},  # external_data
}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # wire types


class StoredPiece(NamedTuple):
    """Where the bytes of a tensor lie outside its graph: a file, the first byte, and how many."""

    file: str
    offset: int
    length: int


def referenced_files(graph: Path) -> set[str]:
    """Return the locations that the stored tensors of an .onnx file name, as they stand there.

    Raises:
        BundleError: If the file is not a protobuf message of that kind.
        OSError: If it cannot be read.
    """
    return {value for entries in _read(graph) for key, value in entries if key == "location"}


def weight_files(graph: Path) -> list[str]:
    """Return the files that an .onnx file reads weights from, which lie beside it or in folders there, in order.

    Raises:
        BundleError: If it names another place, or is no protobuf message of that kind.
        OSError: If it cannot be read.
    """
    names = sorted(referenced_files(graph))
    for name in names:
        # a star: onnxruntime takes "*/_ORT_MEM_ADDR_/*" for an address in memory
        if not name or PurePath(name).is_absolute() or ".." in PurePath(name).parts or "*" in name:
            raise BundleError(
                f"'{graph.name:.80}' reads weights from {name!r:.80}, which does not lie beside it; refused"
            )
    return names


def stored_pieces(graph: Path) -> list[StoredPiece]:
    """Return where the stored tensors of an .onnx file lie that onnxruntime wrote, which tells the size of each.

    Raises:
        BundleError: If the file is not a protobuf message of that kind.
        OSError: If it cannot be read.
    """
    found = (dict(entries) for entries in _read(graph))
    return [
        StoredPiece(each["location"], int(each.get("offset", "0")), int(each["length"]))
        for each in found
        if each.keys() >= {"location", "length"}
    ]


def _read(graph: Path) -> list[list[tuple[str, str]]]:
    """Return what each tensor of an .onnx file that is stored elsewhere says of that, as keys and values."""
    if not regular_size(graph):
        raise BundleError(f"'{graph}' is empty; copy the bundle again")
    with open_regular(graph, links=True) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return list(_entries(data))
        except ValueError as error:
            raise BundleError(f"'{graph}' is not an ONNX graph ({error}); copy the bundle again") from error


def _entries(data: mmap.mmap) -> Iterator[list[tuple[str, str]]]:
    todo = [("Model", 0, len(data), 0)]
    while todo:
        message, start, end, depth = todo.pop()
        if depth > MAX_DEPTH:
            raise ValueError("it is nested too deeply")
        entries = []
        for number, begin, stop in _fields(data, start, end):
            inside = FIELDS[message].get(number)
            if inside == "Entry":
                entry = {field: data[first:last] for field, first, last in _fields(data, begin, stop)}
                entries.append((entry.get(1, b"").decode(), entry.get(2, b"").decode()))
            elif inside is not None:
                todo.append((inside, begin, stop, depth + 1))
        if entries:
            yield entries


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, first byte and end of each field that has a length; step over the others."""
    while start < end:
        tag, start = _varint(data, start, end)
        kind = tag & 7
        if kind == _VARINT:
            _, start = _varint(data, start, end)
            continue
        if kind == _BYTES:
            size, start = _varint(data, start, end)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of wire type {kind}")
        if size > end - start:
            raise ValueError("a field that ends behind its message")
        if kind == _BYTES:
            yield tag >> 3, start, start + size
        start += size


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """Return a number of up to 64 bits, and where it ends."""
    value = 0
    for place in range(start, min(start + 10, end)):
        value |= (data[place] & 0x7F) << 7 * (place - start)
        if data[place] < 0x80:
            return value, place + 1
    raise ValueError("a number that does not end")

"""Weights in a file of their own: pieces of other files, each on a page of its own, so that it can be mapped."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from splitload.base.pieces import PIECE_BYTES

PAGE_BYTES = 4096


class Piece(NamedTuple):
    """Bytes of a file: its name, the first byte, and how many."""

    file: str
    offset: int
    length: int


def places_of(pieces: Sequence[Piece]) -> list[int]:
    """Return where each piece begins in the file that is written of them."""
    places, position = [], 0
    for piece in pieces:
        position += -position % PAGE_BYTES
        places.append(position)
        position += piece.length
    return places


def write_pieces(folder: Path, pieces: Sequence[Piece], path: Path) -> tuple[int, str]:
    """Write pieces of the files in `folder` to one file; return its bytes and its SHA-256.

    Raises:
        OSError: If one cannot be read, ends too soon, or the file cannot be written.
    """
    digest = hashlib.sha256()
    with ExitStack() as opened, path.open("wb", PIECE_BYTES) as out:
        sources: dict[str, BinaryIO] = {}
        for piece in pieces:
            if piece.file not in sources:
                sources[piece.file] = opened.enter_context((folder / piece.file).open("rb"))
            sources[piece.file].seek(piece.offset)
            padding = b"\0" * (-out.tell() % PAGE_BYTES)
            for chunk in chain((padding,), _chunks(sources[piece.file], piece.length)):
                out.write(chunk)
                digest.update(chunk)
        return out.tell(), digest.hexdigest()


def _chunks(source: BinaryIO, length: int) -> Iterable[bytes]:
    """Yield the next `length` bytes of `source`."""
    while length:
        chunk = source.read(min(length, PIECE_BYTES))
        if not chunk:
            raise OSError("the optimised model's weights end too soon; remove it from the cache folder")
        length -= len(chunk)
        yield chunk

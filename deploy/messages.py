"""What bodies of requests to a served device say; nothing of them is trusted."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from splitload.base.errors import BundleError
from splitload.base.fields import Reader, is_count, is_sha256
from splitload.bundle.manifest import File
from splitload.deploy.openapi import MOST_COUNT, MOST_FILES
from splitload.deploy.orders import Order
from splitload.deploy.stage_names import is_inside


def order_of(body: bytes) -> Order:
    """Return the order that a body says.

    Raises:
        BundleError: If it is none.
    """
    row = Reader(_json(body), "order")
    row.only("files", "job", "cold")
    job = None if row.get("job") is None else row.mapping("job")
    files = [_file(each) for each in row.items("files", 0, MOST_FILES)]
    names = {file.name for file in files}
    if len(names) != len(files) or names & {str(part) for name in names for part in PurePosixPath(name).parents}:
        raise BundleError("order.files has a name twice, or as that of a file and of a folder")
    return Order(files, job, row.flag("cold"))


def pieces_of(body: bytes) -> list[tuple[str, int, int]]:
    """Return the pieces of files that a body says: SHA-256, first byte, how many.

    Raises:
        BundleError: If it says none.
    """
    data = _json(body)
    if not isinstance(data, list) or len(data) > MOST_FILES:
        raise BundleError(f"pieces must be a list of at most {MOST_FILES}")
    for piece in data:
        if not (isinstance(piece, list) and len(piece) == 3 and is_sha256(piece[0]) and all(map(is_count, piece[1:]))):
            raise BundleError("each of the pieces must be a SHA-256, the first byte and how many")
    return [(piece[0], piece[1], piece[2]) for piece in data]


def _file(row: Reader) -> File:
    row.only("name", "bytes", "sha256")
    name = row.text("name")
    if not is_inside(name):
        raise BundleError(f"{row.where}.name {name!r:.80} is no name of a file inside a folder")
    size = row.count("bytes")
    if size > MOST_COUNT:
        raise BundleError(f"{row.where}.bytes is {size}, at most {MOST_COUNT} are possible")
    return File(name, size, row.sha256("sha256"))


def _json(body: bytes) -> Any:
    try:
        return json.loads(body, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise BundleError("the body is no JSON") from error


def _no_number(word: str) -> Any:
    raise ValueError(word)

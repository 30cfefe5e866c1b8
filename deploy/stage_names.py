"""What stages and their files are called on a device's disk, and which names can be trusted to stay in a folder."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from splitload.base.errors import StageError
from splitload.base.fields import is_sha256
from splitload.bundle.manifest import File

_MOST_PARTS, _MOST_NAME_BYTES = 4, 1024  # of a name


def stage_key(files: Sequence[File]) -> str:
    """Return the key of a stage: a SHA-256 over the names and hashes of its files."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.name):
        digest.update(f"{file.name} {file.sha256} {file.bytes}\n".encode())
    return digest.hexdigest()


def check_stage(key: str, files: Sequence[File]) -> None:
    """Raise `StageError` unless these are the files of a stage, each with a plain name, and the key is theirs."""
    for file in files:
        check_file(file)
    if len({file.name for file in files}) != len(files) or not files or key != stage_key(files):
        raise StageError("a stage is asked for by another key than that of its files; both need the same splitload")


def check_file(file: File) -> None:
    """Raise `StageError` unless a file has a name inside a folder, a SHA-256 and a size."""
    if not (is_inside(file.name) and is_sha256(file.sha256) and file.bytes >= 0):
        raise StageError(f"{file.name!r:.80} is no plain name of a file with a SHA-256; both need the same splitload")


def is_inside(name: str) -> bool:
    """Return whether a name, with "/" between its parts, is that of a file inside a folder, whatever it is made of."""
    parts = name.split("/")
    plain = all(part.isprintable() and "\\" not in part and part not in ("", ".", "..") for part in parts)
    return plain and len(parts) <= _MOST_PARTS and len(name.encode()) <= _MOST_NAME_BYTES

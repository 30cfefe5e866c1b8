"""Text files that are written whole or not at all: readers see the old one or the new one, whenever a writer ends."""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path

from splitload.errors import OutputError


def check_file(path: Path, what: str) -> None:
    """Make sure that a file may be written at `path`, before any work is done for it.

    Raises:
        OutputError: If something else than a file is there, or its folder is missing or cannot be written to.
    """
    parent = path.parent
    if path.exists() and not path.is_file():
        raise OutputError(f"cannot write {what} '{path}': it exists and is not a file; give another name")
    if not parent.is_dir():
        raise OutputError(f"cannot write {what} '{path}': there is no folder '{parent}'")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write {what} '{path}': no permission to write to '{parent}'")


def write_text(path: Path, text: str, what: str) -> None:
    """Write a file beside `path` and give it that name; what stood there stays until then.

    Args:
        path: The file, in an existing folder.
        text: What it will hold.
        what: What it is, for errors.

    Raises:
        OutputError: If it cannot be written.
    """
    check_file(path, what)
    made = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # others may write the same file now
    try:
        try:
            with made.open("x", encoding="utf-8", newline="") as file:
                file.write(text)
            sync(made)
            made.replace(path)
        except BaseException:  # an interrupt as well
            with contextlib.suppress(OSError):
                made.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(f"cannot write {what} '{path}': {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Flush a file or folder to storage, so that a rename never outlives what it names.

    Raises:
        OSError: If it cannot be opened or flushed.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

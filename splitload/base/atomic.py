"""What is written whole or not at all: readers see the old or the new, whenever a writer ends or the power fails."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import sys
from pathlib import Path

from splitload.base.errors import OutputError
from splitload.base.scratch import scratch_folder, truncated


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
    made = path.with_name(f".{truncated(path.name, 200)}.{secrets.token_hex(4)}")  # others may write the same file now
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


def write_private(path: Path, data: bytes) -> None:
    """Write a file that its owner alone can read, and give it the name of one that may be there.

    Args:
        path: The file, in an existing folder.
        data: What it will hold.

    Raises:
        OSError: If it cannot be written.
    """
    with scratch_folder(path.parent, ".private-") as made:
        create_private(made / path.name, data)
        (made / path.name).replace(path)


def create_private(path: Path, data: bytes) -> None:
    """Write a new file that its owner alone can read, at no moment anybody else.

    Raises:
        OSError: If something is there, or it cannot be written.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(descriptor)


def sync(path: Path) -> None:
    """Flush a file or folder to storage, so that a rename never outlives what it names; if its file system can.

    Raises:
        OSError: If it cannot be opened or flushed.
    """
    if sys.platform == "win32":  # opens no folders, and flushes what is open for writing
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path, *, read_only: bool = False) -> None:
    """Flush a folder and all that is in it.

    Args:
        folder: The folder.
        read_only: Whether to take away the permission to write to its files, so that nobody overwrites in place what
            others have mapped; they can still be removed and replaced (not on Windows, where they could not).

    Raises:
        OSError: If something cannot be opened or flushed.
    """
    for path in (*sorted(folder.rglob("*")), folder):
        if read_only and sys.platform != "win32" and path.is_file():
            path.chmod(path.stat().st_mode & 0o555)
        sync(path)

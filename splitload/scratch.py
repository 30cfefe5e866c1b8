"""Folders for work in progress, beside where the result goes; what killed processes left is cleared away."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent` that is removed at the end, unless it was renamed.

    Whoever works in one holds a lock on it, which the system drops when the process ends, however it ends; folders of
    the same prefix that nobody holds are removed first. Where the system has no such locks (Windows) they stay.

    Args:
        parent: An existing folder, on the file system where the result goes.
        prefix: Start of the name; a dot as its first character hides it.

    Raises:
        OSError: If the folder cannot be made.
    """
    import shutil
    import tempfile

    for left in parent.glob(f"{prefix}*.making"):
        lock = _lock(left)
        if lock is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(lock)
    for _ in range(3):  # another process may clear the new folder away before it is locked
        made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix, suffix=".making"))
        lock = _lock(made)
        if lock is not None:
            break
        shutil.rmtree(made, ignore_errors=True)
    else:  # no locks here
        made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix, suffix=".making"))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds a lock on the folder, or None if it cannot be had."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor

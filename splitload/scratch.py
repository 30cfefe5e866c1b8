"""Folders for work in progress, beside where the result goes; what killed processes left is cleared away.

Whoever works in one holds a lock on it, which the system drops when the process ends, however it ends; no number of a
process is trusted, as those come again. Where the system has no locks on folders (Windows, some network file systems)
what is left stays. Locks of another host may not be seen on a file system that both share, so a folder's name says
where it was made, and one that was made elsewhere is left alone until nothing was changed in it for a day.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".making"
FOREIGN_S = 86400.0  # after which a folder that another host has made counts as left
_DEPTH = 3  # of the folders of a cache that hold such folders: rooms, entries, and what is in those


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent` that is removed at the end, unless it was renamed.

    Folders of the same prefix that killed processes left are removed first.

    Args:
        parent: An existing folder, on the file system where the result goes.
        prefix: Start of the name; a dot as its first character hides it.

    Raises:
        OSError: If the folder cannot be made.
    """
    import shutil
    import tempfile

    for left in parent.glob(f"{prefix}*{SUFFIX}"):
        _remove(left)
    suffix = f".{_host()}{SUFFIX}"
    for _ in range(3):  # another process may clear the new folder away before it is locked
        made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix, suffix=suffix))
        lock = _lock(made)
        if lock is not None:
            break
        shutil.rmtree(made, ignore_errors=True)
    else:  # no locks here
        made = Path(tempfile.mkdtemp(dir=parent, prefix=prefix, suffix=suffix))
    try:
        yield made
    finally:
        try:
            shutil.rmtree(made, ignore_errors=True)
        finally:  # an interrupt leaves some: without the lock the next process removes it
            if lock is not None:
                os.close(lock)


def sweep(folder: Path) -> None:
    """Remove what killed processes left anywhere in a folder of ours; links are not followed.

    Args:
        folder: The user's cache folder, say; it need not exist.
    """
    todo = [(folder, _DEPTH)]
    while todo:
        here, depth = todo.pop()
        with contextlib.suppress(OSError), os.scandir(here) as entries:
            for entry in entries:
                if not entry.is_dir(follow_symlinks=False):
                    continue
                if entry.name.startswith(".") and entry.name.endswith(SUFFIX):
                    _remove(Path(entry.path))
                elif depth:
                    todo.append((Path(entry.path), depth - 1))


def _remove(left: Path) -> None:
    """Remove a folder of work in progress, unless somebody works in it."""
    import shutil

    lock = _lock(left)
    if lock is None:
        return
    try:
        if left.name.endswith(f".{_host()}{SUFFIX}") or time.time() - os.fstat(lock).st_mtime > FOREIGN_S:
            shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(lock)


def _host() -> str:
    """Return a short word for this host."""
    import zlib

    return "" if sys.platform == "win32" else f"{zlib.crc32(os.uname().nodename.encode()):08x}"


def _lock(folder: Path) -> int | None:
    """Return a descriptor that holds a lock on the folder, or None if it cannot be had."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(descriptor), folder.stat()):  # else it was cleared away meanwhile
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None

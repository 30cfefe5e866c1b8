"""Folders for work in progress, beside where the result goes; what killed processes left is cleared away.

Whoever works in one holds a lock on it, which the system drops when the process ends, however it ends; no number of a
process is trusted, as those come again. Where the system has no locks on folders (Windows, some network file systems)
what is left stays. Locks of another host may not be seen on a file system that both share, so a folder's name says
where it was made, and one that was made elsewhere is left alone until nothing in it was changed for a day. A name
that has not the whole form is never touched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

SUFFIX = ".making"
FOREIGN_S = 86400.0  # after which a folder that another host has made counts as left
_FORM = re.compile(r"[a-z0-9_]{8}\.[0-9a-f]{8}\.making")  # after the prefix: what `tempfile` chooses, and the host
_MAX_PREFIX_BYTES = 200  # most file systems take names of 255
_WORKED_IN = "graphs"  # of the rooms in a cache: work in progress is in its entries too


@contextlib.contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Yield a new folder in `parent` that is removed at the end, unless it was renamed.

    Folders of the same prefix that killed processes left are removed first. A long prefix is truncated.

    Args:
        parent: An existing folder, on the file system where the result goes.
        prefix: Start of the name; a dot as its first character hides it.

    Raises:
        OSError: If the folder cannot be made.
    """
    import shutil
    import tempfile

    prefix = truncated(prefix, _MAX_PREFIX_BYTES)
    _clear(parent, prefix)
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


def is_worked_in(folder: Path) -> bool:
    """Return whether somebody works in a folder, or in one inside it; links are not followed."""
    inside = (Path(here, name) for here, folders, _ in os.walk(folder) for name in folders)
    for place in itertools.chain([folder], inside):
        if place.name.endswith(SUFFIX):
            lock = _lock(place)
            if lock is None:
                return True
            os.close(lock)
    return False


def truncated(name: str, size: int) -> str:
    """Return the beginning of a name that takes at most `size` bytes in the file system."""
    while len(os.fsencode(name)) > size:
        name = name[:-1]
    return name


def sweep(cache: Path) -> None:
    """Remove what killed processes left where entries of a cache are made or worked in; links are not followed.

    Args:
        cache: The user's cache folder; it need not exist.
    """
    for room in _clear(cache, "."):
        for entry in _clear(room, "."):
            if room.name == _WORKED_IN:
                _clear(entry, ".")


def _clear(folder: Path, prefix: str) -> list[Path]:
    """Remove folders of work in progress that nobody works in; return the other folders in `folder`."""
    others = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_dir(follow_symlinks=False):
                continue
            if entry.name.startswith(prefix) and _FORM.fullmatch(entry.name, max(len(prefix), len(entry.name) - 24)):
                _remove(Path(entry.path))
            else:
                others.append(Path(entry.path))
    return others


def _remove(left: Path) -> None:
    """Remove a folder of work in progress, unless somebody works in it."""
    import shutil

    lock = _lock(left)
    if lock is None:
        return
    try:
        if left.name.endswith(f".{_host()}{SUFFIX}") or time.time() - _changed_s(left) > FOREIGN_S:
            shutil.rmtree(left, ignore_errors=True)
    finally:
        os.close(lock)


def _changed_s(folder: Path) -> float:
    """Return when a folder or anything in it was changed last; now where that cannot be told."""
    try:
        newest = folder.stat().st_mtime
        for here, folders, files in os.walk(folder):
            newest = max([newest, *(os.lstat(Path(here, name)).st_mtime for name in (*folders, *files))])
    except OSError:  # somebody works in it
        return time.time()
    return newest


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

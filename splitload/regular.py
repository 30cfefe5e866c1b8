"""Opening regular files and nothing else: a FIFO or a device that stands in a bundle blocks nobody.

A link to a regular file counts as one: that is how the caches of model hubs keep files.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from splitload.errors import BundleError

_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}


def regular_size(path: Path) -> int:
    """Return the size of a file in bytes, without opening it.

    Raises:
        BundleError: If something else than a regular file is there.
        OSError: If nothing is, or it cannot be reached.
    """
    return _checked(path, path.stat())


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading; never waits for somebody to write to it.

    Raises:
        BundleError: If something else than a regular file is there.
        OSError: If nothing is, or it cannot be opened.
    """
    regular_size(path)  # opening a device may have effects of its own
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _checked(path, os.fstat(file.fileno()))  # it may have been exchanged meanwhile
    except BaseException:
        file.close()
        raise
    return file


def _checked(path: Path, found: os.stat_result) -> int:
    if not stat.S_ISREG(found.st_mode):
        kind = _KINDS.get(stat.S_IFMT(found.st_mode), "a device")
        raise BundleError(f"'{path}' is {kind}, not a regular file; copy the bundle again")
    return found.st_size

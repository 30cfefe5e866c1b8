"""The page cache: evict files from it, and see how much of them it holds. Linux only."""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Iterable
from pathlib import Path

from splitload.base.errors import StageError

_TRIES = 20
_PAUSE_S = 0.05


def check() -> None:
    """Make sure that files can be evicted here, and the eviction be verified.

    Raises:
        StageError: If the system has no means for it.
    """
    if not (hasattr(os, "posix_fadvise") and hasattr(ctypes.CDLL(None), "mincore")):
        raise StageError("--cold needs posix_fadvise and mincore to evict files, which this system lacks; use Linux")


def evict(files: Iterable[Path]) -> None:
    """Write files back to storage, drop them from the page cache, and verify that no page of them is left.

    Raises:
        StageError: If pages stay, because another process has them mapped or the files lie in memory (tmpfs).
    """
    left = list(files)
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(_PAUSE_S)  # pages that were just written or unmapped may be busy for a moment
        for file in left:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
        left = [file for file in left if resident_bytes([file])]
        if not left:
            return
    raise StageError(
        f"cannot evict '{left[0].name}' from the page cache: {resident_bytes(left[:1])} of {left[0].stat().st_size} "
        "bytes stay; does another process use it, or does it lie on a memory disk?"
    )


def resident_bytes(files: Iterable[Path]) -> int:
    """Return how many bytes of the files the page cache holds, by mincore, in whole pages.

    Raises:
        OSError: If a file cannot be read.
    """
    return sum(_resident_pages(file) for file in files) * mmap.PAGESIZE


def _resident_pages(file: Path) -> int:
    size = file.stat().st_size
    if size == 0:
        return 0
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_COPY) as view:
        start = ctypes.c_char.from_buffer(view)
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
            if libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), pages) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(file))
        finally:
            del start  # the view cannot be closed while it is referred to
    return sum(page & 1 for page in bytes(pages))

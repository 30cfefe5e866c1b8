"""Files that a session has mapped: where they lie in memory, and how their pages are given back.

Pages that are given back come again when they are touched: the session notices nothing. They leave this process; the
system keeps them in its cache of files, unless it is told to let go of them as well.
"""

from __future__ import annotations

import contextlib
import os
import sys

from splitload.base.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    Span = tuple[int, int]  # addresses of the first byte, and of the one behind the last

PAGE_BYTES = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096
_MAPS = "/proc/self/maps"
_PIECES = "/proc/self/map_files"  # has a name for each piece of memory that a file is mapped to
_REMOVED = " (deleted)"  # is added to the name of a file that is no more
_DONTNEED, _RANDOM = 4, 1  # of madvise


def check_system() -> None:
    """Raise `UsageError` unless this system says where files are mapped, and takes their pages back."""
    if not (sys.platform.startswith("linux") and os.path.exists(_MAPS)):
        raise UsageError("residency needs Linux, which says where weights are mapped; leave it out")


def identities(paths: Sequence[str]) -> frozenset[tuple[int, str]]:
    """Return the numbers and names of files, or of what links to files lead to, by which they are known where mapped.

    Raises:
        FileNotFoundError: If one is missing.
    """
    # not by the device, which some file systems call otherwise where they are mapped
    return frozenset((os.stat(path).st_ino, os.path.basename(os.path.realpath(path))) for path in paths)


def spans(files: frozenset[tuple[int, str]]) -> list[Span]:
    """Return where files are mapped now, by whomever in this process; they may have been moved or removed meanwhile."""
    result = []
    with open(_MAPS, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:  # 7f0000000000-7f0000001000 r--p 00000000 fe:00 131842    /a/file
            where, _, _, _, inode, *name = line.split(None, 5)
            if name and (int(inode), os.path.basename(name[0].rstrip("\n").removesuffix(_REMOVED))) in files:
                begin, end = where.split("-")
                result.append((int(begin, 16), int(end, 16)))
    return result


def files_at(pieces: Sequence[Span]) -> list[str | None]:
    """Return the file that each whole piece of memory is mapped from; None where no file is mapped to just that."""
    found: list[str | None] = []
    for begin, end in pieces:
        try:
            found.append(os.readlink(f"{_PIECES}/{begin:x}-{end:x}"))
        except OSError:
            found.append(None)
    return found


def kept(
    where: Sequence[Span], pieces: Sequence[Span], names: Sequence[str | None], files: frozenset[tuple[int, str]]
) -> Sequence[Span]:
    """Return the parts of what is mapped that still are: other memory may have taken the place, and be emptied.

    Args:
        where: What is asked for.
        pieces: The whole pieces in which it was mapped.
        names: What `files_at` said of them then.
        files: The identities of their files.
    """
    if None not in names and files_at(pieces) == list(names):
        return where
    common = [(max(begin, low), min(end, high)) for begin, end in where for low, high in spans(files)]
    return [(begin, end) for begin, end in common if begin < end]


def drop(where: Sequence[Span]) -> None:
    """Give back the pages of what is mapped."""
    for begin, end in where:
        _advise(begin, end - begin, _DONTNEED)


def in_small_pages(path: str, begin: int, *, read: bool) -> None:
    """Have a part of a file, of which only places here and there are read, come in small pages.

    A touch of a page maps those around it that the system has cached, up to a whole large page: a few rows of a table
    would bring most of it. What the system is asked for by `posix_fadvise` it reads into small pages, and maps sixteen
    at a time of them.

    Args:
        path: The file.
        begin: Its first byte.
        read: Whether all of it is read now; else each place when it is touched.
    """
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), begin, 0, os.POSIX_FADV_DONTNEED)
        if read:
            os.posix_fadvise(file.fileno(), begin, 0, os.POSIX_FADV_WILLNEED)


def forget(paths: Sequence[str]) -> None:
    """Have the system let go of files that it caches, but for what others have mapped; who is gone has no name."""
    for path in paths:
        with contextlib.suppress(OSError), open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def touch_at_random(where: Sequence[Span]) -> None:
    """Have the system read no more than what is touched of what is mapped, where it does not cache it."""
    for begin, end in where:
        _advise(begin, end - begin, _RANDOM)


if sys.platform.startswith("linux"):
    from splitload.runtime.capi.raw import Address, Int, Size, function, place

    _advise = function(place("madvise"), Int, Address, Size, Int)

"""The files of stages, read before a session needs them."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from splitload.base.regular import StrPath

    ReadOrder = tuple[int, ...]  # as `StageEntry.read_order`

_READ_BYTES = 1 << 20
_SAMPLES = 16


def read_ahead(path: StrPath) -> None:
    """Read a file, so that it is in memory and, as far as it fits, in the processor's cache.

    Errors are left for the load to meet.
    """
    buffer = bytearray(_READ_BYTES)
    try:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
    except OSError:
        pass


def is_cached(path: StrPath, order: ReadOrder) -> bool:
    """Return whether the system holds in memory what is read of a file, by a few samples; True where it does not tell.

    Linux tells by refusing a read that would have to wait. A sample that storage answers at once counts as held.
    """
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    byte = bytearray(1)
    try:
        with open(path, "rb", buffering=0) as file:
            for sample in range(1, _SAMPLES + 1):
                os.preadv(file.fileno(), [byte], order[-1] * sample // _SAMPLES - 1, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def fetch(files: Sequence[tuple[StrPath, ReadOrder]], stopped: Callable[[], bool]) -> None:
    """Have the system read files that it does not hold, in the order in which they are used.

    The graphs come first, from which the sessions are made, then the weights. They are sent nowhere, which copies
    nothing: Linux then reads ahead of what is sent, and holds what it has read in large pages, which later loads map
    with few faults. It reads what `posix_fadvise` asks for into small ones.

    Errors are left for the load to meet.

    Args:
        files: The files, with the places where their weights begin and, last, where reading ends.
        stopped: Whether nobody wants them any more.
    """
    parts = [(path, 0, order[0]) for path, order in files] + [(path, order[0], order[-1]) for path, order in files]
    try:
        with open(os.devnull, "wb", buffering=0) as nowhere:
            for path, start, end in parts:
                with open(path, "rb", buffering=0) as file:
                    while start < end and not stopped():
                        sent = os.sendfile(nowhere.fileno(), file.fileno(), start, min(_READ_BYTES, end - start))
                        start = start + sent if sent else end  # the file is shorter than it was
    except OSError:
        pass

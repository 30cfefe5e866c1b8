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
LENGTH_BYTES = 4  # before each vector of an .ort file, so before each weight; read when the session is made


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

    What the runtime reads to make the sessions comes first: the graphs, and the page before each weight, which tells
    its length. The weights follow in pieces, one ahead of the one awaited: who needs a page out of turn never waits
    long.
    Errors are left for the load to meet.

    Args:
        files: The files, and the order in which their weights are used.
        stopped: Whether nobody wants them any more.
    """
    try:
        for path, order in files:
            with open(path, "rb", buffering=0) as opened:
                file = opened.fileno()
                os.posix_fadvise(file, 0, order[0], os.POSIX_FADV_WILLNEED)
                for start in order[1:-1]:
                    os.posix_fadvise(file, start - LENGTH_BYTES, LENGTH_BYTES, os.POSIX_FADV_WILLNEED)
        for path, order in files:
            with open(path, "rb", buffering=0) as opened:
                file = opened.fileno()
                for start in range(order[0], order[-1], _READ_BYTES):
                    if stopped():
                        return
                    os.posix_fadvise(file, start, min(_READ_BYTES, order[-1] - start), os.POSIX_FADV_WILLNEED)
                    os.pread(file, 1, start - 1)
                os.pread(file, 1, order[-1] - 1)
    except OSError:
        pass

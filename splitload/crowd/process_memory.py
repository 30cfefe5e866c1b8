"""Memory of a worker's process: given back to the system as soon as it is free, and measured above the idle process.

glibc keeps what is freed for later, in a heap for each thread, and takes larger blocks from there the more of them it
has seen: tensors of a megabyte that come and go in five threads leave tens of megabytes behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from pathlib import Path

from splitload.base.memory import reset_peak, taken_bytes
from splitload.runtime import mapped

_MAPS = Path("/proc/self/maps")
_RUNTIME = "libonnxruntime."

# Source: malloc.h of glibc
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_LARGE_BYTES = 1 << 16  # blocks from here on are the system's own, and go back to it when they are freed


def return_early() -> None:
    """Have malloc give free memory back early; elsewhere than on Linux with glibc nothing changes."""
    if (libc := _glibc()) is not None:
        libc.mallopt(_ARENA_MAX, 1)
        libc.mallopt(_MMAP_THRESHOLD, _LARGE_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _LARGE_BYTES)


def drop_code() -> None:
    """Have the runtime's code leave memory: opening a stage takes much of it that running does not.

    Code is never written to, so that the system maps it again where it is needed.
    """
    if not _MAPS.exists():
        return
    places = []
    for line in _MAPS.read_text(errors="replace").splitlines():
        where, access, _, _, _, *name = line.split(None, 5)
        if access == "r-xp" and name and Path(name[0]).name.startswith(_RUNTIME):
            begin, end = where.split("-")
            places.append((int(begin, 16), int(end, 16)))
    mapped.drop(places)


def _glibc() -> ctypes.CDLL | None:
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "mallopt") else None


class MemoryMeter:
    """Resident memory of this process, as Linux counts it; None elsewhere. Mapped pages of files are part of it.

    Attributes:
        idle_bytes: What it took when this was made.
    """

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # then the peak is that since the process began, which is no less
            reset_peak()
        self.idle_bytes = taken_bytes("VmRSS")

    def peak_bytes(self) -> int | None:
        """Return the most that it took since this was made, above `idle_bytes`."""
        peak_bytes = taken_bytes("VmHWM")
        return None if peak_bytes is None or self.idle_bytes is None else max(0, peak_bytes - self.idle_bytes)

"""How much memory a process takes, and how much the system leaves it, as far as it tells (Linux).

What is left is what is available, and what the process's control group may have.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal

_GROUPS = "/sys/fs/cgroup"
_OWN = "/proc/self/cgroup"
_SYSTEM = "/proc/meminfo"
_KIB = 1024  # in which the kernel counts
_RESET_PEAK = "5"  # Source: proc_pid_clear_refs(5)


def taken_bytes(field: Literal["VmRSS", "VmHWM"], process: int | None = None) -> int | None:
    """Return the resident memory of a process, mapped files included; None where it has ended, or nothing tells.

    Args:
        field: "VmRSS" for now, "VmHWM" for the most since it began, or since `reset_peak`.
        process: Its number; None for this one.
    """
    try:
        return _named(f"/proc/{process or 'self'}/status", f"{field}:") * _KIB
    except (OSError, LookupError, ValueError):
        return None


def reset_peak(process: int | None = None) -> None:
    """Have "VmHWM" of a process begin anew, with what it takes now.

    Args:
        process: Its number; None for this one.

    Raises:
        OSError: If the system refuses, or the process has ended.
    """
    with open(f"/proc/{process or 'self'}/clear_refs", "w", encoding="ascii") as file:
        file.write(_RESET_PEAK)


def left_bytes() -> int | None:
    """Return what this process and the files that are cached for it may still take; None where nothing tells.

    Files that are cached now count as left: the system lets go of them where memory is asked for.
    """
    found = []
    try:
        found.append(_named(_SYSTEM, "MemAvailable:") * _KIB)
    except (OSError, LookupError, ValueError):
        pass
    for folder, (limit, usage, cached) in _groups():
        try:
            most = int(_text(f"{folder}/{limit}"))
            files = sum(_named(f"{folder}/memory.stat", name) for name in cached)
            found.append(most - int(_text(f"{folder}/{usage}")) + files)
        except (OSError, LookupError, ValueError):  # no such file at the root, or "max"
            pass
    return max(0, min(found)) if found else None


def _groups() -> Iterator[tuple[str, tuple[str, str, tuple[str, ...]]]]:
    """Yield the memory groups of this process and all above them, each with the names of what it tells."""
    second = "memory.max", "memory.current", ("inactive_file", "active_file")
    first = "memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")
    try:
        lines = _text(_OWN).splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root, names = (_GROUPS, second) if not controllers else (f"{_GROUPS}/memory", first)
        if controllers and "memory" not in controllers.split(","):
            continue
        while True:
            yield root + path.rstrip("/"), names
            if path in ("", "/"):
                break
            path = os.path.dirname(path)


def _named(path: str, name: str) -> int:
    """Return the number on the line of a file that begins with a name."""
    for line in _text(path).splitlines():
        words = line.split()
        if words and words[0] == name:
            return int(words[1])
    raise LookupError(name)


def _text(path: str) -> str:
    with open(path, encoding="ascii", errors="replace") as file:
        return file.read().strip()

"""Memory and processors of emulated devices: control groups, one of each for a device (Linux, cgroup version 1, root).

Source: the kernel's cgroup-v1/memory.rst and scheduler/sched-bwc.rst. Page cache counts as memory of the group that
first touched it; the system takes it back from there when the limit is reached.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from splitload.base.errors import StageError

ROOT = Path("/sys/fs/cgroup")
_NAME = "splitload-device-"
_PERIOD_US = 20_000  # a fifth of the system's own: a share of a processor is one at every moment
_KINDS = ("memory", "cpu")
_ENTER = 'for group in $1; do echo $$ > "$group/cgroup.procs" || exit 125; done; shift; exec "$@"'


def are_groups_there(root: Path = ROOT) -> bool:
    """Return whether this system has the groups that are needed here."""
    return all((root / kind / "cgroup.procs").is_file() for kind in _KINDS)


class Groups:
    """The groups of all emulated devices; one set at a time on a machine.

    Args:
        count: Devices.
        memory_bytes: What all that runs on one of them may take, page cache included.
        processors: How much of a processor it has.
        root: Where the groups are mounted.

    Raises:
        StageError: If the system refuses; what was made by then is removed.
    """

    def __init__(self, count: int, memory_bytes: int, processors: float, root: Path = ROOT) -> None:
        self._root = root
        settings = {
            "memory": {"memory.limit_in_bytes": memory_bytes},
            "cpu": {"cpu.cfs_period_us": _PERIOD_US, "cpu.cfs_quota_us": round(processors * _PERIOD_US)},
        }
        try:
            for number in range(count):
                for kind, values in settings.items():
                    group = self._group(kind, number)
                    group.mkdir()
                    for name, value in values.items():
                        (group / name).write_text(str(value), encoding="ascii")
        except OSError as error:
            self.close()
            raise StageError(f"cannot make control groups in '{root}': {error.strerror}") from error
        except BaseException:
            self.close()
            raise

    def within(self, number: int) -> tuple[str, ...]:
        """Return the words before a command that run it on a device; the process keeps its number."""
        groups = " ".join(str(self._group(kind, number)) for kind in _KINDS)
        return "sh", "-c", _ENTER, "sh", groups

    def kills(self, number: int) -> int:
        """Return how many processes the system has killed there for want of memory."""
        lines = (self._group("memory", number) / "memory.oom_control").read_text().splitlines()
        return int(dict(line.split() for line in lines).get("oom_kill", 0))

    def close(self) -> None:
        """Remove them; all processes in them have ended. May be called again.

        Raises:
            StageError: If one cannot be removed.
        """
        remove_groups(self._root)

    def _group(self, kind: str, number: int) -> Path:
        return self._root / kind / f"{_NAME}{number}"


def remove_groups(root: Path = ROOT) -> None:
    """Remove the groups of emulated devices, whoever has made them.

    Raises:
        StageError: If there is a process in one.
    """
    for group in (each for kind in _KINDS for each in (root / kind).glob(f"{_NAME}*")):
        for _ in range(40):  # the last process may still be leaving
            with suppress(FileNotFoundError):
                try:
                    group.rmdir()
                except OSError:
                    time.sleep(0.05)
                    continue
            break
        else:
            raise StageError(f"the control group '{group}' cannot be removed: a process is in it")


def members_of(root: Path = ROOT) -> set[int]:
    """Return the processes in the groups of emulated devices."""
    found: set[int] = set()
    for kind in _KINDS:
        for file in (root / kind).glob(f"{_NAME}*/cgroup.procs"):
            with suppress(OSError):
                found.update(map(int, file.read_text().split()))
    return found

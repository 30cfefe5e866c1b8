"""Control groups: processes of a study with less memory, processor or storage than this machine has (Linux, root).

They are those of cgroup version 1. Page cache counts as memory of the group that first touched it; the system takes it
back from there when the limit is reached. Pages of libraries that are cached already are charged to nobody there.

Source: the kernel's cgroup-v1/memory.rst, cgroup-v1/blkio-controller.rst and scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from splitload.base.errors import StageError
from splitload.measure.storage import disk_of

_ROOT = Path("/sys/fs/cgroup")
_ENTER = 'for group in $1; do echo $$ > "$group/cgroup.procs" || exit 125; done; shift; exec "$@"'


class ControlGroups:
    """Numbered sets of groups with the same limits, each set a group of every controller.

    Args:
        name: What the names of all begin with.
        count: How many sets there are.
        limits: What is written into the files of each group, by controller and file.

    Raises:
        StageError: If the system refuses; what was made by then is removed.
    """

    def __init__(self, name: str, count: int, limits: Mapping[str, Mapping[str, str]]) -> None:
        self._name, self._controllers = name, tuple(limits)
        try:
            for number in range(count):
                for controller, values in limits.items():
                    group = self._group(controller, number)
                    group.mkdir()
                    for file, value in values.items():
                        (group / file).write_text(value, encoding="ascii")
        except BaseException as error:
            self.close()
            if isinstance(error, OSError):
                raise StageError(f"cannot make control groups in '{_ROOT}': {error.strerror}") from error
            raise

    def within(self, number: int) -> tuple[str, ...]:
        """Return the words before a command that run it in a set; the process keeps its number."""
        groups = " ".join(str(self._group(controller, number)) for controller in self._controllers)
        return "sh", "-c", _ENTER, "sh", groups

    def set(self, number: int, controller: str, file: str, value: str) -> None:
        """Change a limit of one set.

        Raises:
            StageError: If the system refuses.
        """
        try:
            (self._group(controller, number) / file).write_text(value, encoding="ascii")
        except OSError as error:
            raise StageError(f"cannot write {value} into '{controller}/{file}': {error.strerror}") from error

    def told(self, number: int, file: str) -> dict[str, int]:
        """Return the figures of a file of a set's memory controller, one a line, by their names."""
        lines = (self._group("memory", number) / file).read_text().splitlines()
        return {name: int(value) for name, _, value in (line.partition(" ") for line in lines)}

    def kills(self, number: int) -> int:
        """Return how many processes the system has killed in a set, which limits memory, for want of it."""
        return self.told(number, "memory.oom_control").get("oom_kill", 0)

    def close(self) -> None:
        """Remove them; all processes in them have ended. May be called again.

        Raises:
            StageError: If there is a process in one.
        """
        remove_groups(self._name, self._controllers)

    def _group(self, controller: str, number: int) -> Path:
        return _ROOT / controller / f"{self._name}{number}"


def are_mounted(controllers: Collection[str]) -> bool:
    """Return whether this system has controllers of cgroup version 1."""
    return all((_ROOT / controller / "cgroup.procs").is_file() for controller in controllers)


def remove_groups(name: str, controllers: Collection[str]) -> None:
    """Remove the groups whose names begin with a name, whoever has made them.

    Raises:
        StageError: If there is a process in one.
    """
    for group in (each for controller in controllers for each in (_ROOT / controller).glob(f"{name}*")):
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


def members_of(name: str, controllers: Collection[str]) -> set[int]:
    """Return the processes in the groups whose names begin with a name."""
    found: set[int] = set()
    for controller in controllers:
        for file in (_ROOT / controller).glob(f"{name}*/cgroup.procs"):
            with suppress(OSError):
                found.update(map(int, file.read_text().split()))
    return found


@contextmanager
def small_machine(memory_bytes: int, storage_bytes_per_s: int, files: Path) -> Iterator[tuple[str, ...]]:
    """Yield the words before a command that run it with so much memory for everything, and storage so fast.

    Args:
        memory_bytes: Of the machine, page cache included.
        storage_bytes_per_s: What it reads in a second.
        files: A file on the disk that is capped.

    Raises:
        StageError: If this system has no such groups, this process may not make them, or one of its processes stays.
    """
    limits = {
        "memory": {"memory.limit_in_bytes": str(memory_bytes)},
        "blkio": {"blkio.throttle.read_bps_device": f"{disk_of(files)} {storage_bytes_per_s}"},
    }
    if not are_mounted(limits):
        raise StageError("the groups of this study are of cgroup version 1, which this system does not have")
    groups = ControlGroups(f"splitload-study-{os.getpid()}-", 1, limits)
    try:
        yield groups.within(0)
    finally:
        groups.close()

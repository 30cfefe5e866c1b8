"""Processes of emulated devices: each is listed in a file once it is there, so that none outlives its study for long.

The list is locked while a study runs, which the system undoes however it ends: one study at a time has emulated
devices, and the next one ends what a killed one has left. A process is known by its number and the moment it started,
as numbers come again.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Protocol

from splitload.base.errors import StageError
from splitload.measure.process import python

_END_S = 10.0
_LINE = re.compile(r"^(\d+) (\d+)$", re.MULTILINE)  # number of a process, and when it started


def ledger_path() -> Path:
    """Return where the processes of this user's emulated devices are listed."""
    return Path(tempfile.gettempdir()) / f"splitload-emulated-{os.geteuid()}"


class Closes(Protocol):
    """A place where processes ran."""

    def close(self) -> None:
        """Remove it."""
        ...


class Processes:
    """The processes of one study; those that another has left are ended first.

    Args:
        ledger: The file that lists them.

    Raises:
        StageError: If another study has emulated devices now, or the file is not this user's.
    """

    def __init__(self, ledger: Path) -> None:
        import fcntl

        try:
            self._ledger = os.open(ledger, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StageError(f"cannot list processes in '{ledger}': {error.strerror}") from error
        self._started: list[subprocess.Popen[bytes]] = []
        try:
            if os.fstat(self._ledger).st_uid != os.geteuid():
                raise StageError(f"'{ledger}' belongs to another user; remove it")
            fcntl.flock(self._ledger, fcntl.LOCK_EX | fcntl.LOCK_NB)
            listed = os.pread(self._ledger, 1 << 20, 0).decode(errors="replace")
            self.end_left(int(pid) for pid, start in _LINE.findall(listed) if start == start_of(int(pid)))
            os.ftruncate(self._ledger, 0)
        except BlockingIOError as error:
            os.close(self._ledger)
            raise StageError("another study has emulated devices on this machine; wait until it ends") from error
        except BaseException:
            os.close(self._ledger)
            raise

    def start(self, words: Sequence[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        """Start a process in a session of its own.

        Args:
            words: Its command.
            log: Where what it prints is added.
            environment: Variables that it has beside this process's.

        Raises:
            StageError: If it cannot be started.
        """
        with log.open("ab") as output:
            try:
                process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env={**os.environ, **environment},
                    start_new_session=True,  # a Ctrl-C in the terminal is for the study, which ends them
                )
            except OSError as error:
                raise StageError(f"cannot start '{words[0]}': {error.strerror}") from error
        self._started.append(process)
        os.lseek(self._ledger, 0, os.SEEK_END)
        os.write(self._ledger, f"{process.pid} {start_of(process.pid)}\n".encode())
        return process

    def end_left(self, processes: Iterable[int]) -> None:
        """Kill processes of a study that is no more.

        Raises:
            StageError: If one does not end.
        """
        left = set(processes) - {process.pid for process in self._started}
        for process in left:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        deadline_s = time.monotonic() + _END_S
        while any(start_of(process) is not None for process in left):
            if time.monotonic() > deadline_s:
                raise StageError(f"the processes {sorted(left)} of a study that was killed do not end")
            time.sleep(0.01)

    def end_all(self) -> None:
        """Kill those that were started."""
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()
        self._started.clear()

    def close(self) -> None:
        """Kill all of them, and let another study have emulated devices; may be called again."""
        if self._ledger < 0:
            return
        self.end_all()
        os.ftruncate(self._ledger, 0)
        os.close(self._ledger)
        self._ledger = -1


@contextmanager
def ending(processes: Processes, *places: Closes | None) -> Iterator[None]:
    """A block at the end of processes: behind it they are killed, where they ran is removed, and their list goes."""
    with ExitStack() as last:
        last.callback(processes.close)
        for place in places:
            if place is not None:
                last.callback(place.close)
        last.callback(processes.end_all)
        yield


def start_of(process: int) -> str | None:
    """Return when a process started, in ticks since the system did; None if there is none, or it has ended."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # Source: proc_pid_stat(5), fields 3 and 22


def splitload(*words: str | Path) -> tuple[str, ...]:
    """Return the command `splitload WORDS` of this installation."""
    return tuple(python("splitload.__main__", *map(str, words)))

"""Emulated devices: processes with the memory, the processor and the link of a small device, as a crowd of workers.

Each is `splitload crowd worker` in a control group and a network namespace of its own; the scheduler is `splitload
crowd scheduler`, and both sides of each connection show certificates. Without root, or without version 1 of control
groups, they are plain processes on the loopback interface: `Emulation.missing` says what does not hold then.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from splitload.base.errors import ClusterError, StageError
from splitload.base.memory import reset_peak, taken_bytes
from splitload.base.scratch import scratch_folder
from splitload.base.sizes import megabytes
from splitload.crowd.certificates import make_certificates
from splitload.crowd.remote import connected
from splitload.crowd.settings import ONE_HOST
from splitload.studies.control_groups import ControlGroups, are_mounted, members_of, remove_groups
from splitload.studies.emulated_network import DESK_HOST, Network, remove_network
from splitload.studies.emulated_processes import Processes, ending, ledger_path, splitload

DEVICES, CONTROLLERS = "splitload-device-", ("memory", "cpu")  # of the groups of devices: names, and what they limit
_PERIOD_US = 20_000  # a fifth of the system's own: a share of a processor is one at every moment
START_S = 90.0  # of workers: a third of a processor imports for ten seconds, and all start at once
_IDLE_BYTES = 60_000_000  # of a worker without stages
_LISTENS = re.compile(r"listens at (tls://[\w.]+:\d+)")
_FORGOTTEN_S = 5.0
_LOOK_EVERY_S = 0.05


@dataclass(frozen=True)
class Limits:
    """What an emulated device has.

    Attributes:
        memory_bytes: For everything on it, page cache included.
        processors: How much of one processor of this machine.
        link_bits_per_s: In each direction.
    """

    memory_bytes: int = 160_000_000
    processors: float = 0.35
    link_bits_per_s: int = 40_000_000

    @property
    def stages_bytes(self) -> int:
        """What its worker says that stages may take."""
        return self.memory_bytes - _IDLE_BYTES

    def of_groups(self) -> dict[str, dict[str, str]]:
        """Return the limits of a device's control groups, see `ControlGroups`."""
        quota_us = round(self.processors * _PERIOD_US)
        return {
            "memory": {"memory.limit_in_bytes": str(self.memory_bytes)},
            "cpu": {"cpu.cfs_period_us": str(_PERIOD_US), "cpu.cfs_quota_us": str(quota_us)},
        }


class Emulation:
    """A crowd of emulated devices, named device-1 and so on; a context manager that leaves nothing behind.

    What a study that was killed has left is removed first. Links, memory and processors of the scheduler and of this
    process, the client, have no limits.

    Attributes:
        client: A `distributed.Client` of it.
        names: Of the devices.
        missing: What does not hold of the limits here, a sentence each.

    Args:
        count: Devices.
        limits: What each has.
        folder: Where files of a run are put, on a disk; what was there is left alone.
        limited: Whether the limits hold; by default where the system can have them.

    Raises:
        StageError: If the system refuses.
        ClusterError: If a worker does not start.
    """

    def __init__(self, count: int, limits: Limits, folder: Path, *, limited: bool | None = None) -> None:
        can = os.geteuid() == 0 and are_mounted(CONTROLLERS)
        self._limits, self._limited = limits, can if limited is None else limited
        self.names = tuple(f"device-{number + 1}" for number in range(count))
        self.missing = () if self._limited else _missing(limits)
        self._network: Network | None = None
        self._groups: ControlGroups | None = None
        self._workers: dict[str, subprocess.Popen[bytes]] = {}
        self._exit = contextlib.ExitStack()
        try:
            self._folder = self._exit.enter_context(scratch_folder(folder, "splitload-emulated."))
            self._processes = Processes(ledger_path())
            self._exit.callback(self._end)
            if self._limited:
                self._processes.end_left(members_of(DEVICES, CONTROLLERS))
                remove_groups(DEVICES, CONTROLLERS)
                remove_network()
                self._groups = ControlGroups(DEVICES, count, limits.of_groups())
                self._network = Network(count, limits.link_bits_per_s)
            self._keys = self._folder / "keys"
            make_certificates(self._keys)
            self._address = self._start_scheduler()
            for name in self.names:
                self._start_worker(name)
            self.client = self._exit.enter_context(connected(self._address, self._keys))
            self.wait()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the crowd and remove its devices; may be called again."""
        self._exit.close()

    def wait(self, names: Collection[str] | None = None) -> None:
        """Wait until devices are part of the crowd; all by default.

        Raises:
            ClusterError: If one has ended, or does not come.
        """
        wanted = set(self.names if names is None else names)
        deadline_s = time.monotonic() + START_S
        while lacking := wanted - {each["name"] for each in self._joined().values()}:
            for name in sorted(lacking):
                if self._workers[name].poll() is not None:
                    raise ClusterError(f"the worker of {name} has ended: {self._last_words(name)}")
            if time.monotonic() > deadline_s:
                name = min(lacking)
                raise ClusterError(f"{name} did not join within {START_S:.0f} s: {self._last_words(name)}")
            time.sleep(_LOOK_EVERY_S)

    def disk_of(self, name: str) -> Path:
        """Return the folder in which a device keeps stages."""
        return self._folder / "cache" / "crowd" / name

    def restart_all(self, fill: Callable[[Path], None] | None = None) -> None:
        """End all workers at once, and start them anew, so that none has memory of what it did.

        Args:
            fill: Puts into the folder of each device's stages what is to be there.

        Raises:
            ClusterError: If one does not start.
        """
        for name in self.names:
            self.kill(name)
        while self._joined():
            time.sleep(_LOOK_EVERY_S)
        for name in self.names:
            if fill is not None:
                fill(self.disk_of(name))
            self._start_worker(name)
        self.wait()

    def address_of(self, name: str) -> str | None:
        """Return where the worker of a device listens; None where it is not part of the crowd."""
        return next((address for address, each in self._joined().items() if each["name"] == name), None)

    def kill(self, name: str) -> float:
        """Kill the worker of a device; return when, of `time.perf_counter`."""
        process = self._workers[name]
        at_s = time.perf_counter()
        process.kill()
        process.wait()
        return at_s

    def restart(self, name: str) -> None:
        """Start the worker of a device again, whose disk is as it was, without waiting for it.

        Raises:
            StageError: If it runs.
        """
        if self._workers[name].poll() is None:
            raise StageError(f"the worker of {name} runs already")
        deadline_s = time.monotonic() + _FORGOTTEN_S
        while self.address_of(name) is not None and time.monotonic() < deadline_s:
            time.sleep(_LOOK_EVERY_S)  # until the scheduler knows, which takes a worker of the same name for a mistake
        self._start_worker(name)

    def freeze(self, name: str) -> None:
        """Have a device stand still."""
        self._workers[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Have it go on."""
        self._workers[name].send_signal(signal.SIGCONT)

    @contextlib.contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """Cut the link of a device until the block ends; where links are not emulated, it stands still meanwhile."""
        number = self.names.index(name)
        if self._network is None:
            self.freeze(name)
        else:
            self._network.cut(number)
        try:
            yield
        finally:
            if self._network is None:
                self.thaw(name)
            else:
                self._network.mend(number)

    def reset_peaks(self) -> None:
        """Have `peak_bytes` of all devices begin anew."""
        for process in self._workers.values():
            with contextlib.suppress(OSError):  # it has ended
                reset_peak(process.pid)

    def resident_bytes(self, name: str) -> int | None:
        """Return the resident memory of a device's worker, as the system counts it; None if it has ended."""
        return taken_bytes("VmRSS", self._workers[name].pid)

    def peak_bytes(self, name: str) -> int | None:
        """Return the most of it since `reset_peaks`, or since it started; None if it has ended."""
        return taken_bytes("VmHWM", self._workers[name].pid)

    def out_of_memory(self) -> int | None:
        """Return how many workers the system has killed because they needed more memory than their device has."""
        return None if self._groups is None else sum(map(self._groups.kills, range(len(self.names))))

    def _joined(self) -> dict[str, Any]:
        found: dict[str, Any] | None = self.client.scheduler_info(n_workers=-1).get("workers")
        if found is None:  # as Dask answers without a scheduler
            raise ClusterError(f"the scheduler is gone: {self._last_words('scheduler')}")
        return found

    def _start_scheduler(self) -> str:
        host = ONE_HOST if self._network is None else DESK_HOST
        words = splitload("crowd", "scheduler", "--host", host, "--port", "0", "--certificates", self._keys)
        log = self._folder / "scheduler.log"
        process = self._processes.start(words, log, self._environment())
        deadline_s = time.monotonic() + START_S
        while (found := _LISTENS.search(log.read_text(errors="replace"))) is None:
            if process.poll() is not None or time.monotonic() > deadline_s:
                raise ClusterError(f"the scheduler does not start: {self._last_words('scheduler')}")
            time.sleep(_LOOK_EVERY_S)
        return found[1]

    def _start_worker(self, name: str) -> None:
        words = splitload(
            "crowd", "worker", self._address, "--name", name, "--certificates", self._keys, "--memory",
            str(self._limits.stages_bytes),
        )  # fmt: skip
        number = self.names.index(name)
        if self._network is not None and self._groups is not None:
            words = (*self._groups.within(number), *self._network.within(number), *words)
        self._workers[name] = self._processes.start(words, self._folder / f"{name}.log", self._environment())

    def _environment(self) -> dict[str, str]:
        return {"SPLITLOAD_CACHE": str(self._folder / "cache"), "TMPDIR": str(self._folder)}

    def _last_words(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "it said nothing")

    def _end(self) -> None:
        with ending(self._processes, self._groups, self._network):
            pass  # workers are given no time

    def __enter__(self) -> Emulation:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _missing(limits: Limits) -> tuple[str, ...]:
    """Return what does not hold where devices are plain processes."""
    return (
        f"a worker may take more memory than {megabytes(limits.memory_bytes)}",
        f"it may use more than {limits.processors:g} of a processor",
        f"its link is the loopback interface, not {limits.link_bits_per_s / 1e6:g} Mbit/s, and where a link is cut the "
        "worker stands still instead",
    )

"""An emulated pair that shares inferences: a weak device and a server, each in a namespace and groups (Linux, root).

The device has a share of one of this machine's processors, the server the other one; between them lies a link with a
cap. Both see this machine's files.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from splitload.base.errors import DeviceError, SplitloadError, StageError
from splitload.base.scratch import scratch_folder
from splitload.measure.job import Job
from splitload.measure.process import python
from splitload.studies.control_groups import ControlGroups, are_mounted, members_of, remove_groups
from splitload.studies.emulated_network import Network, remove_network
from splitload.studies.emulated_processes import Processes, ending, ledger_path, splitload
from splitload.studies.emulation import DEVICES

CONTROLLERS = ("cpuset", "cpu")
DEVICE, SERVER = 0, 1
NAMES = ("device", "server")
DEVICE_SHARE = 0.25
_PERIOD_US = 5_000  # a share of a processor is one at every moment, see `device_classes`
_ADDRESS = re.compile(r"tls://\S+")
_START_S = 60.0
_LOOK_EVERY_S = 0.05


class EmulatedMachine:
    """One of a pair, whose jobs are done in fresh processes there.

    Args:
        pair: The pair.
        number: `DEVICE` or `SERVER`.
    """

    def __init__(self, pair: EmulatedPair, number: int) -> None:
        self._pair, self._number = pair, number
        self.name = f"the emulated {NAMES[number]}"

    def run(
        self, job: Job, folder: Path, failed: Callable[[str], SplitloadError], *, cold: Sequence[Path] = ()
    ) -> dict[str, Any]:
        """Do a job on a shared inference whose files lie in a folder; nothing can be cold.

        Raises:
            SplitloadError: If it fails.
        """
        try:
            return dict(self._pair.ask(self._number, "timed", message=job.to_json(), folder=str(folder)))
        except StageError as error:
            raise failed(str(error)) from error


class EmulatedPair:
    """Two machines; a context manager that leaves nothing behind.

    Args:
        bits_per_s: Of the link, in each direction.
        folder: Where logs and what they know each other by are kept.

    Raises:
        StageError: If the system refuses, or cannot do this.
    """

    def __init__(self, bits_per_s: int, folder: Path) -> None:
        if os.geteuid() != 0 or not are_mounted(CONTROLLERS):
            raise StageError("an emulated pair needs root, and control groups of version 1: " + ", ".join(CONTROLLERS))
        self._exit = contextlib.ExitStack()
        self._groups: ControlGroups | None = None
        self._network: Network | None = None
        try:
            self._folder = self._exit.enter_context(scratch_folder(folder, "splitload-pair."))
            self._processes = Processes(ledger_path())
            self._exit.callback(self._end)
            self._processes.end_left(members_of(DEVICES, CONTROLLERS))
            remove_groups(DEVICES, CONTROLLERS)
            remove_network()
            self._groups = ControlGroups(DEVICES, 2, {"cpuset": {"cpuset.mems": "0", "cpuset.cpus": "0"}, "cpu": {}})
            self._groups.set(SERVER, "cpuset", "cpuset.cpus", "1")
            self._groups.set(DEVICE, "cpu", "cpu.cfs_period_us", str(_PERIOD_US))
            self._groups.set(DEVICE, "cpu", "cpu.cfs_quota_us", str(round(DEVICE_SHARE * _PERIOD_US)))
            self._network = Network(2, bits_per_s, offloads=True)
        except BaseException:
            self.close()
            raise

    def serve(self, bundle: Path) -> str:
        """Have the server serve the collaboration of a bundle, and return its address.

        Raises:
            DeviceError: If it does not start.
        """
        assert self._network is not None  # noqa: S101
        log = self._folder / "server.log"
        words = splitload("collaborate", "serve", bundle, "--host", self._network.host(SERVER), "--port", "0")
        process = self._processes.start(self._on(SERVER, words), log, {"SPLITLOAD_CACHE": str(self._folder)})
        deadline_s = time.monotonic() + _START_S
        while (found := _ADDRESS.search(text := log.read_text(errors="replace"))) is None:
            if process.poll() is not None or time.monotonic() > deadline_s:
                said = next((line for line in reversed(text.split("\n")) if line.strip()), "it said nothing")
                raise DeviceError(f"the emulated server does not start: {said}")
            time.sleep(_LOOK_EVERY_S)
        return found[0]

    def limit(self, bits_per_s: int) -> None:
        """Change the cap of the device's link; that of the server's stays as it is."""
        assert self._network is not None  # noqa: S101
        self._network.limit(DEVICE, bits_per_s)

    def machine(self, number: int) -> EmulatedMachine:
        """Return a machine as one that is measured."""
        return EmulatedMachine(self, number)

    def ask(self, number: int, what: str, **words: Any) -> Any:
        """Have a machine do what `shared_child` can, in a process of its own, and return what it answers.

        Args:
            number: `DEVICE` or `SERVER`.
            what: The name of what is done.
            words: What it is told.

        Raises:
            StageError: If it fails.
        """
        command = self._on(number, python("splitload.studies.shared_child", what, json.dumps(words)))
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or [f"it ended with {done.returncode}"]
            raise StageError(f"the emulated {NAMES[number]} fails: {said[-1][:300]}")
        return json.loads(done.stdout.splitlines()[-1])

    def close(self) -> None:
        """End both machines; may be called again."""
        self._exit.close()

    def _on(self, number: int, words: Sequence[str]) -> list[str]:
        assert self._groups is not None and self._network is not None  # noqa: S101
        return [*self._groups.within(number), *self._network.within(number), *words]

    def _end(self) -> None:
        with ending(self._processes, self._groups, self._network):
            self._processes.end_all()
            self._processes.end_left(members_of(DEVICES, CONTROLLERS))

    def __enter__(self) -> EmulatedPair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

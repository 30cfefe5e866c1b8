"""An emulated device: `splitload serve` in a network namespace and in control groups of its own (Linux, root).

This process is the desk: it reaches the device over TLS, by the code that the service shows, and shares no file with
it. All processes of the device, those that measure among them, have its limits. What a study that was killed has left
is removed first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType

from splitload.base.errors import DeviceError, StageError
from splitload.base.scratch import scratch_folder
from splitload.deploy.openapi import PORT
from splitload.studies.control_groups import ControlGroups, are_mounted, members_of, remove_groups
from splitload.studies.device_classes import CLASSES, DeviceClass
from splitload.studies.emulated_disk import EmulatedDisk
from splitload.studies.emulated_network import Network, remove_network
from splitload.studies.emulated_processes import Processes, ending, ledger_path, splitload
from splitload.studies.emulation import DEVICES
from splitload.studies.served_process import LISTENS

CONTROLLERS = ("memory", "cpuset", "cpu")
START_S = 120.0  # a quarter of a processor imports for ten seconds, and storage is measured
_END_S = 15.0
_LOOK_EVERY_S = 0.05
_NUMBER = 0  # of the one device among those of a network


class EmulatedDevice:
    """A device of a class, which serves; a context manager that leaves nothing behind, also where it is interrupted.

    Attributes:
        kind: Its class.
        url: Its address, with its code.

    Args:
        kind: Its class.
        folder: Where its disk is, and stays: the next device of this class has the same files, and the same code.

    Raises:
        StageError: If the system refuses, or cannot do this.
        DeviceError: If the service does not start.
    """

    def __init__(self, kind: DeviceClass, folder: Path) -> None:
        if os.geteuid() != 0 or not are_mounted(CONTROLLERS):
            raise StageError("emulated devices need root, and control groups of version 1: " + ", ".join(CONTROLLERS))
        self.kind = kind
        self._port = PORT + list(CLASSES).index(kind.name)  # a desk knows each class by another one
        self._service: subprocess.Popen[bytes] | None = None
        self._groups: ControlGroups | None = None
        self._storage: EmulatedDisk | None = None
        self._network: Network | None = None
        self._exit = contextlib.ExitStack()
        try:
            self._disk = folder / f"device-{kind.name}"
            self._disk.mkdir(parents=True, exist_ok=True)
            self._folder = self._exit.enter_context(scratch_folder(folder, "splitload-served."))
            self._processes = Processes(ledger_path())
            self._exit.callback(self._end)
            self._processes.end_left(members_of(DEVICES, CONTROLLERS))
            remove_groups(DEVICES, CONTROLLERS)
            remove_network()
            self._groups = ControlGroups(DEVICES, 1, kind.limits())
            self._network = Network(1, kind.link_bits_per_s)
            if kind.storage_bytes_per_s is not None:
                image = folder / f"disk-{kind.name}.img"
                self._storage = EmulatedDisk(image, self._disk, kind.storage_bytes_per_s)
            self.url = self._served(self._groups, self._network)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the service and remove the device; may be called again."""
        self._exit.close()

    def limit_memory(self, size_bytes: int | None) -> None:
        """Let everything on the device, cached files included, have so much memory; None for all there is.

        Raises:
            StageError: If the system refuses.
        """
        assert self._groups is not None  # noqa: S101
        self._groups.set(_NUMBER, "memory", "memory.limit_in_bytes", str(-1 if size_bytes is None else size_bytes))

    def resident_bytes(self) -> int:
        """Return the memory of the device's processes that is of no file: the service's where nothing is measured."""
        assert self._groups is not None  # noqa: S101
        return self._groups.told(_NUMBER, "memory.stat")["total_rss"]

    def kills(self) -> int:
        """Return how many of its processes the system has killed for want of memory."""
        assert self._groups is not None  # noqa: S101
        return self._groups.kills(_NUMBER)

    def _served(self, groups: ControlGroups, network: Network) -> str:
        log = self._folder / "serve.log"
        words = (
            *groups.within(_NUMBER),
            *network.within(_NUMBER),
            *splitload("serve", "--host", network.host(_NUMBER), "--port", str(self._port), "--cache-size", "3GB"),
            *("--name", f"emulated-{self.kind.name}"),
        )
        environment = {"SPLITLOAD_CACHE": str(self._disk), "TMPDIR": str(self._folder)}
        self._service = self._processes.start(words, log, environment)
        deadline_s = time.monotonic() + START_S
        while (found := LISTENS.search(text := log.read_text(errors="replace"))) is None:
            if self._service.poll() is not None or time.monotonic() > deadline_s:
                said = next((line for line in reversed(text.split("\n")) if line.strip()), "it said nothing")
                raise DeviceError(f"the emulated device does not start to serve: {said}")
            time.sleep(_LOOK_EVERY_S)
        return found[1]

    def _end(self) -> None:
        with ending(self._processes, self._storage, self._groups, self._network):
            if self._service is not None and self._service.poll() is None:
                self._service.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._service.wait(_END_S)
            self._processes.end_all()
            self._processes.end_left(members_of(DEVICES, CONTROLLERS))  # what measured has the service's groups

    def __enter__(self) -> EmulatedDevice:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

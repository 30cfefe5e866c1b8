"""Slow storage: cap what this process and those it starts read from a disk, through a cgroup of its own (Linux, root).

Source: the kernel's cgroup-v1/blkio-controller.rst (blkio.throttle.read_bps_device) and cgroup-v2.rst (io.max).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from splitload.bench import pagecache
from splitload.errors import StageError

PROBE_BYTES = 64_000_000
_CANNOT = "--storage-mbps cannot cap reads here: "
_GROUP = "splitload-bench-"


@dataclass(frozen=True, slots=True)
class Controller:
    """The hierarchy of cgroups that throttles block devices.

    Attributes:
        root: Where it is mounted.
        version: 1 (blkio) or 2 (io).
        home: The group this process is in.
    """

    root: Path
    version: int
    home: Path

    @classmethod
    def find(cls, proc: Path = Path("/proc/self")) -> Controller:
        """Return the one of this system.

        Args:
            proc: Where the system tells of this process.

        Raises:
            StageError: If there is none, or this process is not root's.
        """
        if not hasattr(os, "geteuid") or os.geteuid() != 0:
            raise StageError(f"{_CANNOT}it needs root")
        try:
            mounts = [line.split() for line in (proc / "mounts").read_text(encoding="utf-8").splitlines()]
            groups = [line.split(":", 2) for line in (proc / "cgroup").read_text(encoding="utf-8").splitlines()]
        except OSError as error:
            raise StageError(f"{_CANNOT}it needs Linux with cgroups") from error
        for _, folder, kind, flags, *_ in mounts:
            root = Path(folder)
            if kind == "cgroup" and "blkio" in flags.split(","):
                names = [path for _, controllers, path in groups if "blkio" in controllers.split(",")]
                return cls(root, 1, _home(root, names[0]))
            if kind == "cgroup2" and "io" in _read(root / "cgroup.controllers").split():
                names = [path for number, _, path in groups if number == "0"]
                return cls(root, 2, _home(root, names[0]))
        raise StageError(f"{_CANNOT}no cgroup controller for block devices is mounted (blkio, or io of version 2)")

    @contextmanager
    def capped(self, files: Iterable[Path], bytes_per_s: int) -> Iterator[None]:
        """Cap what is read from the disks that hold the files, together in this process and all it starts.

        The process moves into a group of its own; at the end, however that comes, it moves back, and the group is
        removed. What it started must have ended by then. The kernel accounts for a tenth of a second at a time and
        grants that much at once, so that reads which would take less are not slowed.

        Raises:
            StageError: If the system refuses, or a file lies on no disk of its own.
        """
        disks = sorted({_disk(file) for file in files})
        group = self.root / f"{_GROUP}{os.getpid()}"
        for left in self.root.glob(f"{_GROUP}*"):  # by processes that were killed
            with suppress(OSError):
                left.rmdir()
        try:
            if self.version == 2 and "io" not in _read(self.root / "cgroup.subtree_control").split():
                (self.root / "cgroup.subtree_control").write_text("+io", encoding="ascii")
            group.mkdir()
        except OSError as error:
            raise StageError(f"{_CANNOT}{error.strerror} ({self.root})") from error
        try:
            for disk in disks:
                if self.version == 2:
                    (group / "io.max").write_text(f"{disk} rbps={bytes_per_s}", encoding="ascii")
                else:
                    (group / "blkio.throttle.read_bps_device").write_text(f"{disk} {bytes_per_s}", encoding="ascii")
            (group / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
        except OSError as error:
            group.rmdir()
            raise StageError(f"{_CANNOT}{error.strerror} for disk {', '.join(disks)}") from error
        try:
            yield
        finally:
            (self.home / "cgroup.procs").write_text(str(os.getpid()), encoding="ascii")
            for _ in range(20):  # the last child may still be leaving
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.05)


def read_bytes_per_s(folder: Path) -> float:
    """Measure how fast a file of `PROBE_BYTES` that is not cached is read from the disk of `folder`.

    Raises:
        StageError: If it cannot be evicted.
        OSError: If it cannot be written.
    """
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".storage-") as made:
        chunk = bytes(1_000_000)
        for _ in range(PROBE_BYTES // len(chunk)):
            made.write(chunk)
        made.flush()
        pagecache.evict([Path(made.name)])
        with Path(made.name).open("rb", buffering=0) as file:
            start = time.perf_counter()
            while file.read(len(chunk)):
                pass
            return PROBE_BYTES / (time.perf_counter() - start)


def _disk(file: Path, devices: Path = Path("/sys/dev/block")) -> str:
    """Return the whole disk a file lies on as MAJOR:MINOR; partitions are not throttled."""
    number = file.stat().st_dev
    name = f"{os.major(number)}:{os.minor(number)}"
    device = devices / name
    if not device.exists():
        raise StageError(f"{_CANNOT}'{file.name}' lies on no disk (a memory disk, network or layered file system)")
    return (device.resolve().parent / "dev").read_text().strip() if (device / "partition").exists() else name


def _home(root: Path, name: str) -> Path:
    """Return the folder of a group; in a container its name may be one of the outer system's."""
    home = root / name.lstrip("/")
    return home if (home / "cgroup.procs").exists() else root


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii")
    except OSError:
        return ""

"""Slow storage: cap what this process and those it starts read from a disk, through a cgroup of its own (Linux, root).

Source: the kernel's cgroup-v1/blkio-controller.rst (blkio.throttle.read_bps_device) and cgroup-v2.rst (io.max).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from splitload.base.errors import StageError
from splitload.base.scratch import scratch_folder
from splitload.measure import pagecache

_CHUNK_BYTES = 1 << 20
_SLICE_S = 0.2  # twice what the kernel accounts for at a time
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
        disks = sorted({disk_of(file) for file in files})
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


@contextmanager
def reader(folder: Path, size: int) -> Iterator[Callable[[int], float]]:
    """Yield a function that tells how many seconds it takes to read so many bytes from the disk of `folder`.

    They are read in order from a file that is not cached, all asked for at once. What the system grants a reader at
    once, before a cap begins to tell, is in it as it is in a load.

    Args:
        folder: Where to put the file.
        size: The most bytes that will be asked for.

    Raises:
        StageError: If the file cannot be evicted, when the function is called.
        OSError: If it cannot be written.
    """
    with scratch_folder(folder, ".storage-") as place, (place / "file").open("wb") as made:
        chunk = os.urandom(_CHUNK_BYTES)
        for _ in range(-(-size // len(chunk))):
            made.write(chunk)
        made.flush()

        def read_s(count: int) -> float:
            pagecache.evict([Path(made.name)])
            time.sleep(_SLICE_S)  # what was read before no longer counts
            with Path(made.name).open("rb", buffering=0) as file:
                start = time.perf_counter()
                os.posix_fadvise(file.fileno(), 0, count, os.POSIX_FADV_WILLNEED)
                while file.tell() < count and file.read(min(_CHUNK_BYTES, count - file.tell())):
                    pass
                return time.perf_counter() - start

        yield read_s


def disk_of(file: Path, devices: Path = Path("/sys/dev/block")) -> str:
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

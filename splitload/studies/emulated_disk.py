"""The disk of an emulated device: it reads no faster than it may, at every moment (Linux, root, FUSE).

A file system in user space has one file, the image of the disk, and answers each read when storage of that speed would
be done with it. A loop device makes a disk of that file, with ext4 on it. The block throttle of control groups is no
such storage: what a tenth of a second allows passes at once, so that a small model loads sooner than such storage could
read it, and by how much depends on where in that tenth it begins.

Source: fuse(4), losetup(8). `python -m splitload.studies.emulated_disk IMAGE FOLDER BYTES_PER_S` is the file system.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from splitload.base.errors import StageError
from splitload.base.packages import need
from splitload.measure.process import python
from splitload.studies.system_commands import run

IMAGE_BYTES = 4 << 30  # sparse: it takes what was written
FILE = "disk"
_SLACK_S = 0.004  # that a read may begin late and still be done in time
_START_S = 10.0
_LOOK_EVERY_S = 0.02
_MOST_READ_BYTES = 1 << 20


_command = partial(run, what="a disk", package="e2fsprogs and util-linux")


class EmulatedDisk:
    """A disk, mounted; what a killed study has left of it is removed first.

    Args:
        image: Its image, which stays; made where there is none.
        folder: Where it is mounted; an empty folder.
        bytes_per_s: What it reads in a second.

    Raises:
        StageError: If the system refuses.
        MissingPackageError: If mfusepy is not installed.
    """

    def __init__(self, image: Path, folder: Path, bytes_per_s: int) -> None:
        need("an emulated disk", "mfusepy")
        self._folder, self._source = folder, image.with_suffix(".fuse")
        self._server: subprocess.Popen[bytes] | None = None
        self.close()
        if not image.exists():
            made = image.with_suffix(".new")
            with made.open("wb") as file:
                file.truncate(IMAGE_BYTES)
            _command(("mkfs.ext4", "-q", "-F", "-m", "0", str(made)))
            made.rename(image)
        for each in (folder, self._source):
            each.mkdir(parents=True, exist_ok=True)
        self._server = subprocess.Popen(
            python("splitload.studies.emulated_disk", str(image), str(self._source), str(bytes_per_s)),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            deadline_s = time.monotonic() + _START_S
            while not (self._source / FILE).exists():
                if self._server.poll() is not None or time.monotonic() > deadline_s:
                    raise StageError("a file system in user space cannot be mounted; install fuse3")
                time.sleep(_LOOK_EVERY_S)
            device = _command(("losetup", "--find", "--show", "--direct-io=on", str(self._source / FILE))).strip()
            _command(("mount", "-o", "noatime", device, str(folder)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Unmount it; may be called again."""
        if os.path.ismount(self._folder):
            _command(("umount", str(self._folder)))
        for line in _command(("losetup", "--list", "--noheadings", "--output", "NAME,BACK-FILE")).splitlines():
            name, _, file = line.partition(" ")
            if file.strip() == str(self._source / FILE):
                _command(("losetup", "--detach", name))
        if os.path.ismount(self._source):
            _command(("umount", str(self._source)))  # its file system ends then
        if self._server is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._server.wait(_START_S)
            self._server.kill()
            self._server.wait()


class Pace:
    """When reads are done that come one after the other on storage of some speed.

    Args:
        bytes_per_s: What it reads in a second.
    """

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._done_s = 0.0
        self._lock = threading.Lock()

    def done_s(self, size: int, now_s: float) -> float:
        """Return when a read that comes now is done.

        Args:
            size: Of what it reads, in bytes.
            now_s: The time. A read may come a little late behind another one and be done as if it had not.
        """
        with self._lock:
            self._done_s = max(self._done_s, now_s - _SLACK_S) + size / self._bytes_per_s
            return self._done_s


def serve(image: Path, folder: Path, bytes_per_s: float) -> None:
    """Be the file system, until it is unmounted."""
    import mfusepy

    descriptor, pace = os.open(image, os.O_RDWR), Pace(bytes_per_s)  # the process ends with the file system
    size = os.fstat(descriptor).st_size

    class Slow(mfusepy.Operations):  # type: ignore[misc]
        use_ns = True

        def getattr(self, path: str, fh: Any = None) -> dict[str, int]:
            if path == "/":
                return {"st_mode": stat.S_IFDIR | 0o700, "st_nlink": 2}
            if path == f"/{FILE}":
                return {"st_mode": stat.S_IFREG | 0o600, "st_nlink": 1, "st_size": size}
            raise mfusepy.FuseOSError(errno.ENOENT)

        def readdir(self, path: str, fh: Any) -> list[str]:
            return [".", "..", FILE]

        def open(self, path: str, fi: Any) -> int:
            fi.direct_io = 1  # what is in memory is what the disk on it has there
            return 0

        def read(self, path: str, count: int, offset: int, fh: Any) -> bytes:
            done_s = pace.done_s(count, time.perf_counter())
            data = os.pread(descriptor, count, offset)
            time.sleep(max(0.0, done_s - time.perf_counter()))
            return data

        def write(self, path: str, data: bytes, offset: int, fh: Any) -> int:
            return os.pwrite(descriptor, data, offset)

        def truncate(self, path: str, length: int, fh: Any = None) -> int:
            return 0

        def flush(self, path: str, fh: Any) -> int:
            return 0

        def fsync(self, path: str, datasync: Any, fh: Any) -> int:
            return 0

    mfusepy.FUSE(Slow(), str(folder), foreground=True, raw_fi=True, max_read=_MOST_READ_BYTES)


def main() -> None:
    """Serve an image in a folder."""
    image, folder, bytes_per_s = sys.argv[1:]
    serve(Path(image), Path(folder), float(bytes_per_s))


if __name__ == "__main__":
    main()

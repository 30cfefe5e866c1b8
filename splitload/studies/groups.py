"""Fresh processes in groups of their own, with less memory and slower storage than this machine has (Linux, root)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from splitload.base.errors import StageError
from splitload.measure.storage import Controller, disk_of

_ROOT = Path("/sys/fs/cgroup")
_ENTER = 'for group in $GROUPS_TO_ENTER; do echo $$ > "$group/cgroup.procs" || exit 125; done; exec "$@"'


@contextmanager
def small_machine(memory_bytes: int, storage_bytes_per_s: int, files: Path) -> Iterator[tuple[str, ...]]:
    """Yield the words before a command that run it with so much memory for everything, and storage so fast.

    Pages of libraries that are cached already are charged to nobody there.

    Args:
        memory_bytes: Of the group, page cache included.
        storage_bytes_per_s: What it reads in a second.
        files: A file on the disk that is capped.

    Raises:
        StageError: If this system has no such groups, or this process may not make them.
    """
    if Controller.find().version != 1 or not (_ROOT / "memory").is_dir():
        raise StageError("the groups of this study are of cgroups version 1, which this system does not have")
    memory, storage = (_ROOT / name / f"splitload-study-{os.getpid()}" for name in ("memory", "blkio"))
    try:
        for group, name, value in (
            (memory, "memory.limit_in_bytes", str(memory_bytes)),
            (storage, "blkio.throttle.read_bps_device", f"{disk_of(files)} {storage_bytes_per_s}"),
        ):
            group.mkdir(exist_ok=True)
            (group / name).write_text(value, encoding="ascii")
        yield ("env", f"GROUPS_TO_ENTER={memory} {storage}", "sh", "-c", _ENTER, "sh")
    except OSError as error:
        raise StageError(f"cannot make the groups: {error.strerror}") from error
    finally:
        for group in (memory, storage):
            for _ in range(20):  # the last child may still be leaving
                with suppress(OSError):
                    group.rmdir()
                    break
                time.sleep(0.05)

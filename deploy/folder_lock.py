"""Folders that one process at a time has; the system drops the lock when that ends, however it ends."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def lock_folder(folder: Path) -> int | None:
    """Return a descriptor that holds the lock on a folder; None where the system has no such locks (Windows).

    Raises:
        OSError: If another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise OSError(
            errno.EBUSY,
            "another process of this machine has it; a second 'splitload serve' needs a cache of its own, a second "
            "worker of a crowd a --name of its own",
        ) from error
    return descriptor

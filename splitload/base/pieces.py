"""Files written in large pieces, which Linux then holds in large pages: they are mapped with a fraction of the faults.

A file system that can (ext4 since Linux 6.16, XFS, Btrfs) keeps what one call has written in pages as large as the
call. ResNet-152's 224 MiB are mapped with 3,673 faults where they were written in pieces of 64 KiB, and with 117 where
the pieces had 2 MiB or more.
"""

from __future__ import annotations

import errno
import os
import shutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from splitload.base.regular import StrPath

PIECE_BYTES = 8 << 20  # `open` takes it as the size of its buffer
_NO_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV, errno.EMLINK)


def copy_file(source: StrPath, target: StrPath) -> None:
    """Copy what is in a file to another one, which is made or written over.

    Raises:
        OSError: If one cannot be read or the other not written.
    """
    with open(source, "rb", buffering=0) as old, open(target, "wb", buffering=PIECE_BYTES) as new:
        shutil.copyfileobj(old, new, PIECE_BYTES)


def link_file(source: StrPath, target: StrPath) -> None:
    """Give a file another name; where the system has no hard links, as Android has none for programs, copy it.

    onnxruntime follows no other links to weights. A copy has the name once all of it is there.

    Raises:
        OSError: If there is no such file, or something has that name.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target) from error
        begun = f"{os.fspath(target)}.begun"
        copy_file(source, begun)
        os.replace(begun, target)


def has_links(folder: StrPath) -> bool:
    """Return whether files in a folder can have other names there, so that `link_file` copies none."""
    import tempfile

    with tempfile.NamedTemporaryFile(dir=folder) as probe:
        other = f"{probe.name}.link"
        try:
            os.link(probe.name, other)
        except OSError:
            return False
        os.unlink(other)
        return True

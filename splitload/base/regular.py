"""Files of a bundle, opened without waiting for a pipe, and checked while they are read.

A bundle may come from anywhere: a link in it would have whoever copies its files take some private file of the user for
a part of it. So what is copied, and what is written beside (tails), is no link. What is only loaded may be links to
files, as the caches of model hubs make them.
"""

from __future__ import annotations

import os
import stat

from splitload.base.errors import BundleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import BinaryIO, Protocol

    StrPath = str | os.PathLike[str]

    class Expected(Protocol):
        """What a manifest says of a file: its size, and its SHA-256 in hexadecimal."""

        @property
        def bytes(self) -> int: ...  # noqa: D102
        @property
        def sha256(self) -> str: ...  # noqa: D102


_CHUNK_BYTES = 8 << 20
_CURE = "copy the bundle again"
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket", stat.S_IFLNK: "a link"}


def regular_size(path: StrPath) -> int:
    """Return the size of a file, or of what a link to one leads to, in bytes, without opening it.

    Raises:
        BundleError: If something else than a file is there.
        OSError: If nothing is, or it cannot be reached.
    """
    return _regular(path, os.stat(path)).st_size


def check_regular(path: StrPath) -> os.stat_result:
    """Return the status of a file that is neither a link nor anything else than a file.

    Raises:
        BundleError: If it is, or is missing.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError as error:
        raise BundleError(f"'{path}' is missing; {_CURE}") from error
    except OSError as error:
        raise BundleError(f"cannot read '{path}': {error.strerror}") from error
    return _regular(path, status)


def check_real_folder(path: Path) -> None:
    """Make sure that a folder, if it is there, is no link and nothing else.

    Raises:
        BundleError: If it is.
    """
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        what = "a link" if path.is_symlink() else "no folder"
        raise BundleError(f"'{path}' is {what}; remove it, and the bundle is as it was built")


def open_regular(path: StrPath, *, links: bool = False) -> BinaryIO:
    """Open a file for reading; what is put in its place meanwhile is refused as well.

    Args:
        path: The file.
        links: Whether a link to a file will do.

    Raises:
        BundleError: If it is no file, or cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if links:
            regular_size(path)  # opening a device may have effects of its own
        else:
            check_regular(path)
            flags |= getattr(os, "O_NOFOLLOW", 0)
        file = os.fdopen(os.open(path, flags), "rb")
    except OSError as error:
        raise BundleError(f"cannot read '{path}': {error.strerror}") from error
    try:
        _regular(path, os.fstat(file.fileno()))
    except BaseException:
        file.close()
        raise
    return file


def read_checked(path: Path, entry: Expected) -> bytes:
    """Return the bytes of a file that are what the manifest says.

    Raises:
        BundleError: If they are not.
    """
    import hashlib

    with open_regular(path) as file:
        data = file.read(entry.bytes + 1)
    _compare(path, entry, len(data), hashlib.sha256(data).hexdigest())
    return data


def sha256_of(path: StrPath) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Raises:
        BundleError: If it is no regular file.
        OSError: If it cannot be read.
    """
    import hashlib

    digest = hashlib.sha256()
    with open_regular(path, links=True) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def copy_checked(path: Path, target: Path, entry: Expected) -> None:
    """Copy a file to a new one, and make sure that what was copied is what the manifest says.

    Raises:
        BundleError: If it is not.
        OSError: If the copy cannot be written.
    """
    import hashlib

    digest, size = hashlib.sha256(), 0
    with open_regular(path) as source, target.open("xb") as made:
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
            made.write(chunk)
    _compare(path, entry, size, digest.hexdigest())


def _compare(path: Path, entry: Expected, size: int, sha256: str) -> None:
    if (size, sha256) != (entry.bytes, entry.sha256):
        raise BundleError(f"'{path}' is not what the manifest says (SHA-256 differs): it is damaged; {_CURE}")


def _regular(path: StrPath, status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        kind = _KINDS.get(stat.S_IFMT(status.st_mode), "a device")
        links = ", with 'cp -rL'" if stat.S_ISLNK(status.st_mode) else ""
        raise BundleError(f"'{path}' is {kind}, and a bundle holds files only; {_CURE}{links}")
    return status

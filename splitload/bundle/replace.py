"""How the folder of a bundle is written: whole or not at all, in the place of its like and of nothing else."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from splitload.base.atomic import check_file, sync, sync_tree
from splitload.base.errors import OutputError
from splitload.base.regular import open_regular
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import FORMAT, MANIFEST, TORCH_FORMAT
from splitload.bundle.read import MAX_MANIFEST_BYTES


def check_place(target: Path, bundle_format: str, cure: str = "give another place") -> None:
    """Make sure that a bundle may be written at `target`: nothing is there, or a bundle of the same format.

    Raises:
        OutputError: If something else is there, if it lies in another bundle, or its folder cannot be written to.
    """
    if target.is_symlink():
        raise OutputError(f"'{target}' is a link; give the place it points to, or another name")
    refuse_in_bundle(target.absolute().parent)
    if target.exists() and not _is_bundle(target, bundle_format):
        raise OutputError(f"'{target}' exists and is not a bundle; choose another name, it is left as it is")
    parent = target.parent
    if not parent.is_dir():
        raise OutputError(f"there is no folder '{parent}' to write '{target.name}' into")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"cannot write to '{parent}': permission denied; {cure}")


def refuse_in_bundle(folder: Path) -> None:
    """Raise if a folder, whether it is there or not, is a bundle or lies in one, which holds its own files only.

    Raises:
        OutputError: If so; it names the bundle.
    """
    real = folder.resolve()
    for place in (real, *real.parents):
        if any(_is_bundle(place, kind) for kind in (FORMAT, TORCH_FORMAT)):
            raise OutputError(f"'{place}' is a bundle, and nothing else may lie in it; write to another place")


def check_output_file(path: Path, what: str) -> None:
    """Make sure that a file that a user names may be written, and not into a bundle, before any work is done for it.

    Raises:
        OutputError: If not.
    """
    check_file(path, what)
    refuse_in_bundle(path.parent)


def _is_bundle(folder: Path, bundle_format: str) -> bool:
    """Return whether the folder holds a bundle of any version; other things have a manifest.json too."""
    try:
        with open_regular(folder / MANIFEST, links=True) as file:
            data = json.loads(file.read(MAX_MANIFEST_BYTES))
    except (OSError, ValueError, RecursionError):  # a BundleError is a ValueError
        return False
    return isinstance(data, dict) and data.get("format") == bundle_format


@contextlib.contextmanager
def replacing(
    target: Path,
    check: Callable[[Path], None],
    alone: Callable[[Path], contextlib.AbstractContextManager[object]] = contextlib.nullcontext,
) -> Iterator[Path]:
    """Yield a new folder beside `target` that takes its place when the block ends well, and vanishes otherwise.

    A bundle that stood there is replaced in one step where the system can exchange two names (Linux), in two renames
    elsewhere. Files of the new one are read-only: who copies another bundle over it in place is refused, unless he may
    do everything, and does not empty what running processes have mapped.

    Args:
        target: Where the bundle will stand.
        check: Raises if it may not.
        alone: Makes a block in which nobody else changes the folder that is replaced.

    Raises:
        OutputError: If the folder cannot be made or moved, for example on a full disk; it says which bundle is there.
        KeyboardInterrupt: After an interrupt; it says if the new bundle is there.
    """
    check(target)
    number = None
    try:
        with scratch_folder(target.parent, f".{target.name}.") as made:
            made.chmod(0o755)
            yield made
            sync_tree(made, read_only=True)
            with alone(target) if target.is_dir() else contextlib.nullcontext():
                check(target)  # who else works there may have come first
                number = made.stat().st_ino
                _replace(made, target)
                sync(target.parent)
    except OSError as error:
        if _stands(target, number):
            raise OutputError(
                f"'{target}' is the new bundle, whole, but its folder could not be brought up to date: "
                f"{error.strerror or error}; until it is, the old one may be back after a loss of power"
            ) from error
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write '{target}': {error.strerror or error}; nothing was changed") from error
    except KeyboardInterrupt:
        if _stands(target, number):
            raise KeyboardInterrupt(f"interrupted; '{target}' is the new bundle, whole") from None
        raise


def _stands(target: Path, number: int | None) -> bool:
    """Return whether the folder of this inode number is at `target`."""
    try:
        return number is not None and target.stat().st_ino == number
    except OSError:
        return False


def _replace(made: Path, target: Path) -> None:
    """Put the folder `made` at `target`; what was there is left at `made`."""
    if not target.exists():
        made.rename(target)
    elif not _exchange(made, target):
        old = made.with_suffix(".old")
        target.rename(old)
        try:
            made.rename(target)
        except BaseException:  # an interrupt as well
            try:
                old.rename(target)
            except OSError as error:
                reason = error.strerror or error
                raise OutputError(f"nothing is at '{target}' now, as {reason}; the old bundle is at '{old}'") from error
            raise
        old.rename(made)


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; return whether the system could."""
    if not sys.platform.startswith("linux"):
        return False
    import ctypes

    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and renameat2(here, os.fsencode(first), here, os.fsencode(second), exchange) == 0

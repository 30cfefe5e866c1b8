"""Entries of the user's cache: folders written whole, flushed, and checked by hash before they are used again.

After a loss of power a file may have its name and no content, and a bit may flip at any time. What is damaged is made
anew, and a `CacheWarning` tells: an entry costs time to make, and nothing else is lost with it. Hashing takes about a
second for a gigabyte, against the many seconds of the commands that use an entry.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path

from splitload.base.atomic import sync, sync_tree
from splitload.base.errors import BundleError, CacheWarning, OutputError
from splitload.base.regular import sha256_of
from splitload.base.scratch import scratch_folder
from splitload.base.sealed import is_intact, seal

RECORD = "record.json"  # of an entry: name, bytes and SHA-256 of each of its files, and a hash of itself


def is_whole(entry: Path) -> bool:
    """Return whether an entry is there and every file of it as it was made; one that is damaged is removed, and told.

    Raises:
        OutputError: If it cannot be removed.
    """
    if not entry.exists():
        return False
    reason = _damage(entry)
    if reason is None:
        return True
    discard(entry, reason)
    return False


def discard(entry: Path, reason: str) -> None:
    """Remove a damaged entry, a folder or a file, and tell that it is made anew.

    Raises:
        OutputError: If it cannot be removed.
    """
    warnings.warn(f"in the cache '{entry}' is damaged ({reason}): it is made anew", CacheWarning, stacklevel=3)
    try:
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    except FileNotFoundError:  # by someone else meanwhile
        pass
    except OSError as error:
        raise OutputError(f"cannot remove '{entry}': {error.strerror or error}; remove it by hand") from error


@contextlib.contextmanager
def making(entry: Path, what: str) -> Iterator[Path]:
    """Yield a new folder that becomes an entry when the block ends well, and vanishes otherwise.

    Where another process has made the entry meanwhile, that one stays.

    Args:
        entry: Where it will be; nothing is there.
        what: What it is, for errors.

    Raises:
        OutputError: If it cannot be written.
    """
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with scratch_folder(entry.parent, f".{entry.name}.") as made:
            yield made
            _write_record(made)
            sync_tree(made)
            try:
                made.rename(entry)
            except OSError:
                if not (entry / RECORD).is_file():
                    raise
            else:
                sync(entry.parent)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"cannot write {what} to '{entry.parent}': {error.strerror or error}") from error


def _write_record(folder: Path) -> None:
    files = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": sha256_of(file)}
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
    (folder / RECORD).write_text(seal(json.dumps({"files": files}, indent=1)), encoding="utf-8")


def _damage(folder: Path) -> str | None:
    """Return what is wrong with an entry, or None."""
    try:
        text = (folder / RECORD).read_bytes()
        if not is_intact(text):
            return "its record was changed"
        for name, row in json.loads(text)["files"].items():
            if (folder / name).stat().st_size != row["bytes"] or sha256_of(folder / name) != row["sha256"]:
                return f"'{name}' was changed"
    except FileNotFoundError as error:
        return f"'{Path(error.filename).name}' is missing"
    except (OSError, BundleError) as error:
        return str(error)
    return None

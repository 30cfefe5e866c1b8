"""Stage files that were made already, by what they are made of: a plan that was tried is not written again.

Converting a stage takes seconds; giving its file another name, in another folder, takes none. The key of a file says
everything that its bytes follow from, but for the runtime and the processor: a store lives no longer than a process.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import NamedTuple

from splitload.base.pieces import copy_file
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import File


class Kept(NamedTuple):
    """A file in a store.

    Attributes:
        path: Where it lies; other folders may hold the same file by another name.
        file: Its size and hash.
        read_order: See `StageEntry`.
    """

    path: Path
    file: File
    read_order: tuple[int, ...]


class StageStore(contextlib.AbstractContextManager["StageStore"]):
    """Keeps stage files for one process, in one thread, until its block ends.

    Args:
        parent: Where its folder is made with the first file, on the file system where stages are written; without such
            a folder nothing is kept.
    """

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._folder: Path | None = None
        self._kept: dict[str, Kept] = {}
        self._opened = contextlib.ExitStack()

    def __exit__(self, *_: object) -> None:
        """Remove what is kept; the same files in other folders stay."""
        self._kept.clear()
        self._opened.close()
        self._folder = None

    def keep(self, key: str, path: Path, file: File, read_order: tuple[int, ...] = ()) -> None:
        """Keep a file that nobody writes to any more, unless it lies on another file system."""
        try:
            if self._folder is None:
                self._folder = self._opened.enter_context(scratch_folder(self._parent, ".stages-"))
            place = self._folder / f"{key}{path.suffix}"
            place.hardlink_to(path)
        except OSError:  # it is made anew, should it be needed: a copy might be for nothing
            return
        self._kept[key] = Kept(place, file, read_order)

    def take(self, key: str, folder: Path, stem: str) -> Kept | None:
        """Put a file that is kept into a folder, named by `stem` and its hash; return it as it is there, if it is kept.

        Raises:
            OSError: If it cannot be copied, where it cannot be linked.
        """
        kept = self._kept.get(key)
        if kept is None:
            return None
        name = f"{stem}-{kept.file.sha256[:12]}{kept.path.suffix}"
        try:
            (folder / name).hardlink_to(kept.path)
        except FileExistsError:  # with the same content, says its name
            pass
        except OSError:
            copy_file(kept.path, folder / name)
        return kept._replace(path=folder / name, file=kept.file._replace(name=name))


def key_of(*parts: bytes) -> str:
    """Return the key of what is made of `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()

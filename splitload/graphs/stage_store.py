"""Stage files that were made already, by what they are made of: a plan that was tried is not written again.

Converting a stage takes seconds; giving its file another name, in another folder, takes none. The key of a file says
everything that its bytes follow from, but for the runtime and the processor: a store lives no longer than a process.
"""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import NamedTuple

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


class StageStore:
    """Keeps stage files for one process, in one thread.

    Args:
        folder: Where they lie, ours alone, on the file system where stages are written if they are to cost nothing.
            Who makes it removes it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[str, Kept] = {}

    def keep(self, key: str, path: Path, file: File, read_order: tuple[int, ...] = ()) -> None:
        """Keep a file that nobody writes to any more, unless it lies on another file system."""
        place = self._folder / f"{key}{path.suffix}"
        try:
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
            shutil.copyfile(kept.path, folder / name)
        return kept._replace(path=folder / name, file=kept.file._replace(name=name))


def key_of(*parts: bytes) -> str:
    """Return the key of what is made of `parts`."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()

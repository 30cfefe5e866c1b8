"""What a device keeps of stages on its disk: each file once, by its SHA-256, and no more than a cap allows.

- `files/SHA256` is a whole file, `files/SHA256.part` the beginning of one whose transfer goes on from there.
- `stages/KEY/NAME` are hard links to them, by the names that a stage's graph reads them by; the key is the stage's. A
  name may have folders before it, as files of a job have. Without hard links they are copies, which take room besides
  and are there as long as the stage is in use.
- A stage is complete once its folder is there. It is checked, byte by byte, before it is first opened by a process.
- Stages in use are never evicted; of the others those go first that were used longest ago, after files of none.
- Each use is somebody's, so that those of a client that was killed can be ended.

One process at a time has a cache: it holds a lock on the folder. Two devices, two folders.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

from splitload.base.errors import BundleError, OutputError, StageError
from splitload.base.fields import is_sha256
from splitload.base.pieces import has_links, link_file
from splitload.base.regular import open_regular
from splitload.bundle.manifest import File
from splitload.deploy.folder_lock import lock_folder
from splitload.deploy.stage_names import check_file, check_stage

_PART = ".part"
_BUFFER_BYTES = 1 << 17
_SYNC_BYTES = 8 << 20  # written at a time: a slow disk would take longer for a whole file than its sender waits
_COPIES = 3  # of a file where there are no links: its own, the stage's, and that of whoever runs it
COPIED_BYTES = 1 << 20  # at a time, from one file to another


class MissingFileError(StageError):
    """A file of a stage is not there, or damaged and forgotten: it has to be sent again."""


class StageCache:
    """Files of stages on disk; may be called from several threads.

    Args:
        folder: Where it lies; it is made.
        cap_bytes: What all its files may take together.

    Raises:
        OutputError: If the folder cannot be made, or another process has it.
    """

    def __init__(self, folder: Path, cap_bytes: int) -> None:
        self._folder, self._cap_bytes = folder, cap_bytes
        self._files, self._stages = folder / "files", folder / "stages"
        self._lock = threading.RLock()
        self._uses: dict[str, Counter[str]] = {}  # by key and user
        self._files_in_use: dict[str, dict[str, int]] = {}  # by key, how many bytes each will have
        self._last_used: dict[str, None] = {}  # keys of stages, the one that was used longest ago first
        self._checked: set[str] = set()  # files that this process has hashed
        self._digests: dict[str, tuple[Any, int]] = {}  # of unfinished files, and of how many bytes
        try:
            self._files.mkdir(parents=True, exist_ok=True)
            self._stages.mkdir(exist_ok=True)
            self._held = lock_folder(folder)
            self._has_links = has_links(folder)
            found = sorted(self._stages.iterdir(), key=lambda stage: stage.stat().st_mtime)
        except OSError as error:
            raise OutputError(f"cannot keep stages in '{folder}': {error.strerror or error}") from error
        self._last_used.update(dict.fromkeys(stage.name for stage in found))

    def close(self) -> None:
        """Let another process have the folder."""
        with self._lock:
            if self._held is not None:
                os.close(self._held)
                self._held = None

    def stages(self) -> list[str]:
        """Return the keys of the stages that are complete."""
        return list(self._last_used)  # without the lock: who asks does not wait for a file to be hashed

    def used_bytes(self) -> int:
        """Return what its files take, unfinished ones included."""
        return sum(self._sizes().values())

    def request(self, key: str, files: Sequence[File], user: str = "") -> dict[str, int]:
        """Take a stage into use, making room for it; return what is missing of it.

        Args:
            key: The stage's, see `stage_key`.
            files: What it consists of.
            user: Whose use it is.

        Returns:
            By SHA-256 of each file that is not complete, the byte from which on it is missing.

        Raises:
            OutputError: If there is no room beside the stages in use, or the cache was removed.
            StageError: If the name of a file is no plain name, or the key is not that of the files.
        """
        check_stage(key, files)
        with self._lock:
            missing = self._missing(files)
            if missing:
                try:
                    self._make_room(files)
                except FileNotFoundError as error:  # of the cache itself
                    raise OutputError(f"the stage cache '{self._folder}' is gone; start the program again") from error
                missing = self._missing(files)  # less of it may be left now
            self._uses.setdefault(key, Counter())[user] += 1
            self._files_in_use[key] = {file.sha256: file.bytes for file in files}
            return missing

    def write(self, file: File, start: int, piece: bytes) -> int:
        """Append a piece of a file; return how many bytes of it are there then.

        A piece that is there already, or does not follow what is, changes nothing: the sender goes on from the number
        that is returned. The last piece has the whole file checked.

        Args:
            file: Which one, of a stage that was requested.
            start: The byte of the file that the piece begins with.
            piece: The bytes.

        Raises:
            OutputError: If it cannot be written.
            MissingFileError: If the whole file is not what it should be; it is forgotten then.
        """
        check_file(file)
        whole, part = self._files / file.sha256, self._files / f"{file.sha256}{_PART}"
        with self._lock:
            if whole.exists():
                return file.bytes
            there = part.stat().st_size if part.exists() else 0
            if start != there or len(piece) > file.bytes - there:
                return there
            whole_digest = self._written(part, file, there, piece)
            there += len(piece)
            if there == file.bytes:
                del self._digests[file.sha256]
                if whole_digest != file.sha256:
                    part.unlink()
                    raise MissingFileError(f"'{file.name}' arrived damaged (SHA-256 differs); it is sent again")
                self._checked.add(file.sha256)
                part.replace(whole)
            return there

    def _written(self, part: Path, file: File, there: int, piece: bytes) -> str:
        """Append a piece to an unfinished file; return the SHA-256 of what is there then if that is all of it.

        It is hashed as it comes: hashing it all at the end would keep whoever sends the last piece waiting.
        """
        digest, hashed = self._digests.get(file.sha256, (hashlib.sha256(), 0))
        try:
            if hashed != there:  # another process wrote the beginning
                digest = _digest_of(part) if there else hashlib.sha256()
            with part.open("ab") as opened:
                opened.write(piece)
                end = there + len(piece)
                if end == file.bytes or there // _SYNC_BYTES != end // _SYNC_BYTES:
                    opened.flush()
                    os.fsync(opened.fileno())  # only what is on the disk can leave the system's memory
        except OSError as error:
            self._digests.pop(file.sha256, None)
            raise OutputError(f"cannot write into the stage cache '{self._folder}': {error.strerror}") from error
        digest.update(piece)
        self._digests[file.sha256] = digest, end
        return str(digest.hexdigest()) if end == file.bytes else ""

    def copy(self, file: File, start: int, pieces: Sequence[tuple[str, int, int]]) -> int:
        """Append pieces of files that are here to a file; return how many bytes of it are there then; see `write`.

        It ends before the first piece whose file is not here: that has to be sent.

        Args:
            file: Which one, of a stage that was requested.
            start: The byte of the file that the first piece begins with.
            pieces: The SHA-256 of a whole file, the first byte in it, and how many.

        Raises:
            OutputError: If it cannot be written.
            MissingFileError: If the whole file is not what it should be; it is forgotten then.
        """
        there = start
        for sha256, offset, length in pieces:
            for first in range(offset, offset + length, COPIED_BYTES):
                size = min(COPIED_BYTES, offset + length - first)
                try:
                    piece = self.read(sha256, first, size)
                except MissingFileError:
                    return there
                now = self.write(file, there, piece) if len(piece) == size else there
                if now != there + size:
                    return now
                there = now
        return there

    def read(self, sha256: str, start: int, size: int) -> bytes:
        """Return a piece of a whole file, for another device.

        Raises:
            MissingFileError: If it is not here.
        """
        if not is_sha256(sha256):
            raise StageError("a file is asked for by something else than a SHA-256")
        try:
            with (self._files / sha256).open("rb") as opened:
                opened.seek(start)
                return opened.read(size)
        except OSError as error:
            raise MissingFileError(f"the file {sha256[:12]}… is not in the stage cache '{self._folder}'") from error

    def place(self, key: str, files: Sequence[File]) -> Path:
        """Return the folder that holds a stage's files by their names, every byte of which has been checked.

        Args:
            key: The stage's; it was requested.
            files: What it consists of.

        Raises:
            MissingFileError: If one is missing, or damaged and forgotten now.
            OutputError: If the folder cannot be made.
        """
        check_stage(key, files)
        for file in files:
            self._check_whole(file)
        with self._lock:
            place = self._stages / key
            self._last_used.setdefault(key)  # whatever of it is made can be evicted
            try:
                place.mkdir(exist_ok=True)
                for file in files:
                    if not (place / file.name).exists():
                        (place / file.name).parent.mkdir(parents=True, exist_ok=True)
                        link_file(self._files / file.sha256, place / file.name)
                os.utime(place)
            except OSError as error:
                raise OutputError(f"cannot keep stages in '{self._folder}': {error.strerror}") from error
            self._last_used.pop(key, None)
            self._last_used[key] = None
            return place

    def release(self, key: str, user: str = "") -> None:
        """End one use of a stage, which a request of the same user began."""
        with self._lock:
            self._end_uses(key, user, 1)

    def part_from(self, user: str) -> None:
        """End all uses of somebody who is gone."""
        with self._lock:
            for key in list(self._uses):
                self._end_uses(key, user, self._uses[key][user])

    def remove(self, key: str) -> None:
        """Remove a stage from disk, unless it is in use."""
        with self._lock:
            if key in self._last_used and key not in self._uses:
                self._evict(key)

    def clear(self) -> int:
        """Remove all that is not in use, unfinished files too; return the bytes that are left."""
        with self._lock:
            for key in self.stages():
                self.remove(key)
            self._drop_unused(set())
            return self.used_bytes()

    def _end_uses(self, key: str, user: str, number: int) -> None:
        uses = self._uses.get(key, Counter())
        uses[user] -= number
        if uses[user] <= 0:
            del uses[user]  # below zero, it would eat a later use
        if not uses and key in self._uses:
            del self._uses[key], self._files_in_use[key]
            if not self._has_links and key in self._last_used:
                self._evict(key)

    def _missing(self, files: Sequence[File]) -> dict[str, int]:
        missing = {}
        for file in files:
            if not (self._files / file.sha256).exists():
                part = self._files / f"{file.sha256}{_PART}"
                missing[file.sha256] = part.stat().st_size if part.exists() else 0
        return missing

    def _check_whole(self, file: File) -> None:
        """Make sure that a file is what it should be; hashed once a process, while others use the cache."""
        whole = self._files / file.sha256
        with self._lock:
            if file.sha256 in self._checked and whole.exists():
                return
        try:
            sound = whole.stat().st_size == file.bytes and _digest_of(whole).hexdigest() == file.sha256
        except (FileNotFoundError, BundleError) as error:
            raise MissingFileError(
                f"'{file.name}' is not in the stage cache '{self._folder}'; it is sent again"
            ) from error
        if not sound:
            self.forget(file.sha256)
            raise MissingFileError(f"'{file.name}' is damaged in the stage cache '{self._folder}'; it is sent again")
        with self._lock:
            self._checked.add(file.sha256)

    def _make_room(self, files: Sequence[File]) -> None:
        """Evict stages until a new one fits.

        Raises:
            OutputError: If it does not fit beside those in use.
        """
        own = {file.sha256: file.bytes for file in files}
        needed = sum(own.values()) * (1 if self._has_links else _COPIES)
        promised = {name: size for each in self._files_in_use.values() for name, size in each.items()}

        def lacks() -> int:
            sizes = self._sizes()
            coming = {name: max(size - sizes.get(name, 0), 0) for name, size in promised.items() if name not in own}
            others = sum(size for name, size in sizes.items() if name not in own) + sum(coming.values())
            on_disk = shutil.disk_usage(self._folder).free - sum(coming.values())
            return max(others + needed - self._cap_bytes, needed - sum(map(sizes.get, own, repeat(0))) - on_disk)

        idle = [each for each in self._last_used if each not in self._uses]
        if lacks() > 0:
            self._drop_unused(own)
        while (missing := lacks()) > 0 and idle:
            self._evict(idle.pop(0))
        if missing > 0:
            raise OutputError(
                f"the stage cache '{self._folder}' lacks {missing} bytes for a stage of {needed}, beside "
                f"{len(self._uses)} in use; free the disk, or give it a larger --cache-size"
            )

    def _sizes(self) -> dict[str, int]:
        """Return how many bytes of each file are there, by its SHA-256, and of each copy, by its path."""
        sizes = {}
        for file in self._files.iterdir():
            with contextlib.suppress(FileNotFoundError):  # it has just become whole, or was evicted
                sizes[file.name[:64]] = file.stat().st_size
        for copy in () if self._has_links else self._stages.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                sizes[str(copy)] = 0 if copy.is_dir() else copy.stat().st_size
        return sizes

    def _drop_unused(self, own: Iterable[str]) -> None:
        """Remove files of no stage that is complete, or asked for: transfers that were given up, whole or in part."""
        wanted = set(own).union(*self._files_in_use.values())
        for file in self._files.iterdir():
            if file.stat().st_nlink == 1 and file.name[:64] not in wanted:
                self._checked.discard(file.name)
                self._digests.pop(file.name[:64], None)
                file.unlink()

    def _evict(self, key: str) -> None:
        """Remove a stage, and its files unless another stage has them."""
        del self._last_used[key]
        place = self._stages / key
        inodes = {file.stat().st_ino for file in place.rglob("*")}
        shutil.rmtree(place, ignore_errors=True)
        wanted = set[str]().union(*self._files_in_use.values())
        for file in self._files.iterdir():
            status = file.stat()
            if status.st_ino in inodes and status.st_nlink == 1 and file.name not in wanted:
                self.forget(file.name)

    def forget(self, sha256: str) -> None:
        """Remove a file, and its links: whoever has it mapped keeps it."""
        whole = self._files / sha256
        with self._lock, contextlib.suppress(FileNotFoundError):
            self._checked.discard(sha256)
            inode = whole.stat().st_ino
            for place in list(self._stages.iterdir()):
                for link in list(place.rglob("*")):
                    if link.stat().st_ino == inode:
                        link.unlink()
            whole.unlink()


def _digest_of(path: Path) -> Any:
    """Return the SHA-256 of a file so far, read through a small buffer: devices have little memory."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_BUFFER_BYTES))
    with open_regular(path) as file:
        while size := file.readinto(buffer):  # type: ignore[attr-defined]
            digest.update(buffer[:size])
    return digest

"""Files on their way to a served device: each once, the parts of them that it has already copied there, in pieces."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from splitload.base.errors import DeviceError, StageError
from splitload.base.fields import is_count
from splitload.base.regular import sha256_of
from splitload.bundle.manifest import File
from splitload.devices.chunks import chunks_of
from splitload.devices.connection import Connection

PIECE_BYTES, LEAST_PIECE_BYTES = 1 << 20, 1 << 15  # of a request; less each time that one breaks: the link is slow
COPY_FROM_BYTES = 1 << 15  # less is sent: a request more would take longer
MOST_COPIES, MOST_COPIED_BYTES = 1024, 32 << 20  # of a request, which is answered once all is written
MOST_STALLS = 32  # requests in a row that brought a file no further, as others wrote it, or it was lost
SMALL_BYTES = 1 << 20  # what is smaller is read again: one that was written in its place may look alike
Chunk = tuple[str, int, int]  # SHA-256, first byte, length


class Transfer:
    """Sends files to one device, and remembers what it has; may be used by several threads.

    Args:
        connection: To the device.

    Attributes:
        sent_bytes: What was sent.
        copied_bytes: What the device had, and copied.
    """

    def __init__(self, connection: Connection) -> None:
        self.sent_bytes = self.copied_bytes = 0
        self._connection = connection
        self._hashes: dict[tuple[int, ...], str] = {}  # of files, by what tells that one has changed
        self._chunks: dict[str, list[Chunk]] = {}  # of files, by SHA-256
        self._there: dict[str, Chunk] = {}  # files that the device has a chunk in, and where, by the chunk's SHA-256
        self._piece_bytes = PIECE_BYTES
        self._lock = threading.Lock()
        self._urgent = self._ahead = 0  # those who go first, and requests of transfers ahead
        self._turn = threading.Condition()

    def described(self, name: str, path: Path) -> File:
        """Return a file as an order names it; it is read once.

        Raises:
            OSError: If it cannot be read.
        """
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if key not in self._hashes or status.st_size < SMALL_BYTES:
            self._hashes[key] = sha256_of(path)
        return File(name, status.st_size, self._hashes[key])

    def send(self, paths: Mapping[File, Path], missing: Mapping[str, int], *, ahead: bool = False) -> None:
        """Send files.

        Args:
            paths: Where they are.
            missing: From which byte on each is missing, by SHA-256; what is not in here is there.
            ahead: Whether nobody waits for them yet: what is done within `going_first` goes before.

        Raises:
            DeviceError: If the device does not answer, or refuses.
            OSError: If a file cannot be read.
        """
        by_hash = {file.sha256: (file, path) for file, path in paths.items()}
        for sha256, start in missing.items():
            if sha256 in by_hash:
                self._send(*by_hash[sha256], start, ahead)
        for file, path in paths.items():
            chunks = self._chunks_of(file, path)
            with self._lock:
                for sha256, first, length in chunks:
                    self._there.setdefault(sha256, (file.sha256, first, length))

    def _send(self, file: File, path: Path, start: int, ahead: bool) -> None:
        """Send what is missing of a file."""
        there, furthest, stalls = start, start, 0
        with path.open("rb") as opened:
            while there < file.bytes or (there == start == 0 and file.bytes == 0):
                with self._giving_way(ahead):
                    copies = self._copies(file, path, there)
                    if copies:
                        now = self._asked(file, "POST", "/copies", there, data=copies)
                        self._count(copied_bytes=max(now - there, 0))
                        if now != there + sum(length for _, _, length in copies):
                            self._forget(copies)
                    else:
                        now = self._sent_piece(file, path, opened.fileno(), there)
                if file.bytes == 0:
                    return
                stalls = 0 if now > furthest else stalls + 1
                furthest = max(furthest, now)
                if stalls > MOST_STALLS:
                    raise DeviceError(f"the device takes '{file.name}' again and again, and keeps nothing of it")
                there = now

    def _sent_piece(self, file: File, path: Path, descriptor: int, there: int) -> int:
        """Send the next piece of a file; return how many bytes of it are there then."""
        tries = 0

        def piece() -> bytes:
            nonlocal tries
            tries += 1
            if tries > 1:  # what came of it is kept: nothing is sent but the question how much that is
                self._piece_bytes = max(self._piece_bytes // 2, LEAST_PIECE_BYTES)
                return b""
            found = os.pread(descriptor, self._unknown_bytes(file, path, there), there)
            if not found and file.bytes:
                raise StageError(f"'{path}' has become shorter while it was sent; give the command again")
            self._count(sent_bytes=len(found))
            return found

        now = self._asked(file, "PUT", "", there, content=piece)
        if tries == 1:
            self._piece_bytes = min(2 * self._piece_bytes, PIECE_BYTES)
        return now

    def _asked(
        self,
        file: File,
        method: str,
        path: str,
        start: int,
        *,
        data: object = None,
        content: Callable[[], bytes] | None = None,
    ) -> int:
        """Ask for something of a file; return how many bytes of it are there then."""
        place = f"/v1/files/{file.sha256}{path}"
        answer = self._connection.ask(method, place, data=data, content=content, params={"start": start})
        there: Any = answer.get("there")
        if not is_count(there) or there > file.bytes:
            raise DeviceError(f"the device says that it has {there!r:.40} of {file.bytes} bytes of '{file.name}'")
        return int(there)

    def _count(self, *, sent_bytes: int = 0, copied_bytes: int = 0) -> None:
        with self._lock:
            self.sent_bytes += sent_bytes
            self.copied_bytes += copied_bytes

    def _copies(self, file: File, path: Path, there: int) -> list[Chunk]:
        """Return the pieces that follow in a file and that the device has in others, neighbours as one."""
        found: list[Chunk] = []
        size = 0
        for sha256, first, length in self._chunks_of(file, path):
            if first < there:  # a piece may end within a chunk
                continue
            known = self._there.get(sha256)
            if known is None or first > there or len(found) >= MOST_COPIES or size + length > MOST_COPIED_BYTES:
                break
            if found and found[-1][0] == known[0] and found[-1][1] + found[-1][2] == known[1]:
                found[-1] = (known[0], found[-1][1], found[-1][2] + length)
            else:
                found.append(known)
            there, size = first + length, size + length
        return found if size >= COPY_FROM_BYTES else []

    def _unknown_bytes(self, file: File, path: Path, there: int) -> int:
        """Return how many bytes are sent next: up to what the device has, unless that is little."""
        size = 0
        for sha256, first, length in self._chunks_of(file, path):
            if first + length <= there:
                continue
            if size and sha256 in self._there and length >= COPY_FROM_BYTES:
                break
            size = first + length - there
            if size >= self._piece_bytes:
                break
        return min(size, self._piece_bytes)

    def _chunks_of(self, file: File, path: Path) -> list[Chunk]:
        if file.sha256 not in self._chunks:
            self._chunks[file.sha256] = list(chunks_of(path))
        return self._chunks[file.sha256]

    def _forget(self, copies: list[Chunk]) -> None:
        """Forget the files of some pieces: the device has evicted one of them."""
        gone = {sha256 for sha256, _, _ in copies}
        with self._lock:
            self._there = {chunk: place for chunk, place in self._there.items() if place[0] not in gone}

    @contextlib.contextmanager
    def going_first(self) -> Iterator[None]:
        """Have transfers ahead wait meanwhile: others are urgent, or the device measures.

        Receiving takes a small device's processor and storage, which a sample is to have for itself.
        """
        with self._turn:
            self._urgent += 1
            while self._ahead:  # what is under way ends first
                self._turn.wait()
        try:
            yield
        finally:
            with self._turn:
                self._urgent -= 1
                self._turn.notify_all()

    @contextlib.contextmanager
    def _giving_way(self, ahead: bool) -> Iterator[None]:
        """Do a request once nobody goes first, where it is of a transfer ahead."""
        if not ahead:
            yield
            return
        with self._turn:
            while self._urgent:
                self._turn.wait()
            self._ahead += 1
        try:
            yield
        finally:
            with self._turn:
                self._ahead -= 1
                self._turn.notify_all()

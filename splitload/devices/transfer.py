"""Files on their way to a served device: each once, the parts of them that it has already copied there, in pieces."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

from splitload.base.regular import sha256_of
from splitload.bundle.manifest import File
from splitload.devices.chunks import chunks_of
from splitload.devices.connection import Connection

PIECE_BYTES = 1 << 20  # of a request
COPY_FROM_BYTES = 1 << 15  # less is sent: a request more would take longer
MOST_COPIES = 1024  # of a request
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
        self._hashes: dict[tuple[int, int, int, int], str] = {}  # of files, by what tells that one has changed
        self._chunks: dict[str, list[Chunk]] = {}  # of files, by SHA-256
        self._there: dict[str, Chunk] = {}  # files that the device has a chunk in, and where, by the chunk's SHA-256
        self._urgent = 0
        self._turn = threading.Condition()

    def described(self, name: str, path: Path) -> File:
        """Return a file as an order names it; it is read once.

        Raises:
            OSError: If it cannot be read.
        """
        status = path.stat()
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = sha256_of(path)
        return File(name, status.st_size, self._hashes[key])

    def send(self, paths: Mapping[File, Path], missing: Mapping[str, int], *, ahead: bool = False) -> None:
        """Send files.

        Args:
            paths: Where they are.
            missing: From which byte on each is missing, by SHA-256; what is not in here is there.
            ahead: Whether nobody waits for them yet: others go first.

        Raises:
            DeviceError: If the device does not answer, or refuses.
            OSError: If a file cannot be read.
        """
        by_hash = {file.sha256: (file, path) for file, path in paths.items()}
        with contextlib.nullcontext() if ahead else self.going_first():
            for sha256, start in missing.items():
                if sha256 in by_hash:
                    self._send(*by_hash[sha256], start, ahead)
        for file, path in paths.items():
            for sha256, first, length in self._chunks_of(file, path):
                self._there.setdefault(sha256, (file.sha256, first, length))

    def _send(self, file: File, path: Path, start: int, ahead: bool) -> None:
        """Send what is missing of a file."""
        there = start
        with path.open("rb") as opened:
            while there < file.bytes or (there == start == 0 and file.bytes == 0):
                self._give_way(ahead)
                copies = self._copies(file, path, there)
                if copies:
                    wanted = there + sum(length for _, _, length in copies)
                    now = self._asked("POST", f"/v1/files/{file.sha256}/copies", there, data=copies)
                    self.copied_bytes += max(now - there, 0)
                    if now != wanted:
                        self._forget(copies)
                else:
                    size = self._unknown_bytes(file, path, there)
                    piece = os.pread(opened.fileno(), size, there)
                    now = self._asked("PUT", f"/v1/files/{file.sha256}", there, content=piece)
                    self.sent_bytes += len(piece)
                there = now
                if file.bytes == 0:
                    return

    def _asked(self, method: str, path: str, start: int, *, data: object = None, content: bytes | None = None) -> int:
        answer = self._connection.ask(method, path, data=data, content=content, params={"start": start})
        return int(answer["there"])

    def _copies(self, file: File, path: Path, there: int) -> list[Chunk]:
        """Return the pieces that follow in a file and that the device has in others, neighbours as one."""
        found: list[Chunk] = []
        for sha256, first, length in self._chunks_of(file, path):
            if first < there:
                continue
            known = self._there.get(sha256)
            if known is None or len(found) >= MOST_COPIES:
                break
            if found and found[-1][0] == known[0] and found[-1][1] + found[-1][2] == known[1]:
                found[-1] = (known[0], found[-1][1], found[-1][2] + length)
            else:
                found.append(known)
            there = first + length
        return found if sum(length for _, _, length in found) >= COPY_FROM_BYTES else []

    def _unknown_bytes(self, file: File, path: Path, there: int) -> int:
        """Return how many bytes are sent next: up to what the device has, unless that is little."""
        size = 0
        for sha256, first, length in self._chunks_of(file, path):
            if first + length <= there:
                continue
            if size and sha256 in self._there and length >= COPY_FROM_BYTES:
                break
            size = first + length - there
            if size >= PIECE_BYTES:
                break
        return min(size, PIECE_BYTES)

    def _chunks_of(self, file: File, path: Path) -> list[Chunk]:
        if file.sha256 not in self._chunks:
            self._chunks[file.sha256] = list(chunks_of(path))
        return self._chunks[file.sha256]

    def _forget(self, copies: list[Chunk]) -> None:
        """Forget the files of some pieces: the device has evicted one of them."""
        gone = {sha256 for sha256, _, _ in copies}
        self._there = {chunk: place for chunk, place in self._there.items() if place[0] not in gone}

    @contextlib.contextmanager
    def going_first(self) -> Iterator[None]:
        """Have transfers ahead wait meanwhile: another one is urgent, or the device measures.

        Receiving takes a small device's processor and storage, which a sample is to have for itself.
        """
        with self._turn:
            self._urgent += 1
        try:
            yield
        finally:
            with self._turn:
                self._urgent -= 1
                self._turn.notify_all()

    def _give_way(self, ahead: bool) -> None:
        with self._turn:
            while ahead and self._urgent:
                self._turn.wait()

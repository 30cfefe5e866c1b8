"""Copying a file to a device through pinned memory; what is asked of the device is small enough to be stood in for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from splitload.base.errors import StageError

# To pin memory takes about as long as to copy it several times: two buffers of this size are pinned in a millisecond or
# two, and a piece is still copied for ten times longer than it takes to ask for it.
PIECE_BYTES = 4 << 20


class Mark(Protocol):
    """A moment in the work of a device: all copies that were begun before it."""

    def wait(self) -> None:
        """Return when it is past."""

    def before_use(self) -> None:
        """Have what the calling thread asks of the device from now on come after it."""


class Backend(Protocol):
    """The few things that are asked of a device."""

    def memory(self, size_bytes: int) -> torch.Tensor:
        """Return bytes on the device, without values."""

    def begin(self) -> None:
        """Note that all memory has been taken: no copy may come before."""

    def pinned(self, size_bytes: int) -> torch.Tensor:
        """Return bytes of the processor that the device can read by itself."""

    def lane(self) -> Callable[[torch.Tensor, torch.Tensor], Mark]:
        """Return a call that begins to copy its second argument to its first, in order with its earlier calls."""


class Staging:
    """What one thread copies with: two pinned buffers, one filled while the other is copied.

    Args:
        backend: The device.
        piece_bytes: Size of a buffer.
    """

    def __init__(self, backend: Backend, piece_bytes: int = PIECE_BYTES) -> None:
        self._buffers = [backend.pinned(piece_bytes) for _ in range(2)]
        self._marks: list[Mark | None] = [None, None]
        self._begin_copy = backend.lane()
        self._turn = 0

    def copy(self, path: Path, start: int, target: torch.Tensor, stopped: Callable[[], bool]) -> Mark:
        """Begin to copy a file to the device; returns when all of it is read and the last copies are under way.

        Args:
            path: The file.
            start: Where to begin, in bytes.
            target: Where its bytes go, as many as there are behind `start`.
            stopped: Whether nobody wants it any more.

        Returns:
            When it is there.

        Raises:
            OSError: If it cannot be read.
            StageError: If it is too short, or `stopped`; nothing is under way any more then.
        """
        size = len(self._buffers[0])
        mark: Mark | None = None
        try:
            with path.open("rb", buffering=0) as file:
                file.seek(start)
                for begin in range(0, len(target) or 1, size):
                    piece = target[begin : begin + size]
                    self._turn = 1 - self._turn
                    busy = self._marks[self._turn]
                    if busy is not None:
                        busy.wait()
                    if stopped():
                        raise StageError("it was given up")
                    buffer = self._buffers[self._turn][: len(piece)]
                    _fill(buffer, file.readinto, path)
                    mark = self._marks[self._turn] = self._begin_copy(piece, buffer)
        except BaseException:
            for busy in self._marks:  # the memory must not be given to others meanwhile
                if busy is not None:
                    busy.wait()
            raise
        assert mark is not None  # noqa: S101 - there is one piece at least
        return mark


def _fill(buffer: torch.Tensor, readinto: Callable[[memoryview], int | None], path: Path) -> None:
    """Read as many bytes as a buffer has."""
    left = buffer.numpy().data
    while left:
        count = readinto(left)
        if not count:
            raise StageError(f"'{path.name}' is shorter than the manifest says; copy the bundle again")
        left = left[count:]

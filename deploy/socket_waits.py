"""Waits for a connection: for many bytes at a time, so that a weak processor is not woken for each packet.

Source: socket(7), SO_RCVLOWAT; tcp(7) of Linux, whose receive buffer grows by it; where a system has none, a packet
wakes as ever.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import sys
import time

MOST_AT_A_TIME = 1 << 16  # bytes that are waited for: while more come, those are decrypted
_MOST_KEPT = 1 << 24


class Waits:
    """Waits for one connection; one thread may wait for bytes, another one for room.

    Args:
        sock: The connection, which does not block.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._least = sock, 1
        self._bytes, self._room = selectors.DefaultSelector(), selectors.DefaultSelector()
        self._bytes.register(sock, selectors.EVENT_READ)
        self._room.register(sock, selectors.EVENT_WRITE)

    def keep(self, most_bytes: int) -> None:
        """Have the system keep so many bytes that nobody has taken yet, as far as it does.

        It grows a connection's buffer when somebody waits for that many; and so the other side can go on sending while
        this one computes.
        """
        self._set_least(min(most_bytes, _MOST_KEPT))

    def for_bytes(self, count: int, deadline_s: float | None) -> tuple[float, int]:
        """Wait until so many bytes are there, or `MOST_AT_A_TIME`, or the other side has ended.

        Args:
            count: At least 1, and no more than the other side will send.
            deadline_s: By `time.monotonic`; None for none.

        Returns:
            How long it was waited for, in seconds, and how many bytes came meanwhile; 0 where they were there.

        Raises:
            TimeoutError: If they do not come.
        """
        self._set_least(min(count, MOST_AT_A_TIME))
        if self._bytes.select(0):
            return 0.0, 0
        begun_s, before = time.monotonic(), _lying(self._sock)
        if not self._bytes.select(None if deadline_s is None else max(deadline_s - begun_s, 0)):
            raise TimeoutError
        return time.monotonic() - begun_s, max(_lying(self._sock) - before, 0)

    def for_room(self, timeout_s: float) -> None:
        """Wait until the system takes bytes to send.

        Raises:
            TimeoutError: If it does not for so many seconds.
        """
        if not self._room.select(timeout_s):
            raise TimeoutError("the other side takes nothing")

    def close(self) -> None:
        """Let go of the connection."""
        self._bytes.close()
        self._room.close()

    def _set_least(self, count: int) -> None:
        if count != self._least and hasattr(socket, "SO_RCVLOWAT"):
            with contextlib.suppress(OSError):  # where it is known and cannot be set
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
            self._least = count


def _lying(sock: socket.socket) -> int:
    """Return how many bytes have come and were not taken; 0 where a system does not tell."""
    try:
        import fcntl
        import termios
    except ImportError:  # not a POSIX system
        return 0
    count = bytearray(4)
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return int.from_bytes(count, sys.byteorder)

"""A link that is cut again and again: a TCP proxy that drops all connections, after so many bytes or at a moment."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

CUT_NEVER = 1 << 61  # bytes after which nothing is cut by itself
_STAYS = 2 * CUT_NEVER


class CutLink:
    """The proxy.

    Attributes:
        port: Where it listens.
        cuts: How often it was cut.
        up_bytes: What clients sent through it.
    """

    def __init__(self, target_port: int, draw: Callable[[], int]) -> None:
        self.cuts = self.up_bytes = 0
        self._target_port, self._draw = target_port, draw
        self._left = draw()
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut it now, where there is a connection."""
        with self._lock:
            if self._open and self._left <= CUT_NEVER:
                self.cuts += 1
                self._drop()
                self._left = self._draw()

    def stay(self) -> None:
        """Cut it no more."""
        with self._lock:
            self._left = _STAYS

    def close(self) -> None:
        """End it."""
        self._listening.close()
        with self._lock:
            self._drop()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self._target_port), 20)
                except OSError:
                    near.close()
                    continue
                far.settimeout(None)
                with self._lock:
                    self._open |= {near, far}
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink, source is near), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, is_up: bool) -> None:
        with suppress(OSError):
            while data := source.recv(16384):
                with self._lock:
                    passed = data[: self._left]
                    self._left -= len(passed)
                    self.up_bytes += len(passed) if is_up else 0
                if passed:
                    sink.sendall(passed)
                if len(passed) < len(data):
                    with self._lock:
                        if self._left == 0:
                            self.cuts += 1
                            self._drop()
                            self._left = self._draw()
                    return
        with self._lock:
            self._open -= {source, sink}
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # which ends the other direction
            each.close()

    def _drop(self) -> None:
        for each in self._open:
            with suppress(OSError):
                each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()


@contextmanager
def cut_link(target_port: int, draw: Callable[[], int]) -> Iterator[CutLink]:
    """Yield a proxy to a port of this machine.

    Args:
        target_port: The port.
        draw: Returns after how many bytes it is cut next.
    """
    made = CutLink(target_port, draw)
    try:
        yield made
    finally:
        made.close()

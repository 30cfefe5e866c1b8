"""An encrypted connection between a device and a server that share inferences: messages of rows, in both directions.

A message has a head of fixed size, then as many bytes as it says.

Python's SSL sockets must not be read and written at the same time. So OpenSSL works on memory here, for moments and
under a lock; sending and receiving wait outside of it.

A weak processor has no time for a packet at a time. Whoever computes hands its rows to the system itself, which sends
them meanwhile; and what comes lies with the system until much of it is there.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from splitload.base.errors import DeviceError
from splitload.base.record import Record
from splitload.deploy.socket_waits import Waits
from splitload.deploy.tls_records import RecordCount

HELLO, WELCOME, REFUSED, BEGIN, ROWS, DONE, FAILED, PROBE, ECHO, GIVEN_UP = range(1, 11)
_HEAD = struct.Struct("<BxHIIQ")  # kind, number, start, stop, bytes that follow
MOST_BYTES = 1 << 30  # that a message may have
MOST_TEXT = 1 << 16  # bytes of one of text
_READ_BYTES = 1 << 18
_CHUNK_BYTES = 1 << 16  # that are encrypted at a time
CONNECT_S, _SEND_S = 10.0, 30.0
_IDLE_S, _EVERY_S, _PROBES = 15, 5, 3  # until a machine that says nothing any more is taken for gone


class Message(Record):
    """What one side says.

    Attributes:
        kind: One of the constants of this file.
        number: Of a level or a plan.
        start: First row, or the arm of a plan.
        stop: Behind the last row.
        payload: What follows.
    """

    kind: int
    number: int
    start: int
    stop: int
    payload: bytearray

    def words(self) -> dict[str, Any]:
        """Return what a message of text says.

        Raises:
            DeviceError: If it says nothing.
        """
        try:
            found = json.loads(bytes(self.payload[:MOST_TEXT]))
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise DeviceError("the other side sends a message that says nothing; is it of this version of splitload?")
        return found


class ClosedError(DeviceError):
    """The other side is gone."""


class Channel:
    """One connection, once both sides know each other; messages are sent in order.

    Args:
        sock: The connection, which it closes.
        context: Of TLS.
        server_side: Whether it is the server's.

    Attributes:
        waited_bytes: What came since it was set to 0 while it was waited for, of messages whose head was there.
        waited_s: How long it was waited for, in seconds: what lay there already says nothing of the link.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.waited_bytes, self.waited_s = 0, 0.0
        self._sock = sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._lock = threading.Lock()  # of OpenSSL
        self._order = threading.Lock()  # of who sends
        self._later: queue.SimpleQueue[_Unsent | None] = queue.SimpleQueue()
        self._later_bytes = 0
        self._is_behind = False  # whether there is something that the sender has not sent yet
        self._error: Exception | None = None
        self._closed = False
        self._head: bytes | None = None  # of a message that has not come yet
        self._part: bytearray | None = None  # what has come of what is read
        self._done = 0
        self._handshake()
        begun = self._incoming.read()  # whole records have been taken out, of what follows nothing
        self._records = RecordCount()
        self._records.take(memoryview(begun))
        self._incoming.write(begun)
        sock.setblocking(False)
        self._waits = Waits(sock)
        self._buffer = bytearray(_READ_BYTES)
        self._sender = threading.Thread(target=self._send_later, name="splitload-sender", daemon=True)
        self._sender.start()

    def certificate(self) -> bytes:
        """Return the certificate of the other side; nothing where it showed none."""
        return self._tls.getpeercert(binary_form=True) or b""

    def expect(self, most_bytes: int) -> None:
        """Have the system keep messages of so many bytes until they are received, as far as it does."""
        self._waits.keep(most_bytes)

    def send(self, kind: int, number: int = 0, start: int = 0, stop: int = 0, parts: Sequence[Any] = ()) -> None:
        """Send a message: what the system takes at once, and the rest by a thread.

        Args:
            kind: See `Message`.
            number: See `Message`.
            start: See `Message`.
            stop: See `Message`.
            parts: Buffers that follow one another; they must not change until they are sent.

        Raises:
            ClosedError: If it cannot be sent, or an earlier one could not be.
        """
        views = [memoryview(part).cast("B") for part in parts]
        size = sum(map(len, views))
        unsent = _Unsent(b"", [memoryview(_HEAD.pack(kind, number, start, stop, size)), *views], _HEAD.size + size)
        with self._order:
            if self._error is not None or self._closed:
                raise ClosedError("the connection is closed")
            try:
                rest = unsent if self._is_behind else self._sent_now(unsent)
            except (OSError, ValueError) as error:
                self._error = error
                raise ClosedError(f"the connection breaks: {getattr(error, 'strerror', None) or error}") from error
            if rest is None:
                return
            self._is_behind = True
            self._later_bytes += rest.bytes
            is_full = self._later_bytes > MOST_BYTES
            self._later.put(rest)
        if is_full:
            self.close()
            raise ClosedError("the other side does not take what it is sent")

    def say(self, kind: int, **words: Any) -> None:
        """Send a message of text."""
        self.send(kind, parts=[json.dumps(words).encode()])

    def receive(self, timeout_s: float | None = None, most_bytes: int = MOST_BYTES) -> Message:
        """Return the next message.

        Args:
            timeout_s: How long to wait for all of it; None for ever.
            most_bytes: Of a message; a longer one breaks the connection.

        Raises:
            TimeoutError: If it does not come in time; what has come of it is kept for the next call.
            ClosedError: If the other side is gone.
            DeviceError: If it is no message.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        if self._head is None:
            self._head = bytes(self._read(_HEAD.size, deadline_s))
        kind, number, start, stop, size = _HEAD.unpack(self._head)
        if not HELLO <= kind <= GIVEN_UP or size > most_bytes:
            raise DeviceError(f"the other side sends a message of kind {kind} and {size} bytes, which there is not")
        payload = self._read(size, deadline_s, tells=True)
        self._head = None
        return Message(kind, number, start, stop, payload)

    def close(self, drain_s: float = 0.0) -> None:
        """End the connection; may be called again, by any thread.

        Args:
            drain_s: How long to wait until all is sent.
        """
        self._later.put(None)
        if drain_s and threading.current_thread() is not self._sender:
            self._sender.join(drain_s)
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._waits.close()

    def _handshake(self) -> None:
        deadline_s = time.monotonic() + CONNECT_S
        while True:
            try:
                self._tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                self._sock.settimeout(max(deadline_s - time.monotonic(), 1e-3))
                self._flush()
                data = self._sock.recv(_READ_BYTES)
                if not data:
                    raise ClosedError("the other side ends the connection at once") from None
                self._incoming.write(data)
            finally:
                self._flush()

    def _flush(self) -> None:
        if self._outgoing.pending:
            self._sock.sendall(self._outgoing.read())

    def _encrypted(self, parts: list[memoryview]) -> memoryview:
        """Return what the next bytes of some buffers are on the wire, and take them out of the list."""
        taken = 0
        with self._lock:
            while parts and taken < _CHUNK_BYTES:
                part = parts.pop(0)
                if len(part) > (room := _CHUNK_BYTES - taken):
                    parts.insert(0, part[room:])
                    part = part[:room]
                if len(part):
                    self._tls.write(part)
                taken += len(part)
            return memoryview(self._outgoing.read())

    def _sent_now(self, unsent: _Unsent) -> _Unsent | None:
        """Send what the system takes without waiting, and return the rest; None where there is none."""
        while unsent.parts:
            data = self._encrypted(unsent.parts)
            try:
                done = self._sock.send(data)
            except BlockingIOError:
                done = 0
            if done < len(data):
                return unsent._replace(encrypted=data[done:])
        return None

    def _send_later(self) -> None:
        """Send what could not be sent at once."""
        while (unsent := self._later.get()) is not None and not self._closed:
            try:
                data = memoryview(unsent.encrypted)
                while len(data) or unsent.parts:
                    if not len(data):
                        data = self._encrypted(unsent.parts)
                    self._waits.for_room(_SEND_S)
                    with contextlib.suppress(BlockingIOError):
                        data = data[self._sock.send(data) :]
            except (OSError, ValueError, KeyError) as error:
                self._error = error
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                break
            with self._order:
                self._later_bytes -= unsent.bytes
                self._is_behind = not self._later.empty()

    def _read(self, size: int, deadline_s: float | None, *, tells: bool = False) -> bytearray:
        """Return so many bytes.

        Args:
            size: How many.
            deadline_s: By `time.monotonic`; None for none.
            tells: Whether the sender has begun to send them, so that waiting tells what the link carries.
        """
        if self._part is None:
            self._part, self._done = bytearray(size), 0
        found, view = self._part, memoryview(self._part)
        while self._done < size:
            with self._lock, contextlib.suppress(ssl.SSLWantReadError):
                while self._done < size:
                    count = self._tls.read(size - self._done, view[self._done :])
                    if not count:
                        raise ClosedError("the other side has ended the connection")
                    self._done += int(count)
            if self._done < size:
                self._take(self._records.least(size - self._done), deadline_s, tells=tells)
        self._part = None
        return found

    def _take(self, missing: int, deadline_s: float | None, *, tells: bool) -> None:
        """Wait for bytes from the other side, and have OpenSSL take them."""
        try:
            waited_s, came = self._waits.for_bytes(missing, deadline_s)
            count = self._sock.recv_into(self._buffer)
        except TimeoutError:
            raise
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError) as error:  # of a socket that was closed meanwhile too
            raise ClosedError(f"the connection breaks: {getattr(error, 'strerror', None) or error}") from error
        if not count:
            raise ClosedError("the other side has ended the connection")
        if tells and waited_s:
            self.waited_bytes += came
            self.waited_s += waited_s
        data = memoryview(self._buffer)[:count]
        self._records.take(data)
        with self._lock:
            self._incoming.write(data)
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise TimeoutError


class _Unsent(NamedTuple):
    """What is to be sent: bytes that are encrypted already, then others; and how many these were at first."""

    encrypted: memoryview | bytes
    parts: list[memoryview]
    bytes: int


def prompt(sock: socket.socket) -> None:
    """Have a connection send what it is given at once, and notice when the other machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _IDLE_S), ("TCP_KEEPINTVL", _EVERY_S), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, name):  # where the system has it
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

"""An encrypted connection between a device and a server that share inferences: messages of rows, in both directions.

The server shows a certificate that the device knows by its fingerprint, and the device a token: together the code that
`splitload collaborate serve` prints. A message has a head of fixed size, then as many bytes as it says.

Python's SSL sockets must not be read and written at the same time. So OpenSSL works on memory here, for moments and
under a lock; sending and receiving wait outside of it.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import queue
import selectors
import socket
import ssl
import struct
import threading
import time
from collections.abc import Sequence
from typing import Any

from splitload.base.errors import DeviceError, UsageError
from splitload.base.record import Record
from splitload.deploy.credentials import Code, Credentials, fingerprint_of, read_code

PORT = 8760
SCHEME = "tls://"
HELLO, WELCOME, REFUSED, BEGIN, ROWS, DONE, FAILED, PROBE, ECHO = range(1, 10)
_HEAD = struct.Struct("<BxHIIQ")  # kind, number, start, stop, bytes that follow
MOST_BYTES = 1 << 30  # that a message may have
MOST_TEXT = 1 << 16  # bytes of one of text
_READ_BYTES = 1 << 18
_CHUNK_BYTES = 1 << 16  # that are encrypted at a time
_CONNECT_S, _SEND_S = 10.0, 30.0
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
    """One connection, once both sides know each other; messages are sent by a thread of its own, in order.

    Args:
        sock: The connection, which it closes.
        context: Of TLS.
        server_side: Whether it is the server's.

    Attributes:
        waited_bytes: What was received since it was set to 0 in pieces that had to be waited for.
        waited_s: How long they were waited for, in seconds: what lay there already says nothing of the link.
    """

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> None:
        self.waited_bytes, self.waited_s = 0, 0.0
        self._sock = sock
        self._ready = selectors.DefaultSelector()
        self._ready.register(sock, selectors.EVENT_READ)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Sequence[Any] | None] = queue.SimpleQueue()
        self._queued_bytes = 0
        self._error: Exception | None = None
        self._closed = False
        self._handshake()
        sock.settimeout(_SEND_S)  # of sending; receiving waits for the socket to be ready
        self._sender = threading.Thread(target=self._send_all, name="splitload-sender", daemon=True)
        self._sender.start()

    def certificate(self) -> bytes:
        """Return the certificate of the other side; nothing where it showed none."""
        return self._tls.getpeercert(binary_form=True) or b""

    def send(self, kind: int, number: int = 0, start: int = 0, stop: int = 0, parts: Sequence[Any] = ()) -> None:
        """Have a message be sent, and go on.

        Args:
            kind: See `Message`.
            number: See `Message`.
            start: See `Message`.
            stop: See `Message`.
            parts: Buffers that follow one another; they must not change until they are sent.

        Raises:
            ClosedError: If an earlier one could not be sent.
        """
        if self._error is not None or self._closed:
            raise ClosedError("the connection is closed")
        views = [memoryview(part).cast("B") for part in parts]
        head = _HEAD.pack(kind, number, start, stop, sum(map(len, views)))
        with self._lock:
            self._queued_bytes += len(head) + sum(map(len, views))
            is_full = self._queued_bytes > MOST_BYTES
        if is_full:
            self.close()
            raise ClosedError("the other side does not take what it is sent")
        self._queue.put([head, *views])

    def say(self, kind: int, **words: Any) -> None:
        """Have a message of text be sent."""
        self.send(kind, parts=[json.dumps(words).encode()])

    def receive(self, timeout_s: float | None = None, most_bytes: int = MOST_BYTES) -> Message:
        """Return the next message.

        Args:
            timeout_s: How long to wait for all of it; None for ever.
            most_bytes: Of a message; a longer one breaks the connection.

        Raises:
            TimeoutError: If it does not come in time; nothing can be received any more then.
            ClosedError: If the other side is gone.
            DeviceError: If it is no message.
        """
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        kind, number, start, stop, size = _HEAD.unpack(self._read(_HEAD.size, deadline_s))
        if not HELLO <= kind <= ECHO or size > most_bytes:
            raise DeviceError(f"the other side sends a message of kind {kind} and {size} bytes, which there is not")
        return Message(kind, number, start, stop, self._read(size, deadline_s))

    def close(self, drain_s: float = 0.0) -> None:
        """End the connection; may be called again, by any thread.

        Args:
            drain_s: How long to wait until all is sent.
        """
        self._queue.put(None)
        if drain_s and threading.current_thread() is not self._sender:
            self._sender.join(drain_s)
        self._closed = True
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
        self._ready.close()

    def _handshake(self) -> None:
        deadline_s = time.monotonic() + _CONNECT_S
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

    def _send_all(self) -> None:
        while (parts := self._queue.get()) is not None and not self._closed:
            try:
                for part in parts:
                    for at in range(0, len(part), _CHUNK_BYTES):
                        with self._lock:
                            self._tls.write(part[at : at + _CHUNK_BYTES])
                            data = self._outgoing.read()
                        self._sock.sendall(data)
                with self._lock:
                    self._queued_bytes -= sum(map(len, parts))
            except (OSError, ValueError) as error:
                self._error = error
                with contextlib.suppress(OSError):
                    self._sock.shutdown(socket.SHUT_RDWR)
                break

    def _read(self, size: int, deadline_s: float | None) -> bytearray:
        found = bytearray(size)
        view, done = memoryview(found), 0
        while done < size:
            with self._lock, contextlib.suppress(ssl.SSLWantReadError):
                while done < size:
                    count = self._tls.read(size - done, view[done:])
                    if not count:
                        raise ClosedError("the other side has ended the connection")
                    done += int(count)
            if done < size:
                data = self._received(deadline_s)
                with self._lock:
                    self._incoming.write(data)
        return found

    def _received(self, deadline_s: float | None) -> bytes:
        begun_s = time.monotonic()
        try:
            has_waited = not self._ready.select(0)
            if has_waited and not self._ready.select(None if deadline_s is None else max(deadline_s - begun_s, 0)):
                raise TimeoutError
            data = self._sock.recv(_READ_BYTES)
        except TimeoutError:
            raise
        except (OSError, ValueError, KeyError) as error:  # of a socket that was closed meanwhile too
            raise ClosedError(f"the connection breaks: {getattr(error, 'strerror', None) or error}") from error
        if not data:
            raise ClosedError("the other side has ended the connection")
        if deadline_s is not None and time.monotonic() > deadline_s:
            raise TimeoutError
        if has_waited:
            self.waited_bytes += len(data)
            self.waited_s += time.monotonic() - begun_s
        return data


def prompt(sock: socket.socket) -> None:
    """Have a connection send what it is given at once, and notice when the other machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", _IDLE_S), ("TCP_KEEPINTVL", _EVERY_S), ("TCP_KEEPCNT", _PROBES)):
        if hasattr(socket, name):  # where the system has it
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Server(Record):
    """Where a server is.

    Attributes:
        host: Name or address.
        port: Where it listens.
        code: What it showed.
    """

    host: str
    port: int
    code: Code


def read_server(word: str) -> Server:
    """Return where a server is of which the address says it: "tls://HOST:PORT/#CODE".

    Raises:
        UsageError: If it is no such address.
    """
    cure = "give the whole address that 'splitload collaborate serve' shows, in quotes"
    place, _, text = word.removeprefix(SCHEME).partition("/#")
    host, _, port = place.rpartition(":")
    if not word.startswith(SCHEME) or not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or not text:
        raise UsageError(f"'{word:.80}' is no address of a server; {cure}")
    code = read_code(text)
    if code.fingerprint is None:
        raise UsageError(f"the code in '{word:.80}' is cut short; {cure}")
    return Server(host.strip("[]"), int(port), code)


def connect(server: Server, **words: Any) -> Channel:
    """Connect to a server and have it take this device.

    Args:
        server: Where it is.
        words: What the device says of itself.

    Raises:
        DeviceError: If it is not there, is another one than the code is of, or refuses; the message says which.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # its certificate is compared below
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    place = f"{server.host}:{server.port}"
    sock: socket.socket | None = None
    try:
        sock = socket.create_connection((server.host, server.port), _CONNECT_S)
        prompt(sock)
        channel = Channel(sock, context, server_side=False)
    except (OSError, DeviceError) as error:
        if sock is not None:
            sock.close()
        raise DeviceError(f"no server answers at {place}: {getattr(error, 'strerror', None) or error}") from error
    try:
        if not hmac.compare_digest(fingerprint_of(channel.certificate()), server.code.fingerprint or ""):
            raise DeviceError(f"what answers at {place} is not the server that the code is of; nothing was sent to it")
        channel.say(HELLO, token=server.code.token, **words)
        answer = channel.receive(_CONNECT_S, MOST_TEXT)
        if answer.kind != WELCOME:
            reason = answer.words().get("reason") if answer.kind == REFUSED else None
            raise DeviceError(f"the server at {place} refuses: {str(reason or 'it does not say why')[:300]}")
    except TimeoutError as error:
        channel.close()
        raise DeviceError(f"the server at {place} does not answer") from error
    except BaseException:
        channel.close()
        raise
    return channel


def serving_context(credentials: Credentials) -> ssl.SSLContext:
    """Return the context of TLS of a server."""
    assert credentials.certificate is not None and credentials.key is not None  # noqa: S101 - made with TLS
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0  # nobody resumes a session
    context.load_cert_chain(credentials.certificate, credentials.key)
    return context


def greeted(channel: Channel, token: str) -> dict[str, Any]:
    """Return what a device says of itself, once it has shown the token; who has not is refused.

    Raises:
        DeviceError: If it has not.
    """
    message = channel.receive(_CONNECT_S, MOST_TEXT)
    words = message.words() if message.kind == HELLO else {}
    if not hmac.compare_digest(str(words.get("token", "")).encode(errors="replace"), token.encode()):
        channel.say(REFUSED, reason="the code is not the one that it shows")
        raise DeviceError("a device came with another code")
    return words

"""The server that devices share their inferences with: one bundle, one collaboration, as many devices as come."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import BundleError, DeviceError, SplitloadError, StageError
from splitload.base.regular import sha256_of
from splitload.bundle.collaboration import ArmEntry, Collaboration, ProgramStep, read_collaboration
from splitload.bundle.manifest import MANIFEST
from splitload.deploy import channel as wire
from splitload.deploy.channel import Channel, Message, greeted, serving_context
from splitload.deploy.credentials import Credentials
from splitload.deploy.shared_run import PieceRunner
from splitload.runtime.inputs import DTYPES

STATISTICS = struct.Struct("<QdQ")  # bytes of the largest message received, its seconds, bytes of all
_STALLED_S = 30.0  # for a device that has begun an inference and sends nothing
_DRAIN_S = 1.0
MOST_CONNECTIONS = 64


class Turns:
    """Lets as many threads work as there are processors, those that wait longest first.

    Args:
        count: How many at a time.
    """

    def __init__(self, count: int) -> None:
        self._free, self._waiting = count, deque[threading.Event]()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Return a block that waits for a turn, and ends it."""
        turn = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                turn.set()
            else:
                self._waiting.append(turn)
        turn.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._free += 1


class ShareServer:
    """Serves a collaboration until it is closed.

    Args:
        folder: Of the collaboration.
        bundle: Of the bundle.
        credentials: With a certificate.
        host: Address to listen at.
        port: Where; 0 for any that is free.
        processors: How many pieces are computed at a time, each by one thread.
        tell: Takes a line for people.

    Attributes:
        port: Where it listens.

    Raises:
        BundleError: If the collaboration is damaged, or of another bundle.
        DeviceError: If it cannot listen there.
    """

    def __init__(
        self,
        folder: Path,
        bundle: Path,
        credentials: Credentials,
        *,
        host: str = "127.0.0.1",
        port: int = wire.PORT,
        processors: int = 1,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._collaboration = opened(folder, bundle)
        self._sha256 = sha256_of(folder / MANIFEST)
        self._runner = PieceRunner(folder, bundle, self._collaboration, turns=Turns(processors).one)
        self._credentials, self._context, self._tell = credentials, serving_context(credentials), tell
        self._most_bytes = max(wire.MOST_TEXT, *(tensor_bytes(each) for each in self._collaboration.tensors)) * 8
        self._channels: set[Channel] = set()
        self._room = threading.BoundedSemaphore(MOST_CONNECTIONS)
        self._lock = threading.Lock()
        try:
            self._listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise DeviceError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
        self.port = int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Take devices until `close`."""
        while True:
            try:
                sock, place = self._listener.accept()
            except OSError:  # closed
                return
            if not self._room.acquire(blocking=False):
                sock.close()
                continue
            threading.Thread(target=self._served, args=(sock, f"{place[0]}:{place[1]}"), daemon=True).start()

    def close(self) -> None:
        """End all connections, and `run`."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            channels = list(self._channels)
        for each in channels:
            each.close()

    def _served(self, sock: socket.socket, place: str) -> None:
        """Serve one device until it goes, and make room for another one."""
        try:
            self._take(sock, place)
        finally:
            self._room.release()

    def _take(self, sock: socket.socket, place: str) -> None:
        try:
            wire.prompt(sock)
            channel = Channel(sock, self._context, server_side=True)
        except (OSError, DeviceError):
            sock.close()
            return
        with self._lock:
            self._channels.add(channel)
        try:
            words = greeted(channel, self._credentials.code.token)
            if words.get("collaboration") != self._sha256:
                channel.say(wire.REFUSED, reason="it has another collaboration, or another version of it: copy it anew")
                raise DeviceError("it has another collaboration")
            channel.say(wire.WELCOME)
            self._tell(f"{place} is here")
            while True:
                self._answer(channel, channel.receive(None, self._most_bytes))
        except wire.ClosedError:
            self._tell(f"{place} is gone")
        except (SplitloadError, TimeoutError) as error:
            with contextlib.suppress(DeviceError):
                channel.say(wire.FAILED, reason=str(error) or "it sent nothing for too long")
            self._tell(f"{place} is let go: {error or 'it sent nothing for too long'}")
        finally:
            channel.close(_DRAIN_S)
            with self._lock:
                self._channels.discard(channel)

    def _answer(self, channel: Channel, message: Message) -> None:
        """Do what a message asks for.

        Raises:
            SplitloadError: If it asks for what there is not, or that fails.
        """
        if message.kind == wire.PROBE:
            channel.send(wire.ECHO, message.number)
            return
        if message.number >= len(self._collaboration.plans) or message.kind != wire.BEGIN:
            raise DeviceError(f"it sends a message of kind {message.kind} that is out of place")
        arms = self._collaboration.plans[message.number].arms
        if not message.start < len(arms):
            raise DeviceError(f"it asks for arm {message.start}, there are {len(arms)}")
        self._infer(channel, arms[message.start])

    def _infer(self, channel: Channel, plan: ArmEntry) -> None:
        largest, seconds, total = 0, 0.0, 0

        def send(step: ProgramStep, parts: Sequence[Any]) -> None:
            channel.send(wire.ROWS, step.number, step.start, step.stop, parts)

        def receive(step: ProgramStep) -> list[Any]:
            nonlocal largest, seconds, total
            rows = rows_of(self._runner, step, channel.receive(_STALLED_S, self._most_bytes))
            size = sum(each.nbytes for each in rows)
            total += size
            if size > largest:
                largest, seconds = size, channel.payload_s
            return rows

        self._runner.follow(plan.server, self._runner.store(), send, receive)
        channel.send(wire.DONE, parts=[STATISTICS.pack(largest, seconds, total)])


def opened(folder: Path, bundle: Path) -> Collaboration:
    """Return the collaboration in a folder, which must be of a bundle.

    Raises:
        BundleError: If it is damaged, or of another bundle.
    """
    collaboration = read_collaboration(folder)
    if sha256_of(bundle / MANIFEST) != collaboration.bundle_sha256:
        raise BundleError(
            f"'{folder}' was made for another bundle than '{bundle}', or for this one before it was made again; "
            "'splitload collaborate plan' makes it anew"
        )
    return collaboration


def tensor_bytes(tensor: Any) -> int:
    """Return the size of a tensor that is exchanged, in bytes."""
    return int(np.prod(tensor.shape)) * np.dtype(DTYPES[tensor.type]).itemsize


def rows_of(runner: PieceRunner, step: ProgramStep, message: Message) -> list[Any]:
    """Return the rows in a message, as arrays over its bytes.

    Raises:
        DeviceError: If it is another message than the step waits for.
    """
    if message.kind == wire.FAILED:
        raise StageError(f"the other side fails: {str(message.words().get('reason'))[:300]}")
    if (message.kind, message.number, message.start, message.stop) != (wire.ROWS, *step[1:]):
        raise DeviceError("the other side sends other rows than the plan says; have both the same collaboration?")
    found, at = [], 0
    for part in runner.parts(step):
        tensor = runner.tensors[part.tensor]
        dtype = np.dtype(DTYPES[tensor.type])
        count = int(np.prod(tensor.shape))
        if part.stop is not None and tensor.axis is not None:
            count = count // tensor.shape[tensor.axis] * (part.stop - part.start)
        if at + count * dtype.itemsize > len(message.payload):
            raise DeviceError("the other side sends fewer bytes than the rows have")
        found.append(np.frombuffer(message.payload, dtype, count, at))
        at += count * dtype.itemsize
    if at != len(message.payload):
        raise DeviceError("the other side sends more bytes than the rows have")
    return found

"""The server that devices share their inferences with: one bundle, one collaboration, as many devices as come."""

from __future__ import annotations

import contextlib
import math
import socket
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import BundleError, DeviceError, StageError
from splitload.base.machine import cpu_architecture
from splitload.base.regular import sha256_of
from splitload.bundle.collaboration import ArmEntry, Collaboration, Part, ProgramStep, read_collaboration
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import check_graph, read_manifest
from splitload.deploy import channel as wire
from splitload.deploy.channel import Channel, Message
from splitload.deploy.credentials import Credentials
from splitload.deploy.greeting import PORT, greeted, serving_context
from splitload.deploy.shared_run import PieceRunner
from splitload.deploy.shared_timeline import Span, packed
from splitload.runtime.inputs import DTYPES

STATISTICS = struct.Struct("<Qd")  # bytes that were waited for, and how long
_STALLED_S = 30.0  # for a device that has begun an inference and sends nothing
_DRAIN_S, _AGAIN_S = 1.0, 0.1
_IDLE_BYTES = 1 << 20  # of a message between two inferences, a probe at most
MOST_CONNECTIONS, MOST_STRANGERS = 64, 16


class _GivenUpError(DeviceError):
    """The device does not wait for an inference any more."""


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
        port: int = PORT,
        processors: int = 1,
        tell: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._collaboration = opened(folder, bundle)
        if why := unfit(self._collaboration):
            raise DeviceError(why)
        read_manifest(bundle, "hashes")  # whose weights answer for others
        self._sha256 = sha256_of(folder / MANIFEST)
        self._runner = PieceRunner(folder, bundle, self._collaboration, turns=Turns(processors).one)
        self._credentials, self._context, self._tell = credentials, serving_context(credentials), tell
        self._channels: set[Channel] = set()
        self._strangers: deque[socket.socket] = deque()  # who have not shown the code yet, the first one first
        self._is_closed = False
        self._lock = threading.Lock()
        try:
            self._listener = socket.create_server(
                (host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET
            )
        except OSError as error:
            raise DeviceError(f"cannot listen at {host}:{port}: {error.strerror or error}") from error
        self.port = int(self._listener.getsockname()[1])

    def run(self) -> None:
        """Take devices until `close`; what plans need is opened meanwhile, so that no device waits for it."""
        threading.Thread(target=self._open_all, name="splitload-opener", daemon=True).start()
        while True:
            try:
                sock, place = self._listener.accept()
            except OSError:
                if self._is_closed:
                    return
                time.sleep(_AGAIN_S)  # too many files, or a connection that has gone already
                continue
            with self._lock:
                self._strangers.append(sock)
                longest = self._strangers.popleft() if len(self._strangers) > MOST_STRANGERS else None
            if longest is not None:  # whoever takes long to say who it is keeps nobody out
                _end(longest)
            thread = threading.Thread(target=self._served, args=(sock, f"{place[0]}:{place[1]}"), daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more threads
                self._forget(sock)
                sock.close()

    def close(self) -> None:
        """End all connections, and `run`."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            channels, strangers = list(self._channels), list(self._strangers)
        for each in channels:
            each.close()
        for sock in strangers:
            _end(sock)

    def _open_all(self) -> None:
        steps = [step for plan in self._collaboration.plans for arm in plan.arms for step in arm.server]
        for step in steps:
            if self._is_closed:
                return
            with contextlib.suppress(StageError):  # an inference that needs it says so
                self._runner.open([step])

    def _forget(self, sock: socket.socket) -> None:
        with self._lock, contextlib.suppress(ValueError):
            self._strangers.remove(sock)

    def _served(self, sock: socket.socket, place: str) -> None:
        """Serve one device until it goes."""
        try:
            wire.prompt(sock)
            channel = Channel(sock, self._context, server_side=True)
        except (OSError, DeviceError, RuntimeError):  # the last where the system has no more threads
            self._forget(sock)
            sock.close()
            return
        try:
            words = greeted(channel, self._credentials.code.token)
            if words.get("collaboration") != self._sha256:
                channel.say(wire.REFUSED, reason="it has another collaboration, or another version of it: copy it anew")
                raise DeviceError("it has another collaboration")
            self._take_in(channel)
            self._forget(sock)
            self._say(f"{place} is here")
            while True:
                self._answer(channel, channel.receive(None, _IDLE_BYTES))
        except wire.ClosedError:
            self._say(f"{place} is gone")
        except Exception as error:  # whatever a stranger sends ends its own connection, and no other
            why = " ".join(str(error).split())[:300] or "it sent nothing for too long"
            with contextlib.suppress(DeviceError):
                channel.say(wire.FAILED, reason=why)
            self._say(f"{place} is let go: {why}")
        finally:
            self._forget(sock)
            channel.close(_DRAIN_S)
            with self._lock:
                self._channels.discard(channel)

    def _take_in(self, channel: Channel) -> None:
        """Count a device among those that are served.

        Raises:
            DeviceError: If there are too many, or the server ends.
        """
        with self._lock:
            is_full = len(self._channels) >= MOST_CONNECTIONS
            if not is_full:
                self._channels.add(channel)
        if is_full:
            channel.say(wire.REFUSED, reason=f"it helps {MOST_CONNECTIONS} devices already")
            raise DeviceError(f"{MOST_CONNECTIONS} others are here already")
        if self._is_closed:
            raise wire.ClosedError("the server ends")
        channel.say(wire.WELCOME)

    def _say(self, line: str) -> None:
        with contextlib.suppress(Exception):  # who reads it may be gone
            self._tell(line)

    def _answer(self, channel: Channel, message: Message) -> None:
        """Do what a message asks for.

        Raises:
            SplitloadError: If it asks for what there is not, or that fails.
        """
        if message.kind == wire.PROBE:
            channel.send(wire.ECHO, message.number)
            return
        if message.kind == wire.GIVEN_UP:  # of an inference that is done
            return
        if message.number >= len(self._collaboration.plans) or message.kind != wire.BEGIN:
            raise DeviceError(f"it sends a message of kind {message.kind} that is out of place")
        arms = self._collaboration.plans[message.number].arms
        if not message.start < len(arms):
            raise DeviceError(f"it asks for arm {message.start}, there are {len(arms)}")
        self._infer(channel, arms[message.start], is_traced=bool(message.stop))

    def _infer(self, channel: Channel, plan: ArmEntry, *, is_traced: bool) -> None:
        begun_s = time.perf_counter()
        channel.waited_bytes, channel.waited_s = 0, 0.0
        channel.expect(received_bytes(self._runner, plan.server))
        spans: list[Span] | None = [] if is_traced else None

        def send(step: ProgramStep, parts: Sequence[Any]) -> None:
            channel.send(wire.ROWS, *heading(step), parts)

        def receive(step: ProgramStep) -> list[Any]:
            most_bytes = max(rows_bytes(self._runner, step), wire.MOST_TEXT)
            message = channel.receive(_STALLED_S, most_bytes)
            if message.kind == wire.GIVEN_UP:
                raise _GivenUpError
            return rows_of(self._runner, step, message)

        with contextlib.suppress(_GivenUpError):
            self._runner.follow(plan.server, self._runner.store(), send, receive, spans)
        told = b"" if spans is None else packed(spans, begun_s, time.perf_counter())
        channel.send(wire.DONE, parts=[STATISTICS.pack(channel.waited_bytes, channel.waited_s), told])


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def opened(folder: Path, bundle: Path) -> Collaboration:
    """Return the collaboration in a folder, which must be of a bundle.

    Raises:
        BundleError: If it is damaged, or of another bundle.
    """
    collaboration = read_collaboration(folder)
    try:
        names = {file.name for file in read_manifest(bundle, "none").files()}
        for piece in collaboration.pieces:
            check_graph(folder / piece.graph.name, names)
    except OSError as error:
        raise BundleError(f"'{folder}' or '{bundle}' cannot be read: {error.strerror or error}") from error
    if sha256_of(bundle / MANIFEST) != collaboration.bundle_sha256:
        raise BundleError(
            f"'{folder}' was made for another bundle than '{bundle}', or for this one before it was made again; "
            "'splitload collaborate plan' makes it anew"
        )
    return collaboration


def unfit(collaboration: Collaboration) -> str:
    """Return why the pieces of a collaboration cannot run here; nothing where they can."""
    if collaboration.cpu in (None, cpu_architecture()):
        return ""
    return f"the collaboration was made for {collaboration.cpu}, this machine is {cpu_architecture()}: plan for both"


def received_bytes(runner: PieceRunner, steps: Iterable[ProgramStep]) -> int:
    """Return how many bytes a program receives in all."""
    return sum(rows_bytes(runner, step) for step in steps if step.kind == "receive")


def rows_bytes(runner: PieceRunner, step: ProgramStep) -> int:
    """Return how many bytes the rows of a step have."""
    return sum(_part_count(runner, part) * _dtype(runner, part).itemsize for part in step.parts)


def heading(step: ProgramStep) -> tuple[int, int, int]:
    """Return what the head of a message says of its rows: the level, and rows of the first tensor."""
    first = step.parts[0]
    return step.number, first.start, first.stop or 0


def _dtype(runner: PieceRunner, part: Part) -> np.dtype[Any]:
    return np.dtype(DTYPES[runner.tensors[part.tensor].type])


def _part_count(runner: PieceRunner, part: Part) -> int:
    """Return how many elements some rows have."""
    tensor = runner.tensors[part.tensor]
    count = math.prod(tensor.shape)
    if part.stop is not None and tensor.axis is not None:
        count = count // tensor.shape[tensor.axis] * (part.stop - part.start)
    return count


def rows_of(runner: PieceRunner, step: ProgramStep, message: Message) -> list[Any]:
    """Return the rows in a message, as arrays over its bytes.

    Raises:
        DeviceError: If it is another message than the step waits for.
    """
    if message.kind == wire.FAILED:
        raise StageError(f"the other side fails: {str(message.words().get('reason'))[:300]}")
    if (message.kind, message.number, message.start, message.stop) != (wire.ROWS, *heading(step)):
        raise DeviceError("the other side sends other rows than the plan says; have both the same collaboration?")
    found, at = [], 0
    for part in step.parts:
        dtype, count = _dtype(runner, part), _part_count(runner, part)
        if at + count * dtype.itemsize > len(message.payload):
            raise DeviceError("the other side sends fewer bytes than the rows have")
        rows = np.frombuffer(message.payload, dtype, count, at)
        found.append(rows if rows.flags.aligned else rows.copy())
        at += count * dtype.itemsize
    if at != len(message.payload):
        raise DeviceError("the other side sends more bytes than the rows have")
    return found

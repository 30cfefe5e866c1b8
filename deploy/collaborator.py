"""A loader that shares every inference with a server, and answers alone where that is not there or too slow."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import DeviceError, SplitloadError, UsageError
from splitload.base.record import Record
from splitload.base.regular import sha256_of
from splitload.bundle.collaboration import MOST_S, SHARED, ArmEntry, ProgramStep, beside
from splitload.bundle.manifest import MANIFEST
from splitload.deploy import channel as wire
from splitload.deploy.channel import Channel
from splitload.deploy.greeting import connect, read_server
from splitload.deploy.keeping import begin_keeping
from splitload.deploy.share_server import STATISTICS, heading, opened, received_bytes, rows_bytes, rows_of, unfit
from splitload.deploy.shared_run import PieceRunner
from splitload.deploy.shared_timeline import Moment, Span, joined, unpacked
from splitload.runtime.inputs import DTYPES
from splitload.runtime.loader import ParallelLoader

ALONE_IS_QUICKER = "by this link the device is quicker alone"
PATIENCE = 3.0  # times what a plan is predicted to take: past that the device answers alone
LEAST_DEADLINE_S = 0.05
RETRY_S, MOST_RETRY_S = 1.0, 30.0
PROBE_BYTES = 1 << 16
PROBE_EVERY_S = 1.0  # where no rows were exchanged that tell
_PROBE_S, _LATE_S = 10.0, 30.0  # for the answer to a probe, and to an inference that was given up
_TELLING_BYTES = 1 << 15  # of a message from which the link's speed can be told
_WEIGHT = 0.5  # of a new figure beside those before


class Shared(Record):
    """How an inference was answered.

    Attributes:
        by: "both" machines, or the "device" alone.
        why: Why it was alone; empty where it was not.
        bytes_per_s: Of the link, as the plan was chosen for.
        latency_s: What it took.
    """

    by: str
    why: str
    bytes_per_s: float | None
    latency_s: float


class Collaborator(ParallelLoader):
    """`ParallelLoader` of which every `run` is shared with a server.

    It answers alone at first, while a thread connects, measures the link and opens what a plan needs; and whenever the
    server is not there, is slower than `deadline_s`, or fails. Then the connection is given up and made anew later, and
    no call waits for that. Inputs of other sizes or types than the plan was made for are the device's alone.

    Args:
        bundle: The bundle.
        server: "tls://HOST:PORT/#CODE", as `splitload collaborate serve` shows it; None for no server.
        collaboration: Where the plans are; None for the folder `NAME.collaboration` beside the bundle.
        arm: Which of a plan's arms is done: the shared one, or to compare with one that shares nothing.
        deadline_s: When the device gives a shared inference up; None for `PATIENCE` times what is predicted.
        tell: Takes a line for people when the server comes or goes.
        options: Those of `ParallelLoader`.

    Attributes:
        last: How the last call was answered; None before the first.
        is_traced: Whether to note what both machines do in a shared call, and when.
        moments: Of the last call that was shared and traced.

    Raises:
        UsageError: If the address is none.
        BundleError: If the collaboration is damaged, or of another bundle.
    """

    last: Shared | None = None
    is_traced: bool = False
    moments: tuple[Moment, ...] = ()

    def __init__(
        self,
        bundle: str | os.PathLike[str],
        server: str | None,
        *,
        collaboration: str | os.PathLike[str] | None = None,
        arm: str = SHARED,
        deadline_s: float | None = None,
        tell: Callable[[str], None] = lambda _: None,
        **options: Any,
    ) -> None:
        place = Path(os.path.realpath(bundle))
        folder = beside(place) if collaboration is None else Path(collaboration)
        self._server = None if server is None else read_server(server)
        self._runner = PieceRunner(folder, place, opened(folder, place))
        self._arm = arm
        self._runner.collaboration.plan_for(0.0, arm)  # raises where there is no such arm
        self._sha256 = sha256_of(folder / MANIFEST)
        if deadline_s is not None and not 0 < deadline_s <= MOST_S:
            raise UsageError(f"deadline_s takes seconds up to {MOST_S:g}, not {deadline_s!r:.40}")
        self._deadline_s, self._tell = deadline_s, tell
        self._turn = threading.Lock()  # of who speaks on the channel
        self._changed, self._end = threading.Event(), threading.Event()
        self._channel: Channel | None = None
        self._plan: tuple[int, int, ArmEntry] | None = None  # what is ready: a plan's number, an arm's in it, the arm
        self._late = False  # whether the server still has an inference that was given up
        self._bytes_per_s: float | None = None
        self._learned_s = 0.0  # when that was learned, by `time.monotonic`
        self._retry_s = RETRY_S
        self._why = "no server is given" if server is None else "the server has not answered yet"
        super().__init__(bundle, **options)
        if why := self._unshared(options):
            self._why = why
        elif self._server is not None:
            begin_keeping(self, Collaborator._keep_up, self._end, self._changed, PROBE_EVERY_S)

    def close(self) -> None:
        """End the connection, and let go of all stages."""
        self._end.set()
        self._changed.set()
        if (channel := self._channel) is not None:
            channel.close()
        super().close()

    def __enter__(self) -> Collaborator:
        super().__enter__()
        return self

    def wait_for_server(self, timeout_s: float | None = None) -> bool:
        """Wait until inferences are shared; return whether they are."""
        deadline_s = None if timeout_s is None else time.monotonic() + timeout_s
        while self._channel is None or self._plan is None or self._late:
            if self._end.is_set() or (deadline_s is not None and time.monotonic() > deadline_s):
                return False
            time.sleep(0.005)
        return True

    @property
    def why_alone(self) -> str:
        """Why the device answers alone for now; empty where it does not."""
        return self._why if self._channel is None or self._plan is None or self._late else ""

    @property
    def predicted_s(self) -> float:
        """What an inference is predicted to take by what is known of the link, in seconds."""
        return self._runner.collaboration.plan_for(self._bytes_per_s or 0.0, self._arm)[2].predicted_s

    @property
    def bytes_per_s(self) -> float | None:
        """What the link to the server carries, as the last exchanges told; None where that is not known."""
        return self._bytes_per_s

    def _unshared(self, options: Mapping[str, Any]) -> str:
        """Return why no call can be shared; nothing where calls can."""
        if self.tail is not None:
            return "the last stage is personalized, and plans are of the bundle as it was made"
        if options.keys() & {"sess_options", "providers", "provider_options", "frozen_only"}:
            return "plans are of the whole bundle with options of their own"
        if self._arrays != "numpy":
            return "outputs are wanted as buffers"
        return unfit(self._runner.collaboration)

    def _inherit(self) -> None:
        """Become, in a forked child, a loader that answers alone: the connection is the parent's."""
        super()._inherit()
        self._channel, self._plan, self._turn = None, None, threading.Lock()
        self._why = "this process was forked from the one that is connected"

    def _compute(
        self, output_names: Sequence[str] | None, feeds: Mapping[str, Any], run_options: Any, *, keep: bool = False
    ) -> list[Any]:
        """Share the call where that is possible, or answer it alone."""
        start_s = time.perf_counter()
        why = "the call asks for what the device alone can do" if keep or run_options is not None else ""
        if not why and not self._is_planned(output_names, feeds):
            why = "its inputs or outputs are others than the plan was made for"
        answers: dict[str, Any] | None = None
        if not why:
            if self._turn.acquire(blocking=False):
                try:
                    answers, why = self._shared(feeds)
                finally:
                    self._turn.release()
            else:
                why = "another call is being shared"
        if answers is not None:
            specs = self._runner.collaboration.outputs
            found = [answers[name] for name in output_names or [spec.name for spec in specs]]
        else:
            found = super()._compute(output_names, feeds, run_options, keep=keep)
        by = "device" if answers is None else "both"
        self.last = Shared(by, why, self._bytes_per_s, time.perf_counter() - start_s)
        return found

    def _is_planned(self, output_names: Sequence[str] | None, feeds: Mapping[str, Any]) -> bool:
        """Return whether a call is one that the plans are made for."""
        collaboration, tensors = self._runner.collaboration, self._runner.tensors
        known = {spec.name for spec in collaboration.outputs}
        if output_names and not all(isinstance(name, str) and name in known for name in output_names):
            return False
        return feeds.keys() == {spec.name for spec in collaboration.inputs} and all(
            isinstance(value, np.ndarray)
            and value.shape == tensors[name].shape
            and value.dtype == DTYPES[tensors[name].type]
            for name, value in feeds.items()
        )

    def _shared(self, feeds: Mapping[str, Any]) -> tuple[dict[str, Any] | None, str]:
        """Return the outputs of a call that is shared; or None, and why it is not."""
        channel, plan = self._channel, self._plan
        if channel is None or plan is None or self._late:
            return None, self._why
        arm = plan[2]
        if not arm.server:
            return None, ALONE_IS_QUICKER
        patience_s = max(PATIENCE * arm.predicted_s, LEAST_DEADLINE_S) if self._deadline_s is None else self._deadline_s
        deadline_s = time.monotonic() + patience_s
        why, is_kept, answers = "the call was interrupted", False, None
        try:
            answers = self._exchanged(channel, plan, feeds, deadline_s)
            why, is_kept = "", True
        except TimeoutError:
            why = f"the server took longer than {1e3 * patience_s:.0f} ms"
            is_kept = self._give_up(channel, why)
        except Exception as error:
            why = str(error) or type(error).__name__
        finally:  # what is on its way would be taken for answers of the next call
            if not is_kept:
                self._lose(channel, why)
        return answers, why

    def _exchanged(
        self, channel: Channel, plan: tuple[int, int, ArmEntry], feeds: Mapping[str, Any], deadline_s: float
    ) -> dict[str, Any]:
        begun_s, is_traced = time.perf_counter(), self.is_traced
        number, place, arm = plan
        channel.expect(received_bytes(self._runner, arm.device))
        channel.send(wire.BEGIN, number, place, int(is_traced))
        spans: list[Span] | None = [] if is_traced else None

        def send(step: ProgramStep, parts: Sequence[Any]) -> None:
            channel.send(wire.ROWS, *heading(step), parts)

        def receive(step: ProgramStep) -> list[Any]:
            most_bytes = max(rows_bytes(self._runner, step), wire.MOST_TEXT)
            left_s = max(deadline_s - time.monotonic(), 1e-6)
            return rows_of(self._runner, step, channel.receive(left_s, most_bytes))

        store = self._runner.store()
        level = self._runner.collaboration.levels[0]
        for name in level.tensors:
            store.put(name, 0, None if level.is_whole else level.num_rows, np.ascontiguousarray(feeds[name]))
        self._runner.follow(arm.device, store, send, receive, spans)
        done = channel.receive(max(deadline_s - time.monotonic(), 1e-6), wire.MOST_TEXT)
        if done.kind != wire.DONE or len(done.payload) < STATISTICS.size:
            raise DeviceError("the server does not end the inference as it should")
        carried_bytes, seconds = STATISTICS.unpack_from(done.payload)
        if spans is not None:
            latency_s = time.perf_counter() - begun_s
            server_s, served = unpacked(done.payload[STATISTICS.size :], len(arm.server))
            own = [(start - begun_s, end - begun_s) for start, end in spans]
            self.moments = joined(arm, own, served, latency_s, server_s)
        if carried_bytes >= _TELLING_BYTES and 0 < seconds < MOST_S:
            self._learn(carried_bytes / seconds)
        self._retry_s = RETRY_S
        last = self._runner.collaboration.levels[-1]
        stop = None if last.is_whole else last.num_rows
        found = {name: store.get(name, 0, stop) for name in last.tensors}
        return {name: value.reshape(self._runner.tensors[name].shape) for name, value in found.items()}

    def _learn(self, bytes_per_s: float) -> None:
        """Note what the link has just carried, and have another plan be prepared where that one is better."""
        known, self._learned_s = self._bytes_per_s, time.monotonic()
        self._bytes_per_s = bytes_per_s if known is None else known ** (1 - _WEIGHT) * bytes_per_s**_WEIGHT
        if self._runner.collaboration.plan_for(self._bytes_per_s, self._arm) != self._plan:
            self._changed.set()

    def _give_up(self, channel: Channel, why: str) -> bool:
        """Tell the server that nobody waits for the inference any more; return whether it could be told.

        What it sends still is taken by the thread that keeps the connection; until then calls are answered alone.
        """
        self._late, self._why = True, why  # before anything can interrupt: no call takes what is on its way
        try:
            channel.send(wire.GIVEN_UP)
        except DeviceError:
            return False
        self._changed.set()
        return True

    def _catch_up(self, channel: Channel) -> None:
        """Take what belongs to an inference that was given up, and measure the link anew."""
        with self._turn:
            deadline_s = time.monotonic() + _LATE_S
            while True:
                message = channel.receive(max(deadline_s - time.monotonic(), 1e-6))
                if message.kind == wire.FAILED:
                    raise DeviceError(f"the server fails: {str(message.words().get('reason'))[:300]}")
                if message.kind == wire.DONE:
                    break
            self._bytes_per_s = None
            self._learn(_probed(channel))
            self._prepare()
            self._late = False

    def _lose(self, channel: Channel, why: str) -> None:
        """Give a connection up, and have it made anew later."""
        if self._channel is channel:
            self._channel, self._late, self._why = None, False, why
            self._changed.set()
        channel.close()
        self._say(f"the server is given up: {why}")

    def _say(self, line: str) -> None:
        with contextlib.suppress(Exception):  # it is the caller's
            self._tell(line)

    def _keep_up(self, is_idle: bool) -> tuple[Channel | None, float | None]:
        """Connect, or do what the connection needs; see `begin_keeping`.

        A server that is lost again and again is asked less and less often, until it has helped once more.
        """
        try:
            if self._channel is None:
                self._begin_sharing()
            elif is_idle:
                self._probe_idle()
            if (channel := self._channel) is not None:
                if self._late:
                    self._catch_up(channel)
                self._prepare()
                return channel, None
        except Exception as error:
            self._why = str(error) or "the server does not answer"
            if (channel := self._channel) is not None:
                self._lose(channel, self._why)
        wait_s, self._retry_s = self._retry_s, min(2 * self._retry_s, MOST_RETRY_S)
        return None, wait_s

    def _begin_sharing(self) -> None:
        assert self._server is not None  # noqa: S101 - there is no such thread without
        channel = connect(self._server, version=1, collaboration=self._sha256)
        try:
            self._bytes_per_s = None
            self._learn(_probed(channel))
            self._prepare()
        except BaseException:
            channel.close()
            raise
        self._channel = channel
        if self._end.is_set():
            channel.close()
            return
        self._say(f"the server is there, {8e-6 * (self._bytes_per_s or 0):.0f} Mbit/s")

    def _prepare(self) -> None:
        """Open what the best plan for the link needs, then take it."""
        if self._bytes_per_s is not None:
            plan = self._runner.collaboration.plan_for(self._bytes_per_s, self._arm)
            self._runner.open(plan[2].device)
            self._plan = plan

    def _probe_idle(self) -> None:
        """Measure the link where no exchange has for a while."""
        channel = self._channel
        if channel is None or self._plan is None or self._late:
            return
        if time.monotonic() - self._learned_s < PROBE_EVERY_S / 2:
            return
        if not self._turn.acquire(blocking=False):
            return
        try:
            self._learn(_probed(channel))
        except (SplitloadError, OSError, TimeoutError) as error:
            self._lose(channel, str(error) or "the server does not answer")
        finally:
            self._turn.release()


def _probed(channel: Channel) -> float:
    """Return what a link carries in a second, in bytes: of a small and of a large message, both answered."""

    def taken_s(size: int) -> float:
        start_s = time.perf_counter()
        channel.send(wire.PROBE, parts=[bytes(size)])
        if channel.receive(_PROBE_S, wire.MOST_TEXT).kind != wire.ECHO:
            raise DeviceError("the server does not answer a probe")
        return time.perf_counter() - start_s

    least_s = min(taken_s(1) for _ in range(3))
    return PROBE_BYTES / max(taken_s(PROBE_BYTES) - least_s, 1e-6)

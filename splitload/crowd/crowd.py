"""Crowd: a bundle's stages on the workers of a Dask cluster, as a streaming pipeline; outputs come in order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import itertools
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from splitload.base.errors import ClusterError, SplitloadError, StageError, UsageError
from splitload.bundle.manifest import Manifest, TensorSpec
from splitload.crowd.attempts import Answer
from splitload.crowd.chain import Chains, read_bundle
from splitload.crowd.codec import Encoded, decoded, encoded, opened, parcel
from splitload.crowd.driver import Driver
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.members import Members
from splitload.crowd.pipeline import Pipeline
from splitload.crowd.report import CrowdReport, report_of
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.tensor import in_form, tensor_of

Outputs = dict[str, Any]
Waiting = dict[int, "concurrent.futures.Future[Outputs]"]
_CLOSE_S = 5.0
_WAIT_S = 0.2  # between looks for a Ctrl-C, which waiting for a lock would not see on some systems


class Crowd:
    """A model whose stages run on the workers of a Dask cluster; inputs stream through it.

    Each input is a mapping of the model's input names to arrays, one batch; each output is a mapping of its output
    names to numpy arrays, or `Tensor` where numpy has no such type (bfloat16). Workers may join, leave and die
    meanwhile. All methods may be called from many threads, none from the event loop of the client.

    Args:
        bundle: The `NAME.splitload` folder; every byte of it is checked, and sent to the workers where they lack it.
        client: A `distributed.Client` of a cluster whose workers have this version of splitload.
        mechanisms: What the crowd makes use of; all by default.
        max_in_flight: Inputs that are on their way at a time; by default a few for each worker.
        ceiling_bytes: What a worker may use for a stage, beside what it says itself; None for no more than that.

    Attributes:
        manifest: What the bundle says.

    Raises:
        BundleError: If the bundle is damaged.
        ClusterError: If there is no worker that can run its stages, or the client is closed.
        UsageError: If the client is asynchronous, or the bundle is one that a crowd does not run.
    """

    def __init__(
        self,
        bundle: str | Path,
        client: Any,
        *,
        mechanisms: Mechanisms | None = None,
        max_in_flight: int | None = None,
        ceiling_bytes: int | None = None,
    ) -> None:
        if getattr(client, "asynchronous", True):
            raise UsageError("a Crowd needs a client that is not asynchronous: distributed.Client(address)")
        self.manifest = read_bundle(bundle)
        self._loop: asyncio.AbstractEventLoop = client.loop.asyncio_loop
        self._count = itertools.count()
        self._adding = threading.Lock()
        self._open: set[concurrent.futures.Future[Outputs]] = set()
        self._coming = 0  # inputs that the driver has not seen yet
        switches = mechanisms or Mechanisms()
        self._compresses = switches.compression == "always"
        self._is_closed = False
        if not self._loop.is_running():
            raise ClusterError("the client of this crowd is closed")
        work = _started(client, Path(bundle), self.manifest, switches, max_in_flight, ceiling_bytes)
        beginning = self._in_loop(work)
        try:
            self._driver: Driver = beginning.result()
        except BaseException:  # an interrupt as well
            beginning.cancel()
            raise

    def submit(self, inputs: Mapping[str, Any]) -> concurrent.futures.Future[Outputs]:
        """Have an input computed, and return at once what will have its outputs.

        Its `result` raises a `UsageError` for inputs that are not the model's, a `StageError` where a stage does not
        run on them, or was lost with its worker and recovery is off, and a `ClusterError` where no worker is left, or
        the crowd was closed. It cannot be cancelled.

        Args:
            inputs: An array for each input of the model.

        Raises:
            ClusterError: If the crowd is closed.
        """
        if self._is_closed or not self._loop.is_running():
            raise ClusterError("the crowd is closed, or its client is")
        future: concurrent.futures.Future[Outputs] = concurrent.futures.Future()
        future.set_running_or_notify_cancel()
        try:
            packed = self._packed(inputs)
        except SplitloadError as error:
            future.set_exception(error)
            return future
        self._open.add(future)
        future.add_done_callback(self._open.discard)
        with self._adding:  # the driver takes them in the order of their numbers
            self._coming += 1
            self._loop.call_soon_threadsafe(self._add, next(self._count), packed, _answering(future))
        return future

    def map(self, inputs: Iterable[Mapping[str, Any]]) -> Iterator[Outputs | SplitloadError]:
        """Yield the outputs of inputs in their order; an input that fails has its error in its place.

        No more inputs are read than may be on their way at a time, those included whose outputs wait for their turn.

        Args:
            inputs: Mappings of input names to arrays.

        Raises:
            ClusterError: If no worker is left, or the crowd is closed.
        """
        return (outputs for _, outputs in self._stream(inputs, ordered=True))

    def as_completed(self, inputs: Iterable[Mapping[str, Any]]) -> Iterator[tuple[int, Outputs | SplitloadError]]:
        """Yield the place of each input and its outputs, or its error, as they come; otherwise as `map`.

        Args:
            inputs: Mappings of input names to arrays.

        Raises:
            ClusterError: If no worker is left, or the crowd is closed.
        """
        return self._stream(inputs, ordered=False)

    def report(self) -> CrowdReport:
        """Return what the workers did so far, and what was sent."""
        report: CrowdReport = self._in_loop(report_of(self._driver)).result()
        return report

    def close(self) -> None:
        """Withdraw what has not begun, and have the workers let go of their stages; the client stays open.

        Futures that are not done get a `ClusterError`. May be called again.
        """
        if self._is_closed:
            return
        self._is_closed = True
        if self._loop.is_running():
            with contextlib.suppress(TimeoutError, concurrent.futures.CancelledError):
                self._in_loop(self._driver.end()).result(_CLOSE_S)
        for future in list(self._open):  # of a client that was closed before
            with contextlib.suppress(concurrent.futures.InvalidStateError):
                future.set_exception(ClusterError("the crowd was closed, or its client was"))

    def _add(self, item: int, packed: bytes, answer: Answer) -> None:
        self._driver.add(item, packed, answer)
        with self._adding:
            self._coming -= 1

    def _in_loop(self, work: Any) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _stream(
        self, inputs: Iterable[Mapping[str, Any]], *, ordered: bool
    ) -> Iterator[tuple[int, Outputs | SplitloadError]]:
        """Yield the place of each input and its outputs, or its error, in their order or as they come."""
        waiting: Waiting = {}
        source, is_read = enumerate(inputs), False
        changed = threading.Condition()
        while True:
            while not is_read and self._has_room(waiting):
                if (following := next(source, None)) is None:
                    is_read = True
                else:
                    self._submitted(waiting, *following, changed)
            if not waiting:
                return
            with changed:
                while not (done := _done(waiting, ordered=ordered)) and (is_read or not self._has_room(waiting)):
                    changed.wait(_WAIT_S)
                    if not self._loop.is_running():  # nothing can come any more
                        self.close()
            for place in done:
                yield place, _outcome(waiting.pop(place))

    def _has_room(self, waiting: Waiting) -> bool:
        """Return whether one more input may be on its way, beside those whose outputs nobody has taken yet.

        Who has none on its way may have one: the others are of other calls, which may wait for this one.
        """
        return not waiting or self._driver.room() - self._coming > sum(each.done() for each in waiting.values())

    def _submitted(
        self,
        waiting: Waiting,
        place: int,
        inputs: Mapping[str, Any],
        changed: threading.Condition,
    ) -> None:
        """Submit an input, and have `changed` told when it is done."""

        def tell(_: object) -> None:
            with changed:
                changed.notify()

        waiting[place] = self.submit(inputs)
        waiting[place].add_done_callback(tell)

    def _packed(self, inputs: Mapping[str, Any]) -> bytes:
        """Return the model's inputs as a parcel.

        Raises:
            UsageError: If they are not what the model takes.
        """
        specs = {spec.name: spec for spec in self.manifest.inputs}
        if not isinstance(inputs, Mapping):
            raise UsageError(f"an input of a crowd maps names to arrays, and a {type(inputs).__name__} does not")
        if missing := specs.keys() - inputs.keys():
            raise UsageError(f"the inputs {sorted(missing)} are missing; the model has {sorted(specs)}")
        if others := inputs.keys() - specs.keys():
            raise UsageError(f"the model has no inputs {sorted(map(str, others))}; it has {sorted(specs)}")
        return parcel(
            {name: _checked(specs[name], inputs[name], self._compresses) for name in self._driver.chains.common.given}
        )

    def __enter__(self) -> Crowd:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


async def _started(
    client: Any,
    folder: Path,
    manifest: Manifest,
    mechanisms: Mechanisms,
    max_in_flight: int | None,
    ceiling_bytes: int | None,
) -> Driver:
    """Gather the workers of a cluster, and begin.

    Args:
        client: A `distributed.Client`.
        folder: The bundle.
        manifest: What it says.
        mechanisms: See `Mechanisms`.
        max_in_flight: See `Pipeline`.
        ceiling_bytes: What a worker may use for a stage, beside what it says itself; None for no more than that.

    Raises:
        ClusterError: If there is no worker that can run stages.
    """
    members = Members(client, uuid.uuid4().hex[:12])
    try:
        met = await members.gather()
        workers = {each.address: each.introduced for each in met}
        chains = Chains(manifest, workers, keep_mapped=mechanisms.one_resident)
        pipeline = Pipeline([link.scheduled for link in chains.common.links], mechanisms, max_in_flight)
        return Driver(client, folder, members, chains, pipeline, ceiling_bytes)
    except BaseException:  # cancelled, too: those that were met are watched already
        await members.end()
        raise


def _answering(future: concurrent.futures.Future[Outputs]) -> Answer:
    """Return what hands the outputs of an input, or its error, to a future."""

    def answer(outputs: bytes | None, error: Exception | None) -> None:
        if future.done():  # the crowd was closed meanwhile
            return
        if outputs is None:
            future.set_exception(error or StageError("the outputs are lost"))
            return
        try:
            future.set_result({name: _array(data) for name, data in opened(outputs).items()})
        except SplitloadError as damage:
            future.set_exception(damage)

    return answer


def _array(data: memoryview) -> Any:
    tensor = tensor_of(decoded(data))
    return tensor if tensor.dtype == "bfloat16" else in_form(tensor, "numpy")


def _done(waiting: Waiting, *, ordered: bool) -> list[int]:
    """Return the places of the inputs that are done: of all, or of those before which none is under way."""
    if ordered:
        return list(itertools.takewhile(lambda place: waiting[place].done(), waiting))
    return [place for place, future in waiting.items() if future.done()]


def _outcome(future: concurrent.futures.Future[Outputs]) -> Outputs | SplitloadError:
    """Return the outputs of an input that is done, or its own error; raise one that is the crowd's."""
    error = future.exception()
    if error is None:
        return future.result()
    if isinstance(error, SplitloadError) and not isinstance(error, ClusterError):
        return error
    raise error


def _checked(spec: TensorSpec, given: Any, compress: bool) -> Encoded:
    """Return an input as it travels.

    Raises:
        UsageError: If it is not what the model takes.
    """
    try:
        memory = memory_of(given)
    except TypeError as error:
        raise UsageError(f"input '{spec.name}' is no array of numbers: {error}") from error
    if memory.element.type != spec.type:
        raise UsageError(f"input '{spec.name}' is a {memory.element.type}, the model takes a {spec.type}")
    if spec.shape is not None and not (
        len(memory.shape) == len(spec.shape)
        and all(not isinstance(size, int) or size == got for size, got in zip(spec.shape, memory.shape, strict=True))
    ):
        raise UsageError(f"input '{spec.name}' has the shape {list(memory.shape)}, the model takes {list(spec.shape)}")
    return encoded(memory, compress=compress)

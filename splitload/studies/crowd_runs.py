"""One batch through a crowd of emulated devices: how long it took, whether it was right, what it cost."""

from __future__ import annotations

import concurrent.futures
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import SplitloadError, StageError
from splitload.bundle.manifest import File
from splitload.crowd.chain import chain_of, read_bundle
from splitload.crowd.crowd import Crowd
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.orders import PIECE_BYTES
from splitload.crowd.report import CrowdReport
from splitload.crowd.settings import DEFAULT_CACHE_BYTES
from splitload.deploy.stage_cache import StageCache
from splitload.measure import pagecache
from splitload.runtime.answers import TOLERANCE, relative_error
from splitload.studies.crowd_child import forget_stages, rest
from splitload.studies.crowd_subjects import Feeds, Subject
from splitload.studies.emulation import Emulation

_FORGET_S = 15.0
Sample = dict[str, Any]


class Tally:
    """What came back for each input of a batch.

    Args:
        subject: What was run.
        seeds: Of the inputs, in order.
        unsplit: What the unsplit model answers to them, by seed, where it is run as the stages are.
    """

    def __init__(
        self, subject: Subject, seeds: Sequence[int], unsplit: Mapping[int, Sequence[Any]] | None = None
    ) -> None:
        self._names = subject.output_names
        self._expected = subject.expect(seeds)
        self._unsplit, self._unsplit_errors = unsplit, list[float]()
        self._seeds = seeds
        self._times: Counter[int] = Counter()
        self._errors: dict[int, float] = {}
        self.failed: dict[int, str] = {}

    def take(self, place: int, outputs: Any) -> None:
        """Take what came for the input at a place."""
        self._times[place] += 1
        if isinstance(outputs, SplitloadError):
            self.failed[place] = str(outputs)
            return
        seed = self._seeds[place]
        self._errors[place] = self._error(outputs, self._expected[seed])
        if self._unsplit is not None:
            self._unsplit_errors.append(self._error(outputs, self._unsplit[seed]))

    def _error(self, outputs: Any, expected: Sequence[Any]) -> float:
        return max(
            relative_error(np.asarray(outputs[name]), each) for name, each in zip(self._names, expected, strict=True)
        )

    @property
    def count(self) -> int:
        """How many outputs, or errors, there are."""
        return self._times.total()

    def result(self) -> Sample:
        """Return how many inputs were lost, came twice, came with an error and were wrong, and how far outputs are off.

        Errors are relative to the largest element of an output. `largest_error` is from a stock session, and more than
        `TOLERANCE` is wrong; `largest_unsplit_error` is from the unsplit model in sessions like those of the stages.
        The outputs of two inputs one behind the other differ by at least `least_difference`: swapped ones would show.
        """
        expected = [self._expected[seed] for seed in self._seeds]
        return {
            "num_inputs": len(self._seeds),
            "lost": sum(self._times[place] == 0 for place in range(len(self._seeds))),
            "doubled": sum(times > 1 for times in self._times.values()),
            "failed": len(self.failed),
            "wrong": sum(not error <= TOLERANCE for error in self._errors.values()),
            "largest_error": max(self._errors.values(), default=None),
            "largest_unsplit_error": max(self._unsplit_errors, default=None),
            "least_difference": min(map(relative_error, expected, expected[1:]), default=None),
        }


def forget(emulation: Emulation) -> None:
    """Have all devices forget the stages on their disks.

    Raises:
        StageError: If one does not.
    """
    deadline_s = time.monotonic() + _FORGET_S  # a crowd that was closed just now may still be ending its uses
    while any(left := list(emulation.client.run(forget_stages).values())):
        if time.monotonic() > deadline_s:
            raise StageError(f"workers still use stages that they were to forget: {left}")
        time.sleep(0.1)
    if None in left:
        raise StageError("a worker was in no crowd yet, and does not know its disk: run a warm batch first")


def begin_anew(emulation: Emulation, subject: Subject) -> None:
    """Start all workers anew, with all stages of a bundle on their disks, and none in the page cache.

    Raises:
        SplitloadError: If that cannot be.
    """

    def fill(disk: Path) -> None:
        cache = StageCache(disk, DEFAULT_CACHE_BYTES)
        try:
            for link in links:
                missing = cache.request(link.order.key, link.order.files)
                for file in link.order.files:
                    if file.sha256 in missing:
                        _copy(subject.bundle / file.name, cache, file)
                cache.place(link.order.key, link.order.files)
                cache.release(link.order.key)
        finally:
            cache.close()
        pagecache.evict([file for file in disk.rglob("*") if file.is_file()])

    manifest = read_bundle(subject.bundle)
    links = chain_of(manifest, manifest.variants[0], keep_mapped=True).links
    emulation.restart_all(fill)


def _copy(path: Path, cache: StageCache, file: File) -> None:
    there = 0
    with path.open("rb") as opened:
        while there < file.bytes:
            opened.seek(there)
            there = cache.write(file, there, opened.read(PIECE_BYTES))


def run_batch(
    emulation: Emulation,
    subject: Subject,
    seeds: Sequence[int],
    mechanisms: Mechanisms | None = None,
    *,
    cold: bool = False,
    unsplit: Mapping[int, Sequence[Any]] | None = None,
    meanwhile: Callable[[Crowd], None] | None = None,
    on_output: Callable[[int], None] | None = None,
) -> Sample:
    """Run a batch on a crowd of its own, which no worker holds a stage of in memory.

    Args:
        emulation: The devices.
        subject: What is run.
        seeds: Of its inputs.
        mechanisms: See `Mechanisms`.
        cold: Whether workers have no stage on their disks either.
        unsplit: See `Tally`.
        meanwhile: Called as the first input is given.
        on_output: Called with the number of outputs that are there, after each.

    Returns:
        - batch_s: From the first input given to the last output.
        - What `Tally.result` returns.
        - Bytes sent, of the crowd's report, and processor seconds of all workers.
        - By device, resident memory of its worker, as the system counts it from outside: joined_bytes when it had just
          joined, idle_bytes before the first input, peak_bytes the most during the batch, rested_bytes when it has let
          go of all stages. None where it did not live through the batch.
        - most_resident: The most stages that any worker has held.
        - stages: By device and stage, how many inputs it ran and in how many seconds.

    Raises:
        SplitloadError: If the crowd fails as a whole.
    """
    tally = Tally(subject, seeds, unsplit)
    given = [subject.inputs(seed) for seed in seeds] if len(seeds) <= 32 else map(subject.inputs, seeds)
    emulation.client.run(rest)
    if cold:
        forget(emulation)
    with Crowd(subject.bundle, emulation.client, mechanisms=mechanisms) as crowd:
        idle_bytes = _resident(emulation)
        emulation.reset_peaks()
        start_s = time.perf_counter()
        if meanwhile is not None:
            meanwhile(crowd)
        for place, outputs in _answers(crowd, given, together=mechanisms is None or mechanisms.recovery):
            tally.take(place, outputs)
            if on_output is not None:
                on_output(tally.count)
        batch_s = time.perf_counter() - start_s
        report = crowd.report()
        taken = _taken(report, emulation)
    return {
        "batch_s": batch_s,
        "cold": cold,
        **tally.result(),
        "idle_bytes": idle_bytes,
        "rested_bytes": _resident(emulation),
        **taken,
    }


def _resident(emulation: Emulation) -> dict[str, int | None]:
    return {name: emulation.resident_bytes(name) for name in emulation.names}


def _answers(crowd: Crowd, given: Iterable[Feeds], *, together: bool) -> Iterator[tuple[int, Any]]:
    """Yield the place and the outputs of inputs, or their errors, as they come.

    Args:
        crowd: What computes them.
        given: The inputs.
        together: Whether the loss of one that no worker can make up for ends the batch; otherwise that is its error.
    """
    if together:
        yield from crowd.as_completed(given)
        return
    places = {crowd.submit(feeds): place for place, feeds in enumerate(given)}
    for future in concurrent.futures.as_completed(places):
        error = future.exception()
        if error is not None and not isinstance(error, SplitloadError):
            raise error
        yield places[future], future.result() if error is None else error


def _taken(report: CrowdReport, emulation: Emulation) -> Sample:
    """Return what a report says of the cost."""
    traffic = report.traffic
    present = [device for device in report.devices if device.is_present]
    return {
        "inputs_bytes": traffic.inputs_bytes,
        "between_bytes": traffic.between_bytes,
        "outputs_bytes": traffic.outputs_bytes,
        "saved_bytes": traffic.saved_bytes,
        "stages_from_client_bytes": report.stages_from_client_bytes,
        "stages_between_bytes": report.stages_between_bytes,
        "cpu_s": sum(device.cpu_s for device in report.devices),
        "peak_bytes": {device.name: emulation.peak_bytes(device.name) for device in present},
        "joined_bytes": {device.name: device.idle_bytes for device in present},
        "most_resident": max(device.most_resident for device in report.devices),
        "loads": sum(task.kind == "load" for device in report.devices for task in device.timeline.tasks),
        "stages": {device.name: _by_stage(device.timeline.tasks) for device in present},
    }


def _by_stage(tasks: Sequence[Any]) -> dict[str, dict[str, float]]:
    """Return for each stage how many inputs a device ran, and in how many seconds."""
    found: dict[str, dict[str, float]] = {}
    for task in tasks:
        if task.kind == "infer":
            entry = found.setdefault(str(task.stage), {"count": 0, "run_s": 0.0})
            entry["count"] += 1
            entry["run_s"] += task.end_s - task.start_s
    return found

"""A simulated crowd on a virtual clock: it drives the same `Pipeline` as the engine, from ten devices to ten thousand.

What is simulated: runs, loads, links, the client's own link, a scheduler that does one thing at a time, deaths, hangs
and cut links. Not: contention inside a device, lost packets, links that change their speed.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitload.base.errors import ClusterError
from splitload.crowd.entities import Assignment, Fetch, Measured, Preparation, Stage, Worker
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.pipeline import Pipeline
from splitload.crowd.simulated_links import Link, StageSources, through, transfer


@dataclass(frozen=True)
class SimulatedDevice:
    """A device of a simulated crowd.

    Attributes:
        worker: As it joins. Its true speed is `speed`, which the scheduler learns from its reports.
        speed: How many times faster than the worker that the stages' seconds are of; None for `worker.speed`.
        dies_s: When it dies; infinity if it does not.
        hangs: Half-open spans of seconds in which it computes nothing.
        cuts: Half-open spans of seconds in which nothing reaches it or leaves it.
    """

    worker: Worker
    speed: float | None = None
    dies_s: float = math.inf
    hangs: tuple[tuple[float, float], ...] = ()
    cuts: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Surroundings:
    """What a simulated crowd has in common.

    Attributes:
        client_bytes_per_s: What the client's link carries in each direction.
        peers: Whether devices send stages to each other; otherwise the client sends all of them.
        input_bytes: Bytes of one item's input, sent by the client.
        scheduling_s: Seconds the scheduler is busy with each task; it does one at a time.
        notice_s: Seconds until a dead worker, or one whose link is cut for as long, is given up.
        spread: Standard deviation of the logarithm of run and load seconds: 0.1 makes about 10 %.
        seed: Of all that is drawn.
    """

    client_bytes_per_s: float = math.inf
    peers: bool = True
    input_bytes: int = 0
    scheduling_s: float = 0.0
    notice_s: float = 1.0
    spread: float = 0.0
    seed: int = 0


@dataclass
class DeviceTally:
    """What a device did: seconds of each kind, tasks that counted, bytes that reached it."""

    run_s: float = 0.0
    load_s: float = 0.0
    fetch_s: float = 0.0
    tasks: int = 0
    loads: int = 0
    stage_bytes: int = 0
    tensor_bytes: int = 0


@dataclass(frozen=True)
class Simulation:
    """What a simulated run came to; all seconds are simulated.

    Attributes:
        makespan_s: From the first item to the last result at the client: the latency of the batch.
        completed_s: When each result reached the client, by item.
        order: Items in the order in which results were taken.
        tallies: By device.
        scheduler_s: Seconds the scheduler was busy.
        client_s: Seconds the client's link was busy, both directions together.
        client_bytes: Bytes that the client sent and got.
        client_stage_bytes: Bytes of these that were stages.
        max_in_flight: The most items that were on their way at once.
        num_assignments: Tasks that were sent, those sent anew included.
    """

    makespan_s: float
    completed_s: dict[int, float]
    order: tuple[int, ...]
    tallies: dict[str, DeviceTally]
    scheduler_s: float
    client_s: float
    client_bytes: int
    client_stage_bytes: int
    max_in_flight: int
    num_assignments: int

    @property
    def items_per_s(self) -> float:
        """Throughput of the whole run."""
        return len(self.completed_s) / self.makespan_s if self.makespan_s else math.inf

    def busy_share(self, device: str) -> float:
        """Return the share of the run that a device computed."""
        return self.tallies[device].run_s / self.makespan_s if self.makespan_s else 0.0


def simulate(
    stages: Sequence[Stage],
    devices: Sequence[SimulatedDevice],
    num_items: int,
    mechanisms: Mechanisms | None = None,
    surroundings: Surroundings | None = None,
    watch: Callable[[Pipeline], None] | None = None,
) -> Simulation:
    """Run items through a simulated crowd.

    Args:
        stages: The chain.
        devices: The crowd.
        num_items: Items, all there from the beginning.
        mechanisms: As of `Pipeline`.
        surroundings: Links, scheduler, noise.
        watch: Called with the pipeline before anything else, to measure it.

    Raises:
        ClusterError: A stage is needed that no device can hold, or no device is left.
    """
    pipeline = Pipeline(stages, mechanisms)
    if watch is not None:
        watch(pipeline)
    return _Run(pipeline, devices, num_items, surroundings or Surroundings()).run()


@dataclass
class _Device:
    """A device during the simulation; `busy_s` is when it is free."""

    simulated: SimulatedDevice
    tally: DeviceTally
    resident: set[int]
    cached: set[int]
    busy_s: float = 0.0
    generation: int = 0  # counts how often it was given up: what it reports of an earlier time does not arrive
    cancelled: set[int] = field(default_factory=set)

    @property
    def speed(self) -> float:
        return self.simulated.worker.speed if self.simulated.speed is None else self.simulated.speed


class _Run:
    def __init__(
        self, pipeline: Pipeline, devices: Sequence[SimulatedDevice], num_items: int, surroundings: Surroundings
    ) -> None:
        self.pipeline = pipeline
        self.around = surroundings
        self.num_items = num_items
        self.devices = {
            device.worker.name: _Device(
                device,
                DeviceTally(),
                set() if device.worker.resident is None else {device.worker.resident},
                set(device.worker.cached),
            )
            for device in devices
        }
        self.random = random.Random(surroundings.seed)  # noqa: S311
        self.events: list[tuple[float, int, Callable[[float], None]]] = []
        self.numbers = itertools.count()
        self.links = {
            name: Link(device.simulated.worker.link_bytes_per_s, device.simulated.cuts)
            for name, device in self.devices.items()
        }
        self.alive = {name: device.simulated.dies_s for name, device in self.devices.items()}
        self.client = Link(surroundings.client_bytes_per_s)
        self.client_bytes = self.client_stage_bytes = 0
        self.sources = StageSources(len(pipeline.stages), self.client, surroundings.peers)
        self.scheduler_s = self.scheduler_busy_s = 0.0
        self.completed_s: dict[int, float] = {}
        self.order: list[int] = []
        self.next_item = self.max_in_flight = self.num_assignments = 0
        self.woken_s = math.inf

    def run(self) -> Simulation:
        for name, device in self.devices.items():
            self.join(name, 0.0)
            self.plan_faults(name, device.simulated)
        now_s = 0.0
        self.step(now_s)
        while not (self.next_item == self.num_items and self.pipeline.done):
            if not self.events:
                raise ClusterError(self.pipeline.lacking() or "no device is left to run what is missing")
            now_s, _, event = heapq.heappop(self.events)
            event(now_s)
            while self.events and self.events[0][0] <= now_s:
                heapq.heappop(self.events)[2](now_s)
            self.step(now_s)
        makespan_s = max(self.completed_s.values(), default=0.0)
        return Simulation(
            makespan_s, self.completed_s, tuple(self.order),
            {name: device.tally for name, device in self.devices.items()},
            self.scheduler_busy_s, self.client.busy_s, self.client_bytes,
            self.client_stage_bytes, self.max_in_flight, self.num_assignments,
        )  # fmt: skip

    def at(self, time_s: float, event: Callable[[float], None]) -> None:
        heapq.heappush(self.events, (time_s, next(self.numbers), event))

    def plan_faults(self, name: str, device: SimulatedDevice) -> None:
        if device.dies_s < math.inf:
            self.at(device.dies_s + self.around.notice_s, lambda now_s: self.give_up(name, now_s))
        for begin_s, end_s in device.cuts:
            if end_s - begin_s >= self.around.notice_s and end_s < device.dies_s:
                self.at(begin_s + self.around.notice_s, lambda now_s: self.give_up(name, now_s))
                self.at(end_s, lambda now_s: self.join(name, now_s))

    def join(self, name: str, now_s: float) -> None:
        device = self.devices[name]
        device.busy_s = self.links[name].in_s = self.links[name].out_s = now_s
        for stage in device.cached:
            self.sources.add(stage, name, now_s)
        worker = device.simulated.worker
        resident = next(iter(device.resident), None)
        self.pipeline.add_worker(
            Worker(
                name, worker.memory_bytes, worker.speed, worker.link_bytes_per_s, frozenset(device.cached), resident
            ),
            now_s,
        )

    def give_up(self, name: str, now_s: float) -> None:
        self.devices[name].generation += 1
        self.pipeline.remove_worker(name, now_s)

    def step(self, now_s: float) -> None:
        pipeline = self.pipeline
        for outcome in pipeline.take():
            if outcome.error is not None:
                raise outcome.error
            self.order.append(outcome.item)
        while self.next_item < self.num_items and pipeline.room:
            pipeline.add_item(self.next_item)
            self.next_item += 1
        step = pipeline.step(now_s)
        self.max_in_flight = max(self.max_in_flight, self.next_item - len(self.order))
        for cancelled in step.cancels:
            self.devices[cancelled.worker].cancelled.add(cancelled.attempt)
        for preparation in step.preparations:
            self.prepare(preparation, now_s)
        for assignment in step.assignments:
            self.num_assignments += 1
            self.execute(assignment, now_s)
        for fetch in step.fetches:
            self.fetch(fetch, now_s)
        if step.wake_s < self.woken_s or self.woken_s <= now_s < step.wake_s < math.inf:
            self.woken_s = step.wake_s
            self.at(max(step.wake_s, now_s), lambda now_s: None)

    def scheduled(self, now_s: float) -> float:
        """Return when the scheduler is through with one more task."""
        self.scheduler_s = max(self.scheduler_s, now_s) + self.around.scheduling_s
        self.scheduler_busy_s += self.around.scheduling_s
        return self.scheduler_s

    def switch(self, device: _Device, stage: int, unload: Sequence[int], start_s: float) -> tuple[float, Measured]:
        """Return when a device holds a stage, and what it measured."""
        if stage in device.resident:
            return start_s, Measured(0.0)
        fetch_s = None
        end_s = start_s
        if stage not in device.cached:
            num_bytes = self.pipeline.stages[stage].weights_bytes
            name = device.simulated.worker.name
            end_s, by_client = self.sources.fetch(stage, num_bytes, self.links, self.alive, name, start_s)
            if by_client:
                self.client_bytes += num_bytes
                self.client_stage_bytes += num_bytes
            fetch_s = end_s - start_s
            device.tally.fetch_s += fetch_s
            device.tally.stage_bytes += num_bytes
            if self.pipeline.mechanisms.stage_cache:
                device.cached.add(stage)
                self.sources.add(stage, name, end_s)
        load_s = self.pipeline.stages[stage].load_s / device.speed * self.noise()
        device.tally.load_s += load_s
        device.tally.loads += 1
        device.resident.difference_update(unload)
        device.resident.add(stage)
        return through(end_s, load_s, device.simulated.hangs), Measured(0.0, load_s, fetch_s)

    def prepare(self, preparation: Preparation, now_s: float) -> None:
        device, generation = self.devices[preparation.worker], self.devices[preparation.worker].generation
        end_s, measured = self.switch(device, preparation.stage, tuple(device.resident), now_s)
        device.busy_s = end_s
        self.report(device, generation, end_s, lambda now_s: self.pipeline.prepared(preparation, now_s, measured))

    def execute(self, assignment: Assignment, now_s: float) -> None:
        device, generation = self.devices[assignment.worker], self.devices[assignment.worker].generation
        stage = assignment.task.stage
        arrived_s = sent_s = through(self.scheduled(now_s), 0.0, device.simulated.cuts)
        if assignment.input_worker != assignment.worker:
            num_bytes = self.around.input_bytes if stage == 0 else self.pipeline.stages[stage - 1].output_bytes
            source = self.client if assignment.input_worker is None else self.links[assignment.input_worker]
            self.client_bytes += num_bytes if source is self.client else 0
            arrived_s = transfer(source, self.links[assignment.worker], num_bytes, sent_s)
            device.tally.tensor_bytes += num_bytes

        def begin(now_s: float) -> None:  # in order, since a device does one task after the other
            if device.generation != generation:
                return
            if assignment.attempt in device.cancelled:
                self.pipeline.dropped(assignment, now_s)
                return
            held_s, measured = self.switch(device, stage, assignment.unload, now_s)
            run_s = self.pipeline.stages[stage].run_s / device.speed * self.noise()
            end_s = through(max(held_s, arrived_s), run_s, device.simulated.hangs)
            device.busy_s = end_s
            took = Measured(run_s, measured.load_s, measured.fetch_s, self.pipeline.stages[stage].output_bytes)
            self.report(device, generation, end_s, lambda now_s: self.end(assignment, took, now_s))

        self.queue(device, begin, sent_s)

    def queue(self, device: _Device, begin: Callable[[float], None], now_s: float) -> None:
        """Begin something on a device once it has done what it was given before."""

        def wait(now_s: float) -> None:
            if device.busy_s > now_s:
                self.at(device.busy_s, wait)
            else:
                begin(now_s)

        self.at(max(now_s, device.busy_s), wait)

    def report(self, device: _Device, generation: int, end_s: float, event: Callable[[float], None]) -> None:
        """Let a report arrive unless its device is dead by then or was given up meanwhile."""

        def arrive(now_s: float) -> None:
            if device.generation == generation:
                event(now_s)

        if end_s < device.simulated.dies_s:
            self.at(through(end_s, 0.0, device.simulated.cuts), arrive)

    def end(self, assignment: Assignment, measured: Measured, now_s: float) -> None:
        tally = self.devices[assignment.worker].tally
        tally.run_s += measured.run_s
        tally.tasks += self.pipeline.finished(assignment, now_s, measured)

    def fetch(self, fetch: Fetch, now_s: float) -> None:
        device, generation = self.devices[fetch.worker], self.devices[fetch.worker].generation
        num_bytes = self.pipeline.stages[-1].output_bytes
        end_s = transfer(self.links[fetch.worker], self.client, num_bytes, now_s)
        self.client_bytes += num_bytes

        def arrive(now_s: float) -> None:
            if self.pipeline.delivered(fetch.item, now_s):
                self.completed_s[fetch.item] = now_s

        self.report(device, generation, end_s, arrive)

    def noise(self) -> float:
        return self.random.lognormvariate(0.0, self.around.spread) if self.around.spread else 1.0

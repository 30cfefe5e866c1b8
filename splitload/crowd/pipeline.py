"""One run of the crowd as a deterministic state machine: an engine or a simulator drives it, and tells it the time."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence

from splitload.base.errors import StageError, UsageError
from splitload.crowd.dispatch import Dispatch
from splitload.crowd.entities import Assignment, Fetch, Measured, Outcome, Preparation, Stage, Step, Task, Worker
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.placement import Placement
from splitload.crowd.progress import Item, Progress
from splitload.crowd.roster import Roster
from splitload.crowd.station import Job, Station, spread

_FOR_EACH_WORKER = 4  # items in flight: one runs, one waits on the worker, and as many are on their way to the next


class Pipeline:
    """Which worker does what next, of a chain of stages and any number of items.

    The engine adds workers and items, and then, after every event, calls `step` and carries out what it returns:

    >>> pipeline = Pipeline([Stage("a", 8, 8, run_s=1.0), Stage("b", 8, 8, run_s=1.0)])
    >>> pipeline.add_worker(Worker("pi"), now_s=0.0)
    >>> pipeline.add_item(0)
    >>> first, = pipeline.step(now_s=0.0).assignments
    >>> first.task
    Task(stage=0, item=0)
    >>> pipeline.finished(first, 1.0, Measured(run_s=1.0))
    True

    A task's result carries all that later stages still read, so that a task needs the one before alone. Outputs stay
    on the worker that made them; the pipeline knows where they lie, the engine moves them. Item inputs lie at the
    client and are never lost. Nothing here waits, and no two threads may call it at once.

    A worker has one task that runs and one that waits. The waiting place is for tasks of the stage that the worker
    holds; it changes its stage only when it has nothing to do, and then knows most.
    """

    def __init__(
        self, stages: Sequence[Stage], mechanisms: Mechanisms | None = None, max_in_flight: int | None = None
    ) -> None:
        """Make a run without workers and items.

        Args:
            stages: The chain.
            mechanisms: The switches; by default all mechanisms are on.
            max_in_flight: Items that may be on their way at once, those included that are done and not yet taken;
                by default four for each worker, and no fewer than two for each stage. The barrier has no bound.

        Raises:
            UsageError: There is no stage, or the bound is below one.
        """
        if not stages:
            raise UsageError("a crowd needs a stage to run; this bundle has none")
        if max_in_flight is not None and max_in_flight < 1:
            raise UsageError(f"at least one item must be in flight, not {max_in_flight}")
        self.stages = tuple(stages)
        self.mechanisms = mechanisms or Mechanisms()
        self._max_in_flight = max_in_flight
        self._roster = Roster(self.stages, self.mechanisms)
        self._progress = Progress(len(self.stages))
        self._dispatch = Dispatch(self.stages, self.mechanisms, self._roster, self._progress)
        self._attempts = itertools.count(1)
        self._live: dict[int, tuple[Assignment | Preparation, Station]] = {}
        self._deadlines: list[tuple[float, int]] = []
        self._cancels: list[Assignment] = []
        self._releases: list[Task] = []
        self._fetches: list[Fetch] = []
        self._begun = self.mechanisms.deferred_loading

    def add_worker(self, worker: Worker, now_s: float) -> None:
        """Let a worker take part; one of the same name that is still there is removed first."""
        self.remove_worker(worker.name, now_s)
        self._roster.add(worker, now_s)

    def remove_worker(self, name: str, now_s: float) -> None:
        """Take a worker out that is dead or cannot be reached; an unknown name is ignored.

        What it ran, held in its queue, or had made and is still needed is placed anew. Reports of its assignments that
        still come are ignored.
        """
        if name not in self._roster.stations:
            return
        station = self._roster.remove(name)
        touched = {order.task.item for order in self._forget(station) if isinstance(order, Assignment)}
        for stage, number in station.outputs:
            item = self._progress.items[number]
            del item.made[stage]
            self._releases.append(Task(stage, number))
            if stage == item.stage - 1:
                touched.add(number)
        for number in sorted(touched):
            item = self._progress.items[number]
            if not self.mechanisms.recovery:
                self._complete(item, StageError(f"worker '{name}' was lost, and recovery is off"), now_s)
            else:
                self._place_anew(item, now_s)

    def add_item(self, item: int) -> None:
        """Let an item take part; any number may wait outside the bound of items in flight.

        Args:
            item: Its place in the order of results; each number once, in rising order.

        Raises:
            ValueError: The number is not above those before it.
        """
        self._progress.add(item)

    @property
    def room(self) -> float:
        """How many more items could be on their way now; an engine need not read inputs earlier."""
        return max(0, self._bound - self._progress.in_flight - self._progress.num_outside)

    @property
    def done(self) -> bool:
        """Whether every item that was added has been taken."""
        return self._progress.is_empty

    def take(self, ordered: bool = True) -> list[Outcome]:
        """Return the outcomes that are there and were not yet taken: in the order of items, or of their completion."""
        return self._progress.take(ordered)

    def step(self, now_s: float) -> Step:
        """Return what is to be done now."""
        self._progress.admit(self._bound)
        self._find_hanging(now_s)
        preparations = [] if self._begun else self._prepare(now_s)
        assignments = self._assign(now_s)
        step = Step(
            tuple(assignments),
            tuple(preparations),
            tuple(self._cancels),
            tuple(self._releases),
            tuple(self._fetches),
            min(self._dispatch.due_s, self._deadlines[0][0] if self._deadlines else math.inf),
        )
        self._cancels, self._releases, self._fetches = [], [], []
        return step

    def finished(self, assignment: Assignment, now_s: float, measured: Measured) -> bool:
        """Take the report of a task that is done.

        Returns:
            Whether it counts: not if it is late, doubled, or of a worker that was removed.
        """
        station = self._end(assignment, now_s)
        if station is None:
            return False
        stage = assignment.task.stage
        station.seconds.learn(stage, measured, ran=True)
        item = self._progress.items[assignment.task.item]
        self._cancel(item, now_s)  # a second attempt, if one was made
        station.outputs.add(assignment.task)
        self._release(self._progress.advance(item, assignment.worker))
        if item.stage == len(self.stages):
            self._fetches.append(Fetch(item.number, assignment.worker))
        return True

    def prepared(self, preparation: Preparation, now_s: float, measured: Measured) -> None:
        """Take the report of a stage that is loaded (`measured.run_s` is not read)."""
        station = self._end(preparation, now_s)
        if station is not None:
            station.seconds.learn(preparation.stage, measured, ran=False)

    def failed(self, assignment: Assignment, now_s: float, error: Exception) -> bool:
        """Take the report of a task whose item cannot be computed; the error is the item's outcome.

        Returns:
            As `finished`.
        """
        if self._end(assignment, now_s) is None:
            return False
        self._complete(self._progress.items[assignment.task.item], error, now_s)
        return True

    def refused(self, order: Assignment | Preparation, now_s: float, reason: str) -> None:
        """Take the report of a worker that cannot hold a stage, such as for a full disk; it is not given it again."""
        station = self._end(order, now_s)
        if station is None:
            return
        self._roster.refuse(station, order.task.stage if isinstance(order, Assignment) else order.stage, reason)
        self._roster.refresh(station)
        self._again(order, now_s)

    def dropped(self, assignment: Assignment, now_s: float) -> None:
        """Take the report that a worker has left a cancelled assignment, or one it was given, without a result."""
        if self._end(assignment, now_s) is not None:
            self._again(assignment, now_s)

    def lost_input(self, assignment: Assignment, now_s: float) -> None:
        """Take the report that a task's input could not be had from `input_worker`: it is made anew."""
        if self._end(assignment, now_s) is None:
            return
        item = self._progress.items[assignment.task.item]
        self._lose(item, assignment.task.stage - 1, assignment.input_worker)
        self._again(assignment, now_s)

    def delivered(self, item: int, now_s: float) -> bool:
        """Take the report that an item's last output is at the client; return whether it counts (False: doubled)."""
        state = self._progress.items.get(item)
        if state is None:
            return False
        self._complete(state, None, now_s)
        return True

    def undelivered(self, fetch: Fetch, now_s: float) -> None:
        """Take the report that an item's last output could not be fetched: it is made anew."""
        item = self._progress.items.get(fetch.item)
        last = len(self.stages) - 1
        if item is not None and item.made.get(last) == fetch.worker:
            self._lose(item, last, fetch.worker)
            self._progress.rewind(item)

    def lacking(self) -> str | None:
        """Return one line if none of the workers present can hold a stage that is still needed; otherwise None.

        The line names the stage, what it needs, and how much the best worker lacks.
        """
        return self._roster.lacking(self._progress.needed())

    @property
    def _bound(self) -> float:
        if not self.mechanisms.streaming:
            return math.inf
        default = max(_FOR_EACH_WORKER * len(self._roster.stations), 2 * len(self.stages))
        return default if self._max_in_flight is None else self._max_in_flight

    def _assign(self, now_s: float) -> list[Assignment]:
        assignments = []
        while (found := self._dispatch.next(now_s)) is not None:
            assignments.append(self._give(*found, now_s))
        return assignments

    def _give(self, stage: int, found: Placement, now_s: float) -> Assignment:
        item = self._progress.oldest(stage)
        station = self._roster.stations[found.seat.worker]
        assignment = Assignment(
            Task(stage, item.number),
            found.seat.worker,
            next(self._attempts),
            found.seat.tier,
            self._roster.evicted(station, stage),
            item.made.get(stage - 1),
            found.finish_s,
        )
        expected_s = max(found.finish_s - max(found.seat.free_s, now_s), found.seat.run_s)
        self._progress.unqueue(item)
        item.attempts[assignment.attempt] = assignment.worker
        self._begin(station, assignment, expected_s, now_s)
        return assignment

    def _begin(self, station: Station, order: Assignment | Preparation, expected_s: float, now_s: float) -> None:
        self._live[order.attempt] = (order, station)
        self._roster.give(station, order, expected_s, now_s)
        if len(station.jobs) == 1:
            self._watch(station)

    def _watch(self, station: Station) -> None:
        """Set the moment from which the worker's first job counts as hanging."""
        factor = self.mechanisms.hang_factor
        if factor is None or not station.jobs:
            return
        job = station.jobs[0]
        limit_s = factor * (factor if job.guessed else 1.0) * job.expected_s  # a guess may be wrong by as much again
        deadline_s = station.head_s + max(limit_s, self.mechanisms.hang_floor_s)
        heapq.heappush(self._deadlines, (deadline_s, job.order.attempt))

    def _find_hanging(self, now_s: float) -> None:
        """Place anew what takes too long; the worker gets nothing more until it reports."""
        while self._deadlines:
            deadline_s, attempt = self._deadlines[0]
            order, station = self._live.get(attempt, (None, None))
            if order is not None and deadline_s > now_s:
                return
            heapq.heappop(self._deadlines)
            if order is None or station is None or station.hangs:
                continue
            station.hangs = True
            self._roster.refresh(station)
            if isinstance(order, Assignment) and not self._is_void(order):
                self._place_anew(self._progress.items[order.task.item], now_s)
            for job in station.jobs[1:]:
                self._drop(job, station, now_s)

    def _forget(self, station: Station) -> list[Assignment | Preparation]:
        """Take everything back that a lost worker was given, and return what of it still counted."""
        counted = []
        for job in station.jobs:
            order, _ = self._live.pop(job.order.attempt)
            if not self._is_void(order):
                counted.append(order)
                if isinstance(order, Assignment):
                    self._progress.items[order.task.item].attempts.pop(order.attempt, None)
        return counted

    def _is_void(self, order: Assignment | Preparation) -> bool:
        """Return whether nothing waits for the order's report any more, beside the worker's place in the queue."""
        if isinstance(order, Preparation):
            return False
        item = self._progress.items.get(order.task.item)
        return item is None or order.attempt not in item.attempts

    def _drop(self, job: Job, station: Station, now_s: float) -> None:
        """Take back a job that a worker has not begun."""
        self._roster.end(station, job.order.attempt, now_s)
        del self._live[job.order.attempt]
        if isinstance(job.order, Assignment):
            self._cancels.append(job.order)
        self._again(job.order, now_s)

    def _place_anew(self, item: Item, now_s: float) -> None:
        """Let an item wait for a worker unless one runs it, which has its input or will say that it lacks it."""
        if not item.ready and any(not self._live[attempt][1].hangs for attempt in item.attempts):
            return
        if item.attempts and (item.stage == 0 or item.stage - 1 in item.made):
            self._progress.queue(item)  # beside the attempts that hang, and may still come to an end
        else:
            self._cancel(item, now_s)
            self._progress.rewind(item)

    def _again(self, order: Assignment | Preparation, now_s: float) -> None:
        """Place anew what an order that came to nothing was for."""
        if isinstance(order, Assignment):
            item = self._progress.items[order.task.item]
            item.attempts.pop(order.attempt, None)
            self._place_anew(item, now_s)

    def _end(self, order: Assignment | Preparation, now_s: float) -> Station | None:
        """Close an order that a worker reports on; None if its report does not count."""
        known, station = self._live.get(order.attempt, (None, None))
        if known is None or station is None:
            return None
        counts = not self._is_void(known)
        del self._live[order.attempt]
        self._roster.end(station, order.attempt, now_s)
        station.hangs = False
        self._roster.refresh(station)
        self._watch(station)
        if isinstance(known, Assignment) and counts:
            self._progress.items[known.task.item].attempts.pop(known.attempt, None)
        return station if counts else None

    def _cancel(self, item: Item, now_s: float) -> None:
        """Withdraw all attempts of an item; a worker that has begun one stays busy with it until it reports."""
        for attempt in sorted(item.attempts):
            order, station = self._live[attempt]
            if isinstance(order, Assignment):
                self._cancels.append(order)
            if station.jobs[0].order.attempt != attempt:
                del self._live[attempt]
                self._roster.end(station, attempt, now_s)
                self._roster.refresh(station)
        item.attempts.clear()

    def _complete(self, item: Item, error: Exception | None, now_s: float) -> None:
        self._cancel(item, now_s)
        self._release(self._progress.complete(item, error))

    def _release(self, outputs: list[tuple[Task, str]]) -> None:
        for task, worker in outputs:
            self._releases.append(task)
            station = self._roster.stations.get(worker)
            if station is not None:
                station.outputs.discard(task)

    def _lose(self, item: Item, stage: int, worker: str | None) -> None:
        if worker is not None and item.made.get(stage) == worker:
            del item.made[stage]
            self._release([(Task(stage, item.number), worker)])

    def _prepare(self, now_s: float) -> list[Preparation]:
        """Have all stages loaded, once there are items and workers."""
        self._begun = bool(self._progress.items and self._roster.stations)
        preparations: list[Preparation] = []
        for station, stage in spread(self.stages, self._roster.idle()) if self._begun else ():
            expected_s = self._roster.switch_s(station, stage)
            preparations.append(Preparation(stage, station.worker.name, next(self._attempts), now_s + expected_s))
            self._begin(station, preparations[-1], expected_s, now_s)
        return preparations

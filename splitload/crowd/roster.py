"""The workers of a run, and those of them that come into question for a task."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from itertools import islice

from splitload.base.phrases import count_of
from splitload.base.sizes import megabytes
from splitload.crowd.balance import Balance
from splitload.crowd.entities import Assignment, Preparation, Stage, Worker
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.placement import Seat, Tier
from splitload.crowd.seconds import Seconds
from splitload.crowd.station import SLOTS, Job, Station
from splitload.plan.crowd import RUNTIME_BYTES

_EARLY = 0.1  # of a run: measured seconds differ by as much
_LOOK = 32  # of more workers in the same state, as many are looked at and stand for all


class Roster:
    """All workers, and for each stage those that hold it.

    Attributes:
        stations: By name.
        holders: For each stage the stations that hold it, or will once they have done what they were given.
        changed: Stages for whose tasks the choice of workers may have become another one; who looks at them empties it.
    """

    def __init__(self, stages: Sequence[Stage], mechanisms: Mechanisms) -> None:
        """Begin without workers."""
        self._stages = stages
        self._mechanisms = mechanisms
        self.stations: dict[str, Station] = {}
        self.holders: list[dict[str, Station]] = [{} for _ in stages]
        self.changed: set[int] = set()
        self._balance = Balance(len(stages))
        self._open: list[dict[str, Station]] = [{} for _ in stages]  # holders that can be given a task
        self._idle: list[tuple[float, str]] = []  # the fastest first

    def add(self, worker: Worker, now_s: float) -> None:
        """Take in a worker that is not in the roster."""
        station = Station(worker, Seconds(self._stages, worker), cached=set(worker.cached), idle_since_s=now_s)
        self.stations[worker.name] = station
        if worker.resident is not None:
            self._hold(station, worker.resident)
        self.refresh(station)

    def remove(self, name: str) -> Station:
        """Take a worker out and return what it was."""
        station = self.stations.pop(name)
        for stage in list(station.resident):
            self._let_go(station, stage)
        self._set_idle(station, False)
        self._balance.remove(name)
        return station

    def refuse(self, station: Station, stage: int, reason: str) -> None:
        """Note that a worker cannot run a stage."""
        station.refused[stage] = reason
        self._let_go(station, stage)

    def refresh(self, station: Station) -> None:
        """Sort a station anew after what it was given, or whether it hangs, changed."""
        self._balance.update(station)
        able = not station.hangs
        self._set_idle(station, able and not station.jobs)
        self.changed.update(station.resident)
        for stage in station.resident:
            for where, belongs in (
                (self.holders[stage], able),
                (self._open[stage], able and len(station.jobs) < SLOTS),
            ):
                if belongs:
                    where[station.worker.name] = station
                else:
                    where.pop(station.worker.name, None)

    def end_s(self, now_s: float, left: Sequence[int]) -> float:
        """Return when a crowd in balance would have done so many tasks of each stage, one more load included."""
        rate = self._balance.items_per_s
        runs = [stage.run_s for stage in self._stages]
        items = sum(tasks * run_s for tasks, run_s in zip(left, runs, strict=True)) / max(sum(runs), 1e-9)
        return now_s + max(stage.load_s for stage in self._stages) + items / rate if rate else math.inf

    def is_open(self, stage: int) -> bool:
        """Return whether anybody could be given a task of the stage now, memory apart."""
        return bool(self._idle or self._open[stage])

    def is_idle(self, stage: int) -> bool:
        """Return whether a worker that holds the stage has nothing to do."""
        return any(not station.jobs for station in self._open[stage].values())

    def idle(self) -> list[Station]:
        """Return all idle stations, the fastest first."""
        return [self.stations[name] for _, name in self._idle]

    def seats(
        self, stage: int, source: str | None, now_s: float, needed: Sequence[bool], ready: Sequence[int], left: float
    ) -> list[Seat]:
        """Return the workers that come into question for a task.

        Args:
            stage: The task's stage.
            source: The worker that holds the task's input; None for the client.
            now_s: The time.
            needed: For each stage whether an item is yet to leave it.
            ready: For each stage how many tasks wait; an idle worker that holds such a stage is left to it.
            left: Tasks of the stage that wait or are to come, once items are no more than workers; infinity before.
                When they are few, a worker that runs a task is given another only as early as its input has to leave,
                since a better worker may come free before.
        """
        few, ending = left <= len(self.holders[stage]), math.isfinite(left)
        candidates = list(self._candidates(stage, ready))
        if left < len(self.stations) and self._mechanisms.affinity == "finish":
            candidates += self._busy_elsewhere(stage)
        return [self._seat(station, stage, source, now_s, needed, few, ending) for station in candidates]

    def _busy_elsewhere(self, stage: int) -> Iterator[Station]:
        memory_bytes, holders = self._stages[stage].memory_bytes, self.holders[stage]
        busy = (each for each in self.stations.values() if each.jobs and not each.hangs)
        return islice(
            (each for each in busy if each.can_hold(stage, memory_bytes) and each.worker.name not in holders), _LOOK
        )

    def share(self, stage: int) -> float:
        """Return which share of the stage's holders `seats` looks at."""
        return min(1.0, _LOOK / max(1, len(self.holders[stage])))

    def _candidates(self, stage: int, ready: Sequence[int]) -> Iterator[Station]:
        memory_bytes = self._stages[stage].memory_bytes
        affinity = self._mechanisms.affinity
        if affinity == "tiers":  # it also waits for workers that hold another stage
            yield from (
                each for each in self.stations.values() if not each.hangs and each.can_hold(stage, memory_bytes)
            )
            return
        holders, opened = self.holders[stage], self._open[stage]
        if len(holders) <= _LOOK:
            yield from holders.values()
        else:
            few = list(islice(opened.values(), _LOOK))
            yield from few
            full = (station for name, station in holders.items() if name not in opened)
            yield from islice(full, _LOOK - len(few))
        idle = (self.stations[name] for _, name in self._idle if name not in holders)
        yield from islice(
            (
                each
                for each in idle
                if each.can_hold(stage, memory_bytes)
                and (affinity == "off" or not any(ready[held] for held in each.resident))
            ),
            _LOOK,
        )

    def _seat(
        self,
        station: Station,
        stage: int,
        source: str | None,
        now_s: float,
        needed: Sequence[bool],
        few: bool,
        ending: bool,
    ) -> Seat:
        seconds, name = station.seconds, station.worker.name
        input_s = 0.0 if stage == 0 or source in (None, name) else seconds.input_s(stage - 1)
        free_s = station.free_s(now_s)
        if stage in station.resident:
            opened, run_s = len(station.jobs) < SLOTS, seconds.run_s(stage)
            due_s = free_s - input_s - _EARLY * run_s if few and station.jobs else now_s
            return Seat(name, Tier.RESIDENT, opened, free_s, 0.0, input_s, run_s, due_s=due_s)
        switch_s = self.switch_s(station, stage)
        due_s = return_s = 0.0
        free = ending and stage in station.cached  # a transfer is paid by others too, whose links it takes
        if not free and self._is_passing(station, stage, needed):
            return_s = switch_s
            due_s = now_s + max(0.0, switch_s - station.idled_s(now_s))
        elsewhere = Tier.OTHER if station.resident else Tier.EMPTY
        tier = Tier.CACHED if stage in station.cached else elsewhere
        return Seat(name, tier, not station.jobs, free_s, switch_s, input_s, seconds.run_s(stage), return_s, due_s)

    def _is_passing(self, station: Station, stage: int, needed: Sequence[bool]) -> bool:
        """Return whether a worker that changed to the stage would have to change again: see `placement`."""
        if not self.holders[stage]:
            return False
        return self._balance.has_enough(stage) or any(
            needed[other] and not self._balance.has_enough(other, without=station)
            for other in self.evicted(station, stage)
        )

    def switch_s(self, station: Station, stage: int) -> float:
        """Return the seconds until a free worker holds a stage."""
        if stage in station.resident:
            return 0.0
        fetch_s = 0.0 if stage in station.cached else station.seconds.fetch_s(stage)
        return fetch_s + station.seconds.load_s(stage)

    def evicted(self, station: Station, stage: int) -> tuple[int, ...]:
        """Return what a worker must let go of before it loads a stage: all, or those used longest ago."""
        if stage in station.resident:
            return ()
        if self._mechanisms.one_resident:
            return tuple(station.resident)
        limit = math.inf if station.worker.memory_bytes is None else station.worker.memory_bytes
        held = self._stages[stage].memory_bytes + sum(self._stages[s].memory_bytes for s in station.resident)
        gone: list[int] = []
        for other in station.resident:
            if held <= limit:
                break
            gone.append(other)
            held -= self._stages[other].memory_bytes
        return tuple(gone)

    def lacking(self, needed: Sequence[bool]) -> str | None:
        """Return one line about the first needed stage that no worker present can hold; None if there is none.

        Args:
            needed: For each stage whether an item is yet to leave it.
        """
        stations = self.stations.values()
        for index, stage in enumerate(self._stages):
            if not (stations and needed[index]):
                continue
            if any(station.can_hold(index, stage.memory_bytes) for station in stations):
                continue
            reasons = [station.refused[index] for station in stations if index in station.refused]
            if reasons:
                return f"no worker can run stage '{stage.name}'; one of them says: {reasons[0]}"
            best = max(stations, key=lambda station: station.worker.memory_bytes or 0)
            missing_bytes = stage.memory_bytes - (best.worker.memory_bytes or 0)
            return (
                f"no worker can hold stage '{stage.name}': it needs {stage.memory_bytes / 1e6:.1f} MB, and of "
                f"{count_of(len(stations), 'worker')} the one that may use most, '{best.worker.name}', lacks "
                f"{missing_bytes / 1e6:.1f} MB of it; cut the model into smaller stages, let a larger worker take "
                f"part, or allow more by --residency or a worker's --memory, of which {megabytes(RUNTIME_BYTES)} are "
                "the runtime's"
            )
        return None

    def give(self, station: Station, order: Assignment | Preparation, expected_s: float, now_s: float) -> None:
        """Note what a worker is given; it holds the stage from now on, and those evicted no more."""
        stage = order.task.stage if isinstance(order, Assignment) else order.stage
        for other in self.evicted(station, stage):
            self._let_go(station, other)
        station.idle_s = station.idled_s(now_s) if stage in station.resident else 0.0
        if not station.jobs:
            station.head_s = now_s
        known = station.seconds.is_measured(stage) and (stage in station.resident or stage in station.cached)
        station.jobs.append(Job(order, expected_s, guessed=not known))
        self._hold(station, stage)
        if self._mechanisms.stage_cache:
            station.cached.add(stage)
        self.refresh(station)

    def end(self, station: Station, attempt: int, now_s: float) -> Job | None:
        """Take a job from a worker that is done with it, or was told to leave it."""
        for place, job in enumerate(station.jobs):
            if job.order.attempt == attempt:
                del station.jobs[place]
                if place == 0:
                    station.head_s = now_s
                station.idle_since_s = now_s
                return job
        return None

    def _hold(self, station: Station, stage: int) -> None:
        station.resident.pop(stage, None)
        station.resident[stage] = None

    def _let_go(self, station: Station, stage: int) -> None:
        self.changed.add(stage)
        station.resident.pop(stage, None)
        self.holders[stage].pop(station.worker.name, None)
        self._open[stage].pop(station.worker.name, None)

    def _set_idle(self, station: Station, idle: bool) -> None:
        if station.idle_key is not None:
            del self._idle[bisect.bisect_left(self._idle, station.idle_key)]
            station.idle_key = None
        if idle:
            self.changed.update(range(len(self._stages)))
            station.idle_key = (-station.seconds.speed, station.worker.name)
            bisect.insort(self._idle, station.idle_key)

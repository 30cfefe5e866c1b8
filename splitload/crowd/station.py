"""One worker during a run: what it holds, what it was given, and when it will be done."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from splitload.crowd.entities import Assignment, Preparation, Stage, Worker
from splitload.crowd.seconds import Seconds

SLOTS = 2  # one task runs, one waits on the worker, so that its input travels meanwhile


@dataclass
class Job:
    """Something a worker was given.

    Attributes:
        order: What.
        expected_s: The seconds it is expected to take from its begin to its end.
        guessed: Whether that is little more than a guess: it was not measured, or a stage has to travel.
    """

    order: Assignment | Preparation
    expected_s: float
    guessed: bool


@dataclass
class Station:
    """One worker during a run.

    Attributes:
        worker: As it joined.
        seconds: What it is expected to take.
        resident: The stages it holds once it has done what it was given, that used last at the end.
        cached: The stages on its disk.
        refused: The stages it cannot run, and why.
        jobs: What it was given, in order; the first is running.
        head_s: When the first of them began.
        outputs: Tasks whose outputs lie here alone.
        hangs: Whether it is far beyond its expected seconds and gets nothing more until it reports.
        idle_s: Seconds it has been idle since it last changed its stage, up to `idle_since_s`.
        idle_since_s: Since when it is idle, if it is.
        idle_key: Its place among the idle ones.
    """

    worker: Worker
    seconds: Seconds
    resident: dict[int, None] = field(default_factory=dict)
    cached: set[int] = field(default_factory=set)
    refused: dict[int, str] = field(default_factory=dict)
    jobs: list[Job] = field(default_factory=list)
    head_s: float = 0.0
    outputs: set[tuple[int, int]] = field(default_factory=set)
    hangs: bool = False
    idle_s: float = 0.0
    idle_since_s: float = 0.0
    idle_key: tuple[float, str] | None = None

    def idled_s(self, now_s: float) -> float:
        """Return how long it has been idle, all in all, since it last changed its stage."""
        return self.idle_s if self.jobs else self.idle_s + now_s - self.idle_since_s

    def free_s(self, now_s: float) -> float:
        """Return when it is expected to be done; one that is late is expected to be as late again."""
        if not self.jobs:
            return now_s
        end_s = self.head_s + self.jobs[0].expected_s
        return now_s + abs(end_s - now_s) + sum(job.expected_s for job in self.jobs[1:])

    def can_hold(self, stage: int, memory_bytes: int) -> bool:
        """Return whether it may be given the stage."""
        limit = self.worker.memory_bytes
        return stage not in self.refused and (limit is None or memory_bytes <= limit)


def spread(stages: Sequence[Stage], stations: Sequence[Station]) -> Iterator[tuple[Station, int]]:
    """Yield which worker loads which stage ahead of time: each goes where speed is scarcest for the work there is.

    Args:
        stages: The chain.
        stations: The workers, the fastest first.
    """
    speed = [0.0] * len(stages)
    for station in stations:
        able = [index for index, stage in enumerate(stages) if station.can_hold(index, stage.memory_bytes)]
        if able:
            chosen = min(able, key=lambda index: (speed[index] / max(stages[index].run_s, 1e-9), index))
            speed[chosen] += station.seconds.speed
            if chosen not in station.resident:
                yield station, chosen

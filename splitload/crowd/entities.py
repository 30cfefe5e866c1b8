"""What the scheduling of a crowd talks about: stages, workers, tasks, and what is ordered of workers and reported."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from splitload.crowd.placement import Tier


@dataclass(frozen=True)
class Stage:
    """One stage as the scheduler sees it.

    Seconds are those of a worker of speed 1; they are a first guess, and what is measured takes their place.

    Attributes:
        name: What messages call it.
        weights_bytes: Bytes that travel to a worker that lacks the stage.
        memory_bytes: Bytes a worker needs to hold the stage and run it.
        run_s: Seconds one item takes.
        load_s: Seconds from the worker's disk into memory.
        output_bytes: Bytes that one item hands on to the next stage, those included that only later stages read.
    """

    name: str
    weights_bytes: int
    memory_bytes: int
    run_s: float
    load_s: float = 0.0
    output_bytes: int = 0


@dataclass(frozen=True)
class Worker:
    """One device as it joins.

    Attributes:
        name: Unique in the crowd.
        memory_bytes: What it may use for a stage, the runtime left out; None if that is not limited.
        speed: How many times faster than the worker that the stages' seconds are of; a first guess.
        link_bytes_per_s: What its link carries.
        cached: Stages, by their place in the chain, that lie in its disk cache.
        resident: The stage it holds in memory, or None.
        measured: What it remembers of stages that it has run before, by their place in the chain.
    """

    name: str
    memory_bytes: int | None = None
    speed: float = 1.0
    link_bytes_per_s: float = math.inf
    cached: frozenset[int] = frozenset()
    resident: int | None = None
    measured: Mapping[int, Measured] = field(default_factory=dict)


class Task(NamedTuple):
    """One stage of one item; it needs the same item's task of the stage before, and nothing else."""

    stage: int
    item: int


@dataclass(frozen=True)
class Assignment:
    """A task that a worker is to run.

    Attributes:
        task: What to run.
        worker: Where.
        attempt: A number that no other assignment of the run has; the engine hands the assignment back with its report.
        tier: Where the stage lay when the task was placed.
        unload: Stages that the worker must let go of before it loads this one.
        input_worker: The worker that holds the task's input, None for the client.
        expected_s: When the task is expected to be done, on the clock that `step` is given.
    """

    task: Task
    worker: str
    attempt: int
    tier: Tier
    unload: tuple[int, ...]
    input_worker: str | None
    expected_s: float


@dataclass(frozen=True)
class Preparation:
    """A stage that a worker is to load before any task of it (without deferred loading).

    Attributes:
        stage: What to load.
        worker: Where.
        attempt: As of `Assignment`.
        expected_s: When it is expected to be loaded.
    """

    stage: int
    worker: str
    attempt: int
    expected_s: float


@dataclass(frozen=True)
class Measured:
    """What a worker measured of one task; None where nothing happened.

    Attributes:
        run_s: Seconds of the run alone.
        load_s: Seconds from disk into memory, unloading and verification included.
        fetch_s: Seconds the stage's files travelled.
        output_bytes: Bytes of the output as it travels.
    """

    run_s: float
    load_s: float | None = None
    fetch_s: float | None = None
    output_bytes: int | None = None


@dataclass(frozen=True)
class Step:
    """What the engine has to do now, cancels and releases first.

    Attributes:
        assignments: Tasks to send, in this order.
        preparations: Stages to load.
        cancels: Assignments whose result no longer counts, so that a worker need not begin them. One that it has begun
            keeps it busy until the engine reports on it, by `finished` or `dropped`.
        releases: Tasks whose outputs nothing needs any more, or which are lost.
        fetches: Items whose last output waits on a worker; the engine brings it to the client and says `delivered`.
        wake_s: When `step` is to be called again if nothing is reported before; infinity if there is no such moment.
    """

    assignments: tuple[Assignment, ...] = ()
    preparations: tuple[Preparation, ...] = ()
    cancels: tuple[Assignment, ...] = ()
    releases: tuple[Task, ...] = ()
    fetches: tuple[Fetch, ...] = ()
    wake_s: float = math.inf


class Fetch(NamedTuple):
    """The output of an item's last stage, and the worker that holds it."""

    item: int
    worker: str


class Outcome(NamedTuple):
    """An item that is through: delivered to the client, or failed with `error`."""

    item: int
    error: Exception | None

"""Which worker runs a task: a pure decision."""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import NamedTuple

from splitload.crowd.mechanisms import Affinity


class Tier(enum.IntEnum):
    """Where a stage lies for a worker, best first."""

    RESIDENT = 1
    CACHED = 2
    EMPTY = 3
    OTHER = 4


class Seat(NamedTuple):
    """A worker as one task sees it.

    Attributes:
        worker: Its name.
        tier: Where the task's stage lies.
        open: Whether it can be given a task now; one that cannot may still be worth waiting for.
        free_s: When it is done with what it was given.
        switch_s: Seconds until it holds the stage once it is free: unloading, fetching, loading.
        input_s: Seconds the task's input travels to it.
        run_s: Seconds it runs the task.
        return_s: Seconds that somebody needs to load what it gives up, if nobody else holds that and it is needed.
    """

    worker: str
    tier: Tier
    open: bool
    free_s: float
    switch_s: float
    input_s: float
    run_s: float
    return_s: float = 0.0


class Placement(NamedTuple):
    """Where a task goes, from which tier, and when it is expected to be done."""

    worker: str
    tier: Tier
    finish_s: float


def place(seats: Iterable[Seat], now_s: float, waiting: int = 1, affinity: Affinity = "finish") -> Placement | None:
    """Return where a ready task goes, or None if it does better to wait.

    Args:
        seats: The workers that have the memory for the task's stage.
        now_s: The time.
        waiting: Ready tasks of the same stage, this one included.
        affinity: The rule, see `Mechanisms`.
    """
    raise NotImplementedError

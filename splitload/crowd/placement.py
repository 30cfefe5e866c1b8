"""Which worker runs a task: a pure decision.

Three rules (`Mechanisms.affinity`). All expect of a worker that it finishes a task at

    finish = max(max(free, now) + switch, now + input) + run

where `switch` are the seconds until it holds the stage, `input` those that the task's input travels meanwhile.

- "finish" asks whether a better tier is worth waiting for. A task goes to the open worker that finishes it first, and
  between workers that are nearly equal to the better tier. It waits if the workers that hold its stage, full ones
  included, would be through before that with all the work there is for them: their queues, the ready tasks, and those
  to come, shared out by speed; or if the whole crowd could be through with all items before that. So a slow worker has
  its share as long as there is work for all, and fast ones get the last tasks.

  A worker that changes to a stage that lacks workers stays there. One that goes to a stage that has its share of the
  crowd, or leaves one that then lacks it, has to change again (see `balance`). Such a change is priced twice, only the
  ready tasks count for it, and the worker has to have been idle for as long as the change takes. As with renting and
  buying skis, the crowd then pays for such changes about as much as it had lost by idling, and no more. Once items are
  no more than workers, one that changes is missed nowhere, and its change costs what it costs.
- "tiers" is the rule of the paper: the best tier there is, and between equals the earliest finish. A task waits for
  the one worker that holds its stage, however many stand idle.
- "off" takes the open worker that would finish first if stages lay everywhere.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import NamedTuple

from splitload.crowd.mechanisms import Affinity

_ROUNDING_S = 1e-9
_NEARLY_EQUAL = 1.1  # measured seconds of the same task differ by as much from one run to the next


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
        run_s: Seconds it runs the task, more than 0.
        return_s: Seconds that it, or another in its place, needs to change its stage again afterwards.
        due_s: The moment from which it may be given this task.
    """

    worker: str
    tier: Tier
    open: bool
    free_s: float
    switch_s: float
    input_s: float
    run_s: float
    return_s: float = 0.0
    due_s: float = 0.0

    def finish_s(self, now_s: float) -> float:
        """Return when the worker is expected to have done the task."""
        return max(max(self.free_s, now_s) + self.switch_s, now_s + self.input_s) + self.run_s


class Placement(NamedTuple):
    """Where a task goes.

    Attributes:
        seat: The worker.
        finish_s: When the task is expected to be done.
        gain_s: Seconds by which this is better than waiting; infinity if there is nobody to wait for.
    """

    seat: Seat
    finish_s: float
    gain_s: float


def place(
    seats: Sequence[Seat],
    now_s: float,
    ready: float = 1,
    to_come: float = 0,
    affinity: Affinity = "finish",
    end_s: float = math.inf,
) -> Placement | None:
    """Return where a ready task goes, or None if it does better to wait.

    None is returned if there is no open worker, if one that is not open is worth waiting for, or if none is due yet.

    Args:
        seats: The workers that have the memory for the task's stage: those that hold it, the open ones, and those busy
            with other stages if a task of this one is better left to them.
        now_s: The time.
        ready: Tasks of the stage that wait for these workers, this one included.
        to_come: Further tasks of the stage that are known, and whose items are at earlier stages.
        affinity: The rule.
        end_s: When the crowd could be through with all items. A worker that holds the stage and would finish the task
            only after that leaves it to another one, which may have to load the stage.
    """
    if affinity == "tiers":
        best = min(seats, key=lambda seat: (seat.tier, seat.finish_s(now_s), seat.worker), default=None)
        return Placement(best, best.finish_s(now_s), 0.0) if best is not None and best.open else None
    candidates = [seat for seat in seats if seat.open and (seat.due_s <= now_s + _ROUNDING_S or affinity == "off")]
    if not candidates:
        return None
    if affinity == "off":
        best = min(candidates, key=lambda seat: (max(seat.free_s, now_s) + seat.run_s, seat.worker))
        return Placement(best, best.finish_s(now_s), 0.0)
    prices = [seat.finish_s(now_s) + seat.return_s for seat in candidates]
    limit_s = now_s + (min(prices) - now_s) * _NEARLY_EQUAL
    _, price_s, _, best = min(
        (seat.tier, price, seat.worker, seat)
        for seat, price in zip(candidates, prices, strict=True)
        if price <= limit_s
    )
    soon_s = _wait_s(seats, now_s, ready)
    wait_s = soon_s if best.return_s or not to_come else _wait_s(seats, now_s, ready + to_come)
    if best.tier == Tier.RESIDENT:
        first_s = min(seat.finish_s(now_s) for seat in seats if seat.tier == Tier.RESIDENT)
        accepted = price_s <= max(min(wait_s, end_s), first_s)
    else:
        accepted = now_s + (price_s - now_s) * _NEARLY_EQUAL <= wait_s and not any(
            now_s + (seat.finish_s(now_s) - now_s) * _NEARLY_EQUAL < price_s
            for seat in seats
            if not seat.open and seat.tier != Tier.RESIDENT
        )
    return Placement(best, best.finish_s(now_s), soon_s - price_s) if accepted else None


def _wait_s(seats: Sequence[Seat], now_s: float, tasks: float) -> float:
    """Return when the workers that hold the stage would be through with so many tasks; infinity without any worker."""
    rate = 0.0
    first_s = math.inf
    for seat in seats:
        if seat.tier == Tier.RESIDENT:
            rate += 1.0 / seat.run_s
            tasks += max(seat.free_s - now_s, 0.0) / seat.run_s
            first_s = min(first_s, seat.finish_s(now_s))
    return max(now_s + tasks / rate, first_s) if rate else math.inf

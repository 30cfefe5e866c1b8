"""The placement of one task: what each rule takes, and what it waits for."""

from __future__ import annotations

from typing import Any

import pytest

from splitload.crowd.placement import Seat, Tier, place


def seat(worker: str, tier: Tier = Tier.EMPTY, **changes: Any) -> Seat:
    given: dict[str, Any] = {"open": True, "free_s": 0.0, "switch_s": 0.0, "input_s": 0.0, "run_s": 1.0, **changes}
    return Seat(worker, tier, **given)


def chosen(*seats: Seat, now_s: float = 0.0, **more: Any) -> str | None:
    placement = place(seats, now_s, **more)
    return None if placement is None else placement.seat.worker


def test_between_equal_finishes_the_better_tier_wins() -> None:
    seats = [seat(tier.name, tier) for tier in reversed(Tier)]
    while seats:
        assert chosen(*seats) == seats.pop().worker


def test_the_earliest_finish_counts_what_comes_before_the_run() -> None:
    slow = seat("slow", run_s=4.0)
    far = seat("far", input_s=2.5)
    cold = seat("cold", switch_s=2.0)
    assert chosen(slow, far, cold) == "cold"
    assert place([cold, far], 0.0).finish_s == 3.0  # type: ignore[union-attr]
    both = seat("both", switch_s=2.0, input_s=2.5)
    assert both.finish_s(0.0) == 3.5, "the input travels while the stage is loaded"


@pytest.mark.parametrize(("ready", "expected"), [(1, None), (2, None), (10, "idle")])
def test_a_backlog_decides_whether_the_holder_is_worth_waiting_for(ready: int, expected: str | None) -> None:
    holder = seat("holder", Tier.RESIDENT, open=False, free_s=2.0)
    idle = seat("idle", switch_s=5.0)
    assert chosen(holder, idle, ready=ready) == expected


def test_work_that_is_to_come_counts_for_who_stays_and_not_for_who_passes() -> None:
    holder = seat("holder", Tier.RESIDENT, open=False, free_s=2.0)
    assert chosen(holder, seat("stays", switch_s=5.0), to_come=10) == "stays"
    assert chosen(holder, seat("passes", switch_s=5.0, return_s=5.0), to_come=10) is None
    assert chosen(holder, seat("passes", switch_s=5.0, return_s=5.0), ready=20) == "passes"
    assert chosen(holder, seat("passes", switch_s=5.0, return_s=5.0, due_s=1.0), ready=20) is None, "it is not due"


def test_a_slow_holder_leaves_the_last_task_to_a_fast_one() -> None:
    fast = seat("fast", Tier.RESIDENT, open=False, free_s=1.0)
    slow = seat("slow", Tier.RESIDENT, run_s=4.0)
    assert chosen(fast, slow) is None
    assert chosen(fast, slow, ready=6) == "slow"


def test_somebody_takes_the_task_if_nobody_is_busy() -> None:
    for runs in ([1.0, 1.0], [1.0, 8.0], [8.0, 1.0]):
        for tiers in ([Tier.RESIDENT, Tier.RESIDENT], [Tier.RESIDENT, Tier.OTHER], [Tier.OTHER, Tier.CACHED]):
            seats = [seat(str(n), tier, run_s=run) for n, (run, tier) in enumerate(zip(runs, tiers, strict=True))]
            assert chosen(*seats) is not None


def test_strict_tiers_wait_for_the_one_that_holds_the_stage() -> None:
    holder = seat("holder", Tier.RESIDENT, open=False, free_s=100.0)
    assert chosen(holder, seat("idle"), affinity="tiers") is None
    assert chosen(seat("cached", Tier.CACHED, switch_s=9.0), seat("idle"), affinity="tiers") == "cached"


def test_without_affinity_loads_are_not_looked_at() -> None:
    assert chosen(seat("a", Tier.OTHER, switch_s=100.0, run_s=0.5), seat("b", Tier.RESIDENT), affinity="off") == "a"


def test_no_open_worker_is_no_placement() -> None:
    for affinity in ("finish", "tiers", "off"):
        assert chosen(affinity=affinity) is None
        assert chosen(seat("full", open=False), affinity=affinity) is None

"""The simulated crowd: exact virtual times, unequal devices, faults, and the work that scheduling takes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from splitload.base.errors import ClusterError
from splitload.crowd import dispatch as dispatch_module
from splitload.crowd.entities import Stage, Worker
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.placement import place
from splitload.crowd.simulate import SimulatedDevice, Surroundings, simulate

TIERS, BARRIER = Mechanisms(affinity="tiers"), Mechanisms(affinity="tiers", streaming=False)


def chain(*run_s: float, load_s: float = 0.0, **more: Any) -> list[Stage]:
    return [Stage(f"s{index}", 1000, 10, seconds, load_s, **more) for index, seconds in enumerate(run_s)]


def crowd(*speeds: float, **more: Any) -> list[SimulatedDevice]:
    return [SimulatedDevice(Worker(f"w{index}", **more), speed=speed) for index, speed in enumerate(speeds)]


@pytest.mark.parametrize("workers", [3, 5])
def test_streaming_and_barrier_take_what_the_formulas_say(workers: int) -> None:
    stages, devices = chain(1.0, 1.0, 1.0), crowd(*[1.0] * workers)
    assert simulate(stages, devices, 5, TIERS).makespan_s == 3 + 5 - 1  # S + N - 1 runs
    assert simulate(stages, devices, 5, BARRIER).makespan_s == 3 * 5  # S N runs
    assert simulate(stages, devices, 5).makespan_s <= 7, "expected finish also uses the workers that tiers leave idle"


def test_deferred_loading_and_one_worker_add_the_loads_up() -> None:
    stages = chain(1.0, 1.0, load_s=2.0)
    assert simulate(stages, crowd(1.0), 3).makespan_s == 2 * 2 + 2 * 3
    assert simulate(stages, crowd(1.0, 1.0), 1, TIERS).makespan_s == 6.0
    eager = Mechanisms(affinity="tiers", deferred_loading=False)
    assert simulate(stages, crowd(1.0, 1.0), 1, eager).makespan_s == 4.0


def test_no_item_waits_for_a_worker_while_others_are_idle_for_good() -> None:
    stages = chain(1.0, 1.0, 1.0, load_s=0.3, output_bytes=1_000_000)
    devices = crowd(*[1.0] * 5, link_bytes_per_s=5e6, cached=frozenset(range(3)))
    assert simulate(stages, devices, 5).makespan_s == pytest.approx(3 * 1.3, abs=0.3), "each item stays where it is"


def test_a_pipeline_runs_at_the_rate_of_its_slowest_stage() -> None:
    result = simulate(chain(1.0, 2.0, 1.0), crowd(1.0, 1.0, 1.0), 100, TIERS)
    assert result.makespan_s == 1.0 + 2.0 * 100 + 1.0
    better = simulate(chain(1.0, 2.0, 1.0), crowd(1.0, 1.0, 1.0), 100)
    assert better.makespan_s <= 4.0 * 100 / 3 * 1.05, "three workers share the four seconds"


def test_a_worker_four_times_slower_does_a_quarter() -> None:
    result = simulate(chain(1.0, 1.0, 1.0, load_s=0.1), crowd(1.0, 1.0, 1.0, 1.0, 0.25), 200)
    tasks = [result.tallies[f"w{index}"].tasks for index in range(5)]
    assert 0.2 <= tasks[4] / (sum(tasks[:4]) / 4) <= 0.3
    assert min(result.busy_share(f"w{index}") for index in range(5)) > 0.85


@pytest.mark.parametrize(("load_s", "least"), [(0.0, 0.98), (0.3, 0.88), (1.0, 0.8), (5.0, 0.6)])
def test_loads_are_paid_by_few_changes(load_s: float, least: float) -> None:
    result = simulate(chain(1.0, 1.0, 1.0, load_s=load_s), crowd(*[1.0] * 5), 200)
    assert result.items_per_s / (5 / 3) >= least
    assert result.max_in_flight <= 4 * 5


def test_a_stage_travels_once_to_a_worker_unless_nothing_is_kept() -> None:
    stages = chain(1.0, 1.0)
    kept = simulate(stages, crowd(1.0, link_bytes_per_s=1000.0), 40)
    assert kept.tallies["w0"].stage_bytes == 2 * 1000
    assert kept.tallies["w0"].loads > 2
    sent = simulate(stages, crowd(1.0, link_bytes_per_s=1000.0), 40, Mechanisms(stage_cache=False))
    assert sent.tallies["w0"].stage_bytes == sent.tallies["w0"].loads * 1000


def test_deaths_hangs_and_cut_links_lose_nothing_and_double_nothing() -> None:
    devices = [
        SimulatedDevice(
            Worker(f"w{index}", link_bytes_per_s=1e5),
            dies_s=50.0 + 30.0 * index if index < 5 else math.inf,
            cuts=((20.0 * index, 20.0 * index + 3.0),) if index % 2 else (),
            hangs=((30.0, 130.0),) if index == 6 else (),
        )
        for index in range(8)
    ]
    around = Surroundings(client_bytes_per_s=1e6, input_bytes=100, notice_s=1.0, spread=0.1, seed=3)
    result = simulate(chain(1.0, 1.5, 0.5, load_s=0.2, output_bytes=500), devices, 300, surroundings=around)
    assert result.order == tuple(range(300))
    assert sorted(result.completed_s) == list(range(300))
    assert result.num_assignments > 3 * 300, "what the dead ones held was placed anew"
    again = simulate(chain(1.0, 1.5, 0.5, load_s=0.2, output_bytes=500), devices, 300, surroundings=around)
    assert again == result, "the same seed is the same run"


def test_a_crowd_that_is_no_more_is_one_clear_line() -> None:
    devices = [SimulatedDevice(Worker("w0"), dies_s=2.5)]
    with pytest.raises(ClusterError, match="no device is left"):
        simulate(chain(1.0), devices, 5)
    with pytest.raises(ClusterError, match="no worker can hold stage 's0'"):
        simulate(chain(1.0), crowd(1.0, memory_bytes=9), 1)


def test_a_task_costs_few_looks_at_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    def counted(seats: Any, *more: Any) -> Any:
        nonlocal looks
        looks += len(seats)
        return place(seats, *more)

    monkeypatch.setattr(dispatch_module, "place", counted)
    result = simulate(
        chain(*[1.0] * 8, load_s=0.1), crowd(*[1.0, 0.5] * 20), 200, surroundings=Surroundings(spread=0.1)
    )
    assert looks / result.num_assignments <= 2 * 40, "twice the number of workers"

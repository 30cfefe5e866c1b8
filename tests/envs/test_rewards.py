"""Rewards against values worked out by hand, and the clock against the schedule."""

import numpy as np
import pytest

from splitload.envs.rewards import StageClock, balance_reward
from splitload.schedule import Contention, simulate


@pytest.mark.parametrize(
    ("load_s", "tolerance_s", "two_sided", "one_sided"),
    [
        (0.50, 0.0, 0.0, 0.0),
        (0.53125, 0.03125, 0.0, 0.0),  # just on the edge, above; binary fractions are exact
        (0.46875, 0.03125, 0.0, 0.0),  # and below
        (0.54, 0.03125, -1.0, -1.0),
        (0.46, 0.03125, -1.0, 0.0),
        (0.46, -0.03125, -1.0, 0.0),
        (0.48, -0.03125, -1.0, -1.0),
        (9.0, float("inf"), 0.0, 0.0),
    ],
)
def test_balance_is_equation_4(load_s, tolerance_s, two_sided, one_sided):
    assert balance_reward(load_s, 0.5, tolerance_s) == two_sided
    assert balance_reward(load_s, 0.5, tolerance_s, one_sided=True) == one_sided


def test_clock_by_hand():
    clock = StageClock(threads=8, slowdown=2.0)
    assert clock.add(1.0, 0.5) == 2.5  # loads until 2, infers until 2.5
    assert clock.add(0.75, 1.0) == 1.0  # loaded at 1.5, waits for stage 1, infers until 3.5
    assert clock.add(3.0, 0.25) == 2.75  # loaded at 6, infers until 6.25
    assert (clock.loaded_s, clock.inferred_s) == (6.0, 6.25)


@pytest.mark.parametrize("threads", [1, 2, 3, 5, 9])
def test_clock_agrees_with_the_schedule(threads):
    rng = np.random.default_rng(threads)
    for num_stages in range(1, 9):
        loads, infers = rng.uniform(0, 1, (2, num_stages)).tolist()
        contention = Contention(threads, 0.2, 0.1)
        clock = StageClock(threads, contention.slowdown(num_stages))
        total_s = sum(clock.add(load, infer) for load, infer in zip(loads, infers, strict=True))
        schedule = simulate(loads, infers, contention)
        assert clock.inferred_s == pytest.approx(schedule.ttfo_s, rel=1e-12)
        assert total_s == pytest.approx(schedule.ttfo_s, rel=1e-12)
        assert clock.loaded_s == pytest.approx(schedule.load_makespan_s, rel=1e-12)

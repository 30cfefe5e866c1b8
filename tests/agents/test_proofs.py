"""What a search calls proved is the optimum, whatever the profile and the settings; and what cannot be is not."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from splitload.agents import QLearning
from splitload.envs import SplitEnv
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.planner.optimum import least_s_of, optimum

COUNTS = (1, 2, 3, 4, 5)


def profile(seed: int, threads: int, segments: Mapping[tuple[int, int], Cost] | None = None) -> Profile:
    """Return ten blocks, some of which read for most of their load and some not at all."""
    rng = np.random.default_rng(seed)
    blocks = []
    for number in range(10):
        load_s, infer_s = rng.lognormal(0, 1), 0.5 * rng.lognormal(0, 1)
        read_s = load_s * rng.choice([0.0, 0.3, 0.9])
        blocks.append(BlockProfile(f"b{number}", 100, Cost(0.2 + load_s, infer_s, infer_s, read_s)))
    contention = Contention(threads, 0.3, 0.2, start_s=0.4 * (seed % 2), cut_infer_s=0.1 * seed)
    return Profile("m", "a" * 64, "native", "d", "measured", tuple(blocks), 0.2, contention, segments or {})


@functools.cache
def optima(seed: int, threads: int, objective: str) -> dict[int, float]:
    """Return the value of the best plan of `profile(seed, threads)` for each number of stages, by trying all."""
    made, found = profile(seed, threads), {}
    for count in COUNTS:
        best = optimum(made, objective, count, limit_s=60)
        assert best.proved
        assert best.value_s == pytest.approx(least_s_of(made, objective, Partition(10, best.split_points)), rel=1e-12)
        plans = (Partition(10, points) for points in combinations(range(1, 10), count - 1))
        assert best.value_s == pytest.approx(min(least_s_of(made, objective, plan) for plan in plans), rel=1e-9)
        found[count] = best.value_s
    return found


SETTINGS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "slow": {"learning_rate": 0.5},
    "short-sighted": {"discount_factor": 0.5},
    "sarsa without exploration": {"sarsa": True, "epsilon_start": 0.0, "epsilon_end": 0.0},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("objective", ["balance", "ttfo"])
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_what_is_proved_is_optimal(objective: str, threads: int, settings: dict[str, Any]) -> None:
    proved = 0
    for seed in range(4):
        made = profile(seed, threads)
        best = optima(seed, threads, objective)
        env = SplitEnv(made, objective=objective, max_stages=max(COUNTS))
        result = QLearning(env, seed=seed, **settings).train(num_stages=COUNTS, patience=400)
        for count, plan in result.plans.items():
            assert plan.value_s >= best[count] * (1 - 1e-9)
            if result.stopped[count] == "proved":
                proved += 1
                assert plan.value_s == pytest.approx(best[count], rel=1e-8)
                assert objective == "balance" or count <= threads
    assert proved >= 4, "something is proved: one stage always can be"
    if objective == "balance" or threads == 8:
        assert proved >= 4 * 4, "and here nearly all"


def test_measured_segments_that_do_not_add_up_are_not_called_separable() -> None:
    fast = {(0, 10): Cost(9.0, 2.0, 2.0), (3, 7): Cost(0.5, 0.01, 0.01)}
    for measured, separable in (({}, True), (fast, False)):
        env = SplitEnv(profile(0, 8, measured), objective="ttfo")
        env.reset(options={"num_stages": 1})
        assert env.step(9)[4]["separable"] is separable
    waiting = SplitEnv(profile(0, 1), objective="ttfo")  # its second load waits for the only thread
    for end in (4, 9):
        waiting.reset(options={"num_stages": 2}) if end == 4 else None
        info = waiting.step(10 + end)[4]
    assert info["separable"] is False


def test_no_reward_is_positive_where_segments_infer_faster_than_their_blocks() -> None:
    fast = {(0, 10): Cost(9.0, 8.0, 8.0), (3, 7): Cost(0.5, 0.01, 0.01), (7, 10): Cost(0.5, 0.01, 0.01)}
    made = profile(0, 8, fast)
    env = SplitEnv(made, objective="ttfo")
    rng = np.random.default_rng(0)
    for _ in range(200):
        _, info = env.reset()
        over, total = False, 0.0
        while not over:
            _, reward, over, _, info = env.step(int(rng.choice(np.flatnonzero(info["action_mask"]))))
            assert reward <= 1e-12, "but for rounding"
            total += reward
        assert total == pytest.approx(-info["value_s"])

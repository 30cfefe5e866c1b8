"""The example in the head of `splitload.agents.stopping`, step by step."""

from __future__ import annotations

import pytest

from splitload.agents import Progress, QLearning
from splitload.envs import SplitEnv
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention

LOADS_S = (1.0, 2.0, 3.0)


def test_the_worked_example() -> None:
    blocks = tuple(BlockProfile(f"b{load_s}", 1, Cost(load_s, 0.1, 0.1)) for load_s in LOADS_S)
    profile = Profile("m", "0" * 64, "native", "dev", "simulated", blocks, 0.0, Contention(1))
    agent = QLearning(SplitEnv(profile), seed=8, epsilon_start=0.0, epsilon_end=0.0)
    after_block = {1: 3 + 0, 2: 3 + 1}  # actions that cut into two stages
    seen: list[tuple[float, bool, list[float], str]] = []
    records_s: list[float] = []

    def note(now: Progress) -> None:
        search = agent.searches[2]
        _, values = next(iter(search.table.values()), ([], [0.0, 0.0]))
        seen.append((search.options["tolerance_s"], search.one_sided, list(values), search.stopped))
        records_s.append(now.best_value_s)

    agent.train(num_stages=[2], start={2: [after_block[1], 3 + 2]}, on_progress=note)
    below_two, below_zero = pytest.approx(2.0, rel=1e-8), pytest.approx(0.0, abs=1e-8)
    assert seen == [
        (below_two, False, [0.0, 0.0], "running"),
        (below_two, False, [-2.0, 0.0], "running"),
        (below_zero, False, [-2.0, 0.0], "running"),
        (below_zero, True, [0.0, 0.0], "running"),
        (below_zero, True, [-1.0, 0.0], "running"),
        (below_zero, True, [-1.0, -1.0], "proved"),
    ]
    assert seen[1][0] < 2.0
    assert seen[2][0] < 0.0
    assert records_s == [5.0, 5.0, 3.0, 3.0, 3.0, 3.0]

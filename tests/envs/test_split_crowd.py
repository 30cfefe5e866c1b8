"""SplitEnv on a crowd: a stage that no worker can hold is illegal, and rewards add up to the seconds of the plan."""

from __future__ import annotations

import numpy as np
import pytest
from crowd_plans import EQUAL, UNEQUAL, model, on
from gymnasium.utils.env_checker import check_env

from splitload.base.errors import UsageError
from splitload.envs import SplitEnv
from splitload.plan.crowd import Crowd
from splitload.plan.objectives import OBJECTIVES
from splitload.plan.partition import Partition

OF_CROWD = [name for name, each in OBJECTIVES.items() if each.of_crowd]


@pytest.mark.parametrize("crowd", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("objective", OF_CROWD)
def test_rewards_add_up(objective: str, crowd: Crowd) -> None:
    profile, ceiling = model(8)
    ceiling = on(ceiling, crowd)
    env = SplitEnv(profile, objective=objective, ceiling=ceiling)
    check_env(env, skip_render_check=True)
    rng = np.random.default_rng(0)
    found = set()
    for _ in range(200):
        _, info = env.reset()
        total, over = 0.0, False
        while not over:
            _, reward, over, _, info = env.step(rng.choice(np.flatnonzero(info["action_mask"])))
            assert reward <= 1e-12
            total += float(reward)
        plan = Partition(8, info["split_points"])
        found.add(plan.split_points)
        assert ceiling.allows(plan)
        assert all(crowd.holders(ceiling.stage_bytes(*stage)) for stage in plan.stages())
        assert total == pytest.approx(-info["value_s"])
        assert info["value_s"] == pytest.approx(OBJECTIVES[objective].least_s(profile, plan, ceiling))
        assert total > env.illegal_reward
    assert len(found) > 5


@pytest.mark.parametrize("objective", OF_CROWD)
def test_what_no_worker_can_hold_is_illegal(objective: str) -> None:
    profile, ceiling = model(8)
    env = SplitEnv(profile, objective=objective, ceiling=ceiling)
    count = ceiling.counts(8)[0]
    assert count > 1
    assert not env.feasible(count - 1)
    _, info = env.reset(options={"num_stages": count})
    ends = np.flatnonzero(info["action_mask"]) % 8 + 1
    assert all(ceiling.stage_bytes(0, end) <= ceiling.crowd.memory_bytes for end in ends)
    _, reward, over, _, info = env.step((count - 1) * 8 + 7)
    assert (reward, over) == (env.illegal_reward, True)
    with pytest.raises(UsageError, match="is of a crowd"):
        SplitEnv(profile, objective=objective)

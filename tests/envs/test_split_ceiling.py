"""SplitEnv under a ceiling: no plan that does not fit, no state without a way on."""

from __future__ import annotations

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from synthetic import needs

from splitload.base.errors import UsageError
from splitload.envs import SplitEnv
from splitload.plan.ceiling import Ceiling
from splitload.plan.objectives import OBJECTIVES, OF_ONE_DEVICE
from splitload.plan.partition import Partition

NEEDS = needs([5_000_000, 300_000, 2_000_000, 900_000, 3_000_000, 400_000], [200_000] * 6)
CEILING = Ceiling(NEEDS, 6_300_000, 400_000)


@pytest.mark.parametrize("trainable_from", [None, 5])
@pytest.mark.parametrize("objective", OF_ONE_DEVICE)
def test_every_episode_ends_with_a_plan_that_fits(profile, objective, trainable_from):
    env = SplitEnv(profile, objective=objective, trainable_from=trainable_from, ceiling=CEILING)
    check_env(env, skip_render_check=True)
    rng = np.random.default_rng(0)
    found = set()
    for episode in range(300):
        options = {"num_stages": 4} if episode % 2 else {}
        _, info = env.reset(options=options)
        total, over = 0.0, False
        while not over:
            assert (info["action_mask"] == env.action_masks()).all()
            _, reward, over, _, info = env.step(rng.choice(np.flatnonzero(info["action_mask"])))
            assert reward <= 1e-12
            total += reward
        assert "illegal_action" not in info
        found.add(info["split_points"])
        assert total > env.illegal_reward
        plan = Partition(6, info["split_points"])
        assert CEILING.allows(plan)
        assert info["value_s"] == pytest.approx(OBJECTIVES[objective].least_s(profile, plan, CEILING))
        if objective != "balance":
            assert total == pytest.approx(-info["value_s"])
    assert len(found) > 5


def test_what_does_not_fit_is_illegal(profile):
    env = SplitEnv(profile, ceiling=CEILING)
    assert [env.feasible(count) for count in range(8)] == [count in CEILING.counts(6) for count in range(8)]
    assert not env.feasible(2)
    with pytest.raises(UsageError, match="must fit under the ceiling; it is 2"):
        env.reset(options={"num_stages": 2})
    _, info = env.reset(options={"num_stages": 4})
    action = 3 * 6 + 3 - 1  # of four stages, the first one ends at block 3
    assert not info["action_mask"][action]
    _, reward, over, _, info = env.step(action)
    assert (reward, over) == (env.illegal_reward, True)
    assert info["illegal_action"]
    with pytest.raises(gymnasium.error.ResetNeeded):
        env.step(action)


def test_ceilings_that_cannot_be_meant(profile):
    with pytest.raises(UsageError, match="of 5 blocks, the profile has 6"):
        SplitEnv(profile, ceiling=Ceiling(needs([1] * 5, [1] * 5), 1 << 30, 0))
    with pytest.raises(UsageError, match="no plan of up to 6 stages fits under 1000 bytes"):
        SplitEnv(profile, ceiling=replace(CEILING, ceiling_bytes=1000))

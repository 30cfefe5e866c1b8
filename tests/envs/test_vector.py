"""`gymnasium.make_vec`: several environments in step, in this process or each in its own."""

import gymnasium
import numpy as np
import pytest

from splitload.envs import ENV_ID, SplitEnv
from splitload.plan.profile import Cost

# A new process is given everything: one that is forked would find it in its memory.
VECTOR_KWARGS = {"sync": {}, "async": {"context": "spawn"}}


@pytest.fixture(params=[("sync", "balance"), ("sync", "ttfo"), ("async", "ttfo")], scope="module")
def made(request, make_profile):
    """Yield two environments in step, of a profile with measured segments, and what makes one alone."""
    mode, objective = request.param
    segments = {(0, 6): Cost(1.1, 0.3, 0.2, 0.1), (2, 4): Cost(0.35, 0.1, 0.1)}
    profile = make_profile([0.1, 0.1, 0.3, 0.1, 0.2, 0.2], segments=segments)
    kwargs = {"profile": profile, "objective": objective, "max_stages": 3}
    envs = gymnasium.make_vec(ENV_ID, num_envs=2, vectorization_mode=mode, vector_kwargs=VECTOR_KWARGS[mode], **kwargs)
    yield envs, kwargs
    envs.close()


def test_each_environment_plays_its_own_episode(made):
    envs, kwargs = made
    alone = [SplitEnv(**kwargs) for _ in range(2)]
    options = {"num_stages": 2}
    observations, infos = envs.reset(seed=3, options=options)
    for row, env in enumerate(alone):
        observation, info = env.reset(options=options)
        assert np.array_equal(observations[row], observation)
        assert np.array_equal(infos["action_mask"][row], info["action_mask"])
    assert observations in envs.observation_space
    assert infos["action_mask"][0].dtype == np.int8

    observations, rewards, terminated, truncated, infos = envs.step(np.array([6 + 2, 6 + 3]))
    for row, (env, action) in enumerate(zip(alone, (6 + 2, 6 + 3), strict=True)):
        observation, reward, _, _, info = env.step(action)
        assert np.array_equal(observations[row], observation)
        assert rewards[row] == reward
        assert np.array_equal(infos["action_mask"][row], info["action_mask"])
    assert not terminated.any()
    assert not truncated.any()

    _, rewards, terminated, _, infos = envs.step(np.array([6 + 5, 6 + 5]))
    for row, env in enumerate(alone):
        _, reward, _, _, info = env.step(6 + 5)
        assert rewards[row] == reward
        assert infos["value_s"][row] == info["value_s"]
    assert terminated.all()


def test_the_step_after_the_end_resets_whatever_the_action(made):
    envs, kwargs = made
    opening = SplitEnv(**kwargs).reset()[1]["action_mask"]
    envs.reset(options={"num_stages": 2})
    envs.step(np.array([6 + 2, 6 + 3]))
    _, _, _, _, infos = envs.step(np.array([6 + 5, 0]))  # the second is illegal
    assert infos["split_points"].tolist() == [(3,), None]
    assert infos["_illegal_action"].tolist() == [False, True]
    assert not infos["action_mask"].any()

    observations, rewards, terminated, _, infos = envs.step(np.array([0, 17]))
    assert observations.tolist() == [[0, 0, 0, 6]] * 2
    assert rewards.tolist() == [0.0, 0.0]
    assert not terminated.any()
    assert infos["action_mask"].tolist() == [opening.tolist()] * 2

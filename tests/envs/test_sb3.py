"""Agents of others learn here unchanged: stable-baselines3's checker passes, sb3-contrib's MaskablePPO learns."""

import warnings

import numpy as np
import pytest

from splitload.envs import SplitEnv

pytest.importorskip("stable_baselines3")
pytest.importorskip("sb3_contrib")

import torch
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # the network is so small that a second thread only waits
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("objective", ["balance", "ttfo"])
@pytest.mark.parametrize("render_mode", [None, "ansi"])
def test_checker_has_nothing_to_say(profile, objective, render_mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(SplitEnv(profile, objective=objective, render_mode=render_mode))


@pytest.mark.parametrize("objective", ["balance", "ttfo"])
@pytest.mark.usefixtures("one_thread")
def test_maskable_ppo_beats_chance(make_profile, objective):
    kwargs = {
        "profile": make_profile([0.1, 0.05, 0.3, 0.1, 0.2, 0.2, 0.15, 0.05]),
        "objective": objective,
        "max_stages": 4,
    }
    rng = np.random.default_rng(0)
    env = SplitEnv(**kwargs)
    returns = []
    for _ in range(200):
        env.reset()
        rewards = []
        over = False
        while not over:
            _, reward, over, _, _ = env.step(rng.choice(np.flatnonzero(env.action_masks())))
            rewards.append(reward)
        returns.append(sum(rewards))

    envs = make_vec_env(SplitEnv, n_envs=16, env_kwargs=kwargs, seed=0)
    agent = MaskablePPO(
        "MlpPolicy", envs, seed=0, n_steps=32, batch_size=128, learning_rate=3e-3, gamma=1.0, device="cpu"
    )

    def mean_return():
        # Drawn from the policy: the likeliest actions of one that knows nothing may be a good plan by luck.
        return evaluate_policy(agent, Monitor(env), n_eval_episodes=100, deterministic=False)[0]

    clearly_better = np.mean(returns) + np.std(returns)
    assert mean_return() < clearly_better
    agent.learn(4_096)
    assert mean_return() > clearly_better

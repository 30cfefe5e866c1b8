"""What every agent keeps, whatever it does: legal split points, the same for the same seed, no partition no answer."""

from functools import partial
from itertools import pairwise

import pytest

from splitload.agents import QLearning, anneal, balance, random_partition, ttfo, uniform_blocks, uniform_bytes
from splitload.envs import SplitEnv, cost_matrices
from splitload.plan.partition import Partition


def _learn(profile, num_stages, trainable_from, seed, objective="balance", sarsa=False):
    env = SplitEnv(profile, objective=objective, trainable_from=trainable_from)
    result = QLearning(env, sarsa=sarsa, seed=seed).train(num_stages=[num_stages], episodes=60)
    return result.plans[num_stages].split_points


def _exact_ttfo(profile, num_stages, trainable_from, seed, threads=16):
    costs = cost_matrices(profile)
    slowdown = profile.contention.slowdown(num_stages)
    return ttfo(costs.load_s, costs.first_inference_s, num_stages, threads, slowdown, trainable_from).split_points


def _anneal(profile, num_stages, trainable_from, seed):
    load = cost_matrices(profile).load_s

    def largest(points):
        return max(load[stage] for stage in pairwise((0, *points, profile.num_blocks)))

    return anneal(largest, profile.num_blocks, num_stages, trainable_from, seed=seed, steps=50)


AGENTS = {
    "q-learning": _learn,
    "sarsa": lambda *arguments: _learn(*arguments, sarsa=True),
    "q-learning ttfo": lambda *arguments: _learn(*arguments, objective="ttfo"),
    "exact": lambda profile, count, first, seed: balance(cost_matrices(profile).load_s, count, first)[0],
    "exact ttfo": _exact_ttfo,
    "exact ttfo on two threads": partial(_exact_ttfo, threads=2),
    "annealing": _anneal,
    "uniform by bytes": lambda profile, count, first, seed: uniform_bytes(
        [block.weights_bytes for block in profile.blocks], count, first
    ),
    "uniform by blocks": lambda profile, count, first, seed: uniform_blocks(profile.num_blocks, count, first),
    "random": lambda profile, count, first, seed: random_partition(profile.num_blocks, count, first, seed=seed),
}


@pytest.mark.parametrize("agent", AGENTS.values(), ids=AGENTS)
class TestEveryAgent:
    def test_plans_are_legal(self, agent, uneven_profile):
        for trainable_from in (None, 8, 4, 1, 0):
            least, most = (1, 9) if trainable_from is None else (min(trainable_from, 1) + 1, trainable_from + 1)
            for num_stages in range(least, min(most, 8) + 1):
                points = agent(uneven_profile, num_stages, trainable_from, 0)
                assert isinstance(points, tuple)
                assert all(type(point) is int for point in points)
                assert Partition(9, points).num_stages == num_stages
                assert trainable_from in (None, (0, *points)[-1])

    def test_the_same_seed_gives_the_same_plan(self, agent, uneven_profile):
        assert agent(uneven_profile, 4, None, 3) == agent(uneven_profile, 4, None, 3)

    def test_impossible_requests_are_refused(self, agent, uneven_profile):
        with pytest.raises(ValueError, match="stages"):
            agent(uneven_profile, 3, 1, 0)
        with pytest.raises(ValueError, match="stages"):
            agent(uneven_profile, 10, None, 0)

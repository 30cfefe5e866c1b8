"""Simulated annealing: near the optimum, seeded, within its steps, and what it does with nothing to choose."""

from itertools import pairwise

import numpy as np
import pytest

from splitload.agents import anneal, balance, ttfo
from splitload.envs import cost_matrices
from splitload.plan.schedule import Clock


def value_of(profile, threads):
    """Return what values split points by their time to first output, on as many threads."""
    costs = cost_matrices(profile)

    def value(points):
        clock = Clock(threads, 1.2)
        for stage in pairwise((0, *points, profile.num_blocks)):
            clock.add(costs.load_s[stage], costs.first_inference_s[stage], costs.read_s[stage])
        return clock.inferred_s

    return value


def test_it_is_near_the_optimum(any_profile):
    num_stages, costs = min(5, any_profile.num_blocks), cost_matrices(any_profile)
    value = value_of(any_profile, 2)
    best = ttfo(costs.load_s, costs.first_inference_s, num_stages, 2, 1.2, limit_s=60.0)
    assert best.proved
    points = anneal(value, any_profile.num_blocks, num_stages, steps=3000)
    assert best.value_s * (1 - 1e-9) <= value(points) <= 1.05 * best.value_s


def test_other_values_may_be_made_small(uneven_profile):
    load = cost_matrices(uneven_profile).load_s

    def largest(points):
        return max(load[stage] for stage in pairwise((0, *points, uneven_profile.num_blocks)))

    assert largest(anneal(largest, 9, 4, 6, steps=2000)) == balance(load, 4, 6)[1]


def test_the_seed_decides():
    def value(points):
        return float(np.var(np.diff((0, *points, 40))))

    assert anneal(value, 40, 6, seed=1, steps=40) == anneal(value, 40, 6, seed=1, steps=40)
    assert len({anneal(value, 40, 6, seed=seed, steps=40) for seed in range(5)}) > 1


def test_it_returns_the_best_plan_it_valued_and_values_no_more_than_asked():
    valued = {}

    def value(points):
        valued[points] = float(sum(point * number for number, point in enumerate(points, 1)) % 17)
        calls.append(points)
        return valued[points]

    calls = []
    points = anneal(value, 30, 5, 20, steps=500)
    assert valued[points] == min(valued.values())
    assert 500 <= len(calls) <= 600
    assert all(each == tuple(sorted(set(each))) and each[0] >= 1 and each[-1] <= 20 for each in valued)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_flat_landscape_is_walked_without_harm(value):
    assert len(anneal(lambda points: value, 10, 4, steps=50)) == 3


def test_with_nothing_to_choose_nothing_is_valued():
    def value(points):
        raise AssertionError("there is but one plan")

    assert anneal(value, 5, 1) == ()
    assert anneal(value, 5, 5) == (1, 2, 3, 4)
    assert anneal(value, 5, 3, 2) == (1, 2)

"""Under a ceiling some stages are not allowed: exact solvers against all plans, and rules that never take one."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest

from splitload.agents import anneal, balance, nearest_allowed, random_partition, steady, ttfo
from splitload.agents.exact import cheapest

NUM_BLOCKS = 8
SIZE = NUM_BLOCKS + 1


def instance(seed):
    """Return three random matrices of seconds and one of which stages are allowed, about half of them."""
    rng = np.random.default_rng(seed)
    load, infer, room = (np.triu(rng.uniform(0.1, 1, (SIZE, SIZE)), 1) for _ in range(3))
    outside = np.tri(SIZE, dtype=bool)
    for matrix in (load, infer, room):
        matrix[outside] = np.inf
    return load, infer, room, ~outside & (rng.uniform(size=(SIZE, SIZE)) < 0.5)


def plans(num_stages, trainable_from, allowed):
    every = combinations(range(1, NUM_BLOCKS), num_stages - 1)
    legal = [points for points in every if trainable_from in (None, (0, *points)[-1])]
    return [points for points in legal if all(allowed[stage] for stage in stages(points))]


def stages(points):
    return list(pairwise((0, *points, NUM_BLOCKS)))


@pytest.mark.parametrize("trainable_from", [None, 5])
@pytest.mark.parametrize("seed", range(12))
def test_exact_solvers_find_the_best_allowed_plan(seed, trainable_from):
    load, infer, room, allowed = instance(seed)
    refused = 0
    for num_stages in range(1 if trainable_from is None else 2, 6):
        left = plans(num_stages, trainable_from, allowed)
        wants = {
            "largest": (balance, (load,), lambda points: max(load[each] for each in stages(points))),
            "sum": (cheapest, (load,), lambda points: sum(load[each] for each in stages(points))),
            "both": (
                steady,
                (load, room),
                lambda points: sum(load[each] for each in stages(points)) + max(room[each] for each in stages(points)),
            ),
        }
        for solve, given, value in wants.values():
            if not left:
                refused += 1
                with pytest.raises(ValueError, match="allowed"):
                    solve(*given, num_stages, trainable_from, allowed=allowed)
                continue
            found = solve(*given, num_stages, trainable_from, allowed=allowed)
            points, value_s = found if isinstance(found, tuple) else (found.split_points, found.value_s)
            assert points in left
            assert value_s == pytest.approx(value(points)) == pytest.approx(min(map(value, left)))
            assert isinstance(found, tuple) or found.proved
        if left:
            for threads in (1, 2, 8):
                best = ttfo(load, infer, num_stages, threads, 1.2, trainable_from, allowed=allowed)
                assert best.split_points in left
                assert best.proved
                alone = [ttfo(load, infer, num_stages, threads, 1.2, allowed=only(points)).value_s for points in left]
                assert best.value_s == pytest.approx(min(alone))
    assert refused < 15, "most instances have plans"


def only(points):
    """Return what allows one plan alone."""
    allowed = np.zeros((SIZE, SIZE), dtype=bool)
    for stage in stages(points):
        allowed[stage] = True
    return allowed


def test_steady_says_what_no_plan_is_below_when_the_time_is_over():
    load, _, room, allowed = instance(1)
    best = steady(load, room, 4, allowed=allowed, limit_s=60.0)
    cut = steady(load, room, 4, allowed=allowed, limit_s=0.0)
    assert cut.bound_s <= best.value_s <= cut.value_s
    with pytest.raises(ValueError, match="must be equal"):
        steady(load, room[1:, 1:], 4)


@pytest.mark.parametrize("trainable_from", [None, 5])
@pytest.mark.parametrize("seed", range(8))
def test_rules_come_to_allowed_plans(seed, trainable_from):
    load, *_, allowed = instance(seed)
    for num_stages in range(1 if trainable_from is None else 2, 6):
        left = plans(num_stages, trainable_from, allowed)
        drawn = random_partition(NUM_BLOCKS, num_stages, trainable_from, seed=seed)
        if not left:
            with pytest.raises(ValueError, match="allowed"):
                nearest_allowed(drawn, allowed, trainable_from)
            continue
        near = nearest_allowed(drawn, allowed, trainable_from)

        def apart(points, drawn=drawn):
            return sum(abs(mine - theirs) for mine, theirs in zip(points, drawn, strict=True))

        assert near in left
        assert apart(near) == min(map(apart, left))

        def largest(points, left=left):
            return max(load[each] for each in stages(points)) if points in left else math.inf

        found = anneal(largest, NUM_BLOCKS, num_stages, trainable_from, seed=seed, steps=200, start=near)
        assert found in left
        assert largest(found) <= largest(near)

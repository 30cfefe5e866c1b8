"""The exact solver against brute force, and what it refuses."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitload.agents import balance, ttfo
from splitload.schedule import Contention, simulate


def matrix(num_blocks, seed):
    """Return costs of segments that are not additive: nothing in the solver may rely on that they are."""
    values = np.random.default_rng(seed).uniform(0, 1, (num_blocks + 1, num_blocks + 1))
    return np.where(np.triu(np.ones_like(values, dtype=bool), k=1), values, np.inf)


def plans(num_blocks, num_stages, trainable_from):
    for points in itertools.combinations(range(1, num_blocks), num_stages - 1):
        if trainable_from is None or not points or points[-1] <= trainable_from:
            yield points, list(itertools.pairwise((0, *points, num_blocks)))


problems = st.integers(1, 8).flatmap(
    lambda count: st.tuples(st.just(count), st.none() | st.integers(0, count - 1), st.integers(0, 10**6))
)


@settings(max_examples=60, deadline=None)
@given(problems)
def test_balance_is_the_best_of_all_plans(problem):
    num_blocks, trainable_from, seed = problem
    load = matrix(num_blocks, seed)
    for num_stages in range(1, num_blocks + 1 if trainable_from is None else trainable_from + 2):
        values = {
            points: max(load[stage] for stage in stages)
            for points, stages in plans(num_blocks, num_stages, trainable_from)
        }
        points, largest = balance(load, num_stages, trainable_from)
        assert largest == values[points] == min(values.values())


@settings(max_examples=60, deadline=None)
@given(problems)
def test_ttfo_is_the_best_of_all_schedules(problem):
    num_blocks, trainable_from, seed = problem
    load, infer = matrix(num_blocks, seed), matrix(num_blocks, seed + 1)
    contention = Contention(num_blocks, 0.3, 0.2)
    for num_stages in range(1, num_blocks + 1 if trainable_from is None else trainable_from + 2):
        values = {
            points: simulate([load[s] for s in stages], [infer[s] for s in stages], contention).ttfo_s
            for points, stages in plans(num_blocks, num_stages, trainable_from)
        }
        slowdown = contention.slowdown(num_stages)
        points, first = ttfo(load, infer, num_stages, contention.threads, slowdown, trainable_from)
        assert first == pytest.approx(min(values.values()), rel=1e-12)
        assert values[points] == pytest.approx(first, rel=1e-12)


def test_matrices_are_left_alone():
    load, infer = matrix(5, 0), matrix(5, 1)
    copies = load.copy(), infer.copy()
    balance(load, 3)
    ttfo(load, infer, 3, 4, 1.5)
    assert np.array_equal(load, copies[0])
    assert np.array_equal(infer, copies[1])


def test_more_stages_than_threads_are_refused():
    with pytest.raises(ValueError, match="4 stages on 3 threads"):
        ttfo(matrix(6, 0), matrix(6, 0), 4, 3, 1.0)


@pytest.mark.parametrize(
    ("load", "num_stages", "trainable_from", "message"),
    [
        (np.zeros((3, 4)), 1, None, "square"),
        (np.zeros((1, 1)), 1, None, "square"),
        (matrix(4, 0), 0, None, "1 to 4 stages, not 0"),
        (matrix(4, 0), 5, None, "1 to 4 stages, not 5"),
        (matrix(4, 0), 3, 1, "1 to 2 stages, not 3"),
    ],
)
def test_what_cannot_be_solved(load, num_stages, trainable_from, message):
    with pytest.raises(ValueError, match=message):
        balance(load, num_stages, trainable_from)
    with pytest.raises(ValueError, match=message):
        ttfo(load, load, num_stages, 8, 1.0, trainable_from)


def test_differing_shapes_are_refused():
    with pytest.raises(ValueError, match="must be equal"):
        ttfo(matrix(4, 0), matrix(5, 0), 2, 8, 1.0)

"""The exact balanced partition against brute force, and what is refused."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitload.agents import balance


def matrix(num_blocks, seed):
    """Return costs of segments that are not additive: nothing in the solver may rely on that they are."""
    values = np.random.default_rng(seed).uniform(0, 1, (num_blocks + 1, num_blocks + 1))
    return np.where(np.triu(np.ones_like(values, dtype=bool), k=1), values, np.inf)


def plans(num_blocks, num_stages, trainable_from):
    for points in itertools.combinations(range(1, num_blocks), num_stages - 1):
        if trainable_from in (None, (0, *points)[-1]):
            yield points, list(itertools.pairwise((0, *points, num_blocks)))


problems = st.integers(1, 8).flatmap(
    lambda count: st.tuples(st.just(count), st.none() | st.integers(0, count - 1), st.integers(0, 10**6))
)


@settings(max_examples=60, deadline=None)
@given(problems)
def test_balance_is_the_best_of_all_plans(problem):
    num_blocks, trainable_from, seed = problem
    load = matrix(num_blocks, seed)
    for num_stages in range(
        2 if trainable_from else 1, num_blocks + 1 if trainable_from is None else trainable_from + 2
    ):
        values = {
            points: max(load[stage] for stage in stages)
            for points, stages in plans(num_blocks, num_stages, trainable_from)
        }
        points, largest = balance(load, num_stages, trainable_from)
        assert largest == values[points] == min(values.values())


def test_the_matrix_is_left_alone():
    load = matrix(5, 0)
    copy = load.copy()
    balance(load, 3)
    assert np.array_equal(load, copy)


@pytest.mark.parametrize(
    ("load", "num_stages", "trainable_from", "message"),
    [
        (np.zeros((3, 4)), 1, None, "square"),
        (np.zeros((1, 1)), 1, None, "square"),
        (matrix(4, 0), 0, None, "1 to 4 stages, not 0"),
        (matrix(4, 0), 5, None, "1 to 4 stages, not 5"),
        (matrix(4, 0), 3, 1, "2 to 2 stages, not 3"),
        (matrix(4, 0), 1, 1, "2 to 2 stages, not 1"),
        (matrix(4, 0), 2, 0, "1 to 1 stages, not 2"),
    ],
)
def test_what_cannot_be_solved(load, num_stages, trainable_from, message):
    with pytest.raises(ValueError, match=message):
        balance(load, num_stages, trainable_from)

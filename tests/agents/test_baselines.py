"""Baselines against values worked out by hand, and the spread of random plans."""

from collections import Counter
from math import comb

import pytest

from splitload.agents import random_partition, uniform_blocks, uniform_bytes


def test_uniform_bytes_by_hand():
    assert uniform_bytes([10, 10, 10, 10], 2) == (2,)
    assert uniform_bytes([1, 1, 1, 97], 2) == (3,)
    assert uniform_bytes([97, 1, 1, 1], 3) == (1, 2)
    assert uniform_bytes([1, 1, 1, 97], 3) == (2, 3)
    assert uniform_bytes([10, 20, 30, 40], 2) == (3,)
    assert uniform_bytes([0, 0, 0], 2) == (1,)


def test_uniform_blocks_by_hand():
    assert uniform_blocks(8, 4) == (2, 4, 6)
    assert uniform_blocks(5, 1) == ()
    assert uniform_blocks(3, 3) == (1, 2)
    assert uniform_blocks(8, 4, trainable_from=6) == (2, 4, 6)
    assert uniform_blocks(8, 2, trainable_from=6) == (6,)


def test_random_partition_is_uniform_and_seeded():
    drawn = Counter(random_partition(6, 4, 5, seed=seed) for seed in range(3000))
    assert len(drawn) == comb(4, 2)
    assert {points[-1] for points in drawn} == {5}
    assert min(drawn.values()) > 400
    assert random_partition(30, 5, seed=7) == random_partition(30, 5, seed=7)


@pytest.mark.parametrize(("num_stages", "trainable_from"), [(0, None), (5, None), (3, 1), (1, 1), (2, 0)])
def test_impossible_numbers_of_stages_are_refused(num_stages, trainable_from):
    for call in (
        lambda: uniform_bytes([1, 2, 3, 4], num_stages, trainable_from),
        lambda: uniform_blocks(4, num_stages, trainable_from),
        lambda: random_partition(4, num_stages, trainable_from),
    ):
        with pytest.raises(ValueError, match=f"not {num_stages}"):
            call()

"""The load of a stage against values worked out by hand, for numbers and for arrays."""

from __future__ import annotations

import numpy as np
import pytest

from splitload.plan.costs import LoadCosts, LoadSums, adds_up


def test_a_stage_pays_once_what_each_block_alone_pays() -> None:
    model = LoadCosts(fixed_s=1.0)
    assert model.load_s(LoadSums.of([3.0, 2.0, 4.0])) == 9.0 - 2 * 1.0
    assert model.load_s(LoadSums.of([3.0])) == 3.0
    assert LoadCosts(fixed_s=5.0).load_s(LoadSums.of([5.0, 6.0])) == 6.0, "no stage loads before its slowest block"


def test_what_the_whole_model_takes_beyond_its_blocks_lies_on_pairs() -> None:
    whole = LoadSums.of([1.0, 2.0, 3.0])
    model = LoadCosts.fitted(0.5, whole, 16.0)
    assert model.growth_per_s == (16.0 - 5.0) / 22.0  # twice 1·2 + 1·3 + 2·3
    assert model.load_s(whole) == 16.0
    assert model.load_s(LoadSums.of([1.0, 2.0])) == 2.5 + 0.5 * 4.0
    for faster in (5.0, 1.0, None):
        assert LoadCosts.fitted(0.5, whole, faster) == LoadCosts(0.5)
    assert LoadCosts.fitted(0.5, LoadSums.of([1.0]), 9.0) == LoadCosts(0.5), "a single block has no pair"


def test_arrays_are_many_stages_at_once() -> None:
    model = LoadCosts(0.25, 0.125)
    stages = [[1.0, 2.0], [0.5], [0.25, 0.25, 4.0]]
    each = [LoadSums.of(loads_s) for loads_s in stages]
    columns = ("num_blocks", "total_s", "squares_s2", "slowest_s")
    arrays = LoadSums(*(np.array([float(getattr(sums, name)) for sums in each]) for name in columns))
    assert model.load_s(arrays, larger=np.maximum).tolist() == [model.load_s(sums) for sums in each]


@pytest.mark.parametrize(("whole_s", "expected"), [(3.0, True), (3.0 + 1e-10, True), (3.1, False)])
def test_costs_add_up_where_each_segment_takes_what_its_blocks_do(whole_s: float, expected: bool) -> None:
    inf = float("inf")
    middle = [inf, inf, 2.0]
    assert adds_up([[inf, 1.0, whole_s], middle, [inf] * 3]) is expected

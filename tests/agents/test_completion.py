"""The grid of busy times: never above what any completion takes, near it where it is fine, and in order."""

import itertools

import numpy as np
import pytest

from splitload.agents.completion import Completion, insert
from splitload.agents.stage_costs import stage_costs

BLOCKS, STAGES = 9, 5


def drawn(rng, additive):
    """Return load, infer and read seconds of `BLOCKS` blocks."""
    if additive:
        upto = [np.concatenate(([0.0], np.cumsum(rng.uniform(0.1, 1, BLOCKS)))) for _ in range(2)]
        load, infer = (each - each[:, None] for each in upto)
    else:
        load, infer = rng.uniform(0.1, 1, (2, BLOCKS + 1, BLOCKS + 1))
    return load, infer * 0.3, load * rng.uniform(0, 0.9)


def first_output_s(costs, at, busy, storage_s, points):
    """Return when the last stage has inferred, if loading goes on from there."""
    busy, done_s = list(busy), 0.0
    for stage in itertools.pairwise((at, *points, BLOCKS)):
        start_s = min(busy)
        thread = busy.index(start_s)
        if costs.reads[stage]:
            start_s = max(start_s, storage_s)
            storage_s = start_s + costs.read[stage]
        busy[thread] = start_s + costs.load[stage]
        done_s = max(done_s, busy[thread]) + costs.infer[stage]
    return done_s


@pytest.mark.parametrize("additive", [True, False])
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
@pytest.mark.parametrize("reading", [True, False])
@pytest.mark.parametrize("cells", [1, 20, 4096])
def test_no_completion_is_sooner(additive, threads, reading, cells):
    rng = np.random.default_rng(threads)
    ratios = []
    for _ in range(4):
        load, infer, read = drawn(rng, additive)
        costs = stage_costs(load, infer, read if reading else None, STAGES, threads, 1.1, None)
        grid = Completion(costs, cells, 4.0, float("inf"))
        for left in range(1, STAGES):
            for _ in range(5):
                at = int(rng.integers(STAGES - left, BLOCKS - left + 1))
                busy = np.sort(rng.uniform(0, 3, threads))
                busy[: max(0, threads - (STAGES - left))] = 0.0  # threads not yet used
                storage_s = max(float(rng.uniform(0, 3)), busy[0])
                state = np.array([at]), busy[None, : min(left, threads)], np.array([storage_s])
                (lower_s,), _ = grid.between_s(left, *state)
                best_s = min(
                    first_output_s(costs, at, busy, storage_s, points)
                    for points in itertools.combinations(range(at + 1, BLOCKS), left - 1)
                )
                assert lower_s <= best_s * (1 + 1e-12)
                ratios.append(lower_s / best_s)
    if cells == 4096 and additive:
        assert np.mean(ratios) > (0.9 if reading else 0.97)


def test_time_over_is_said():
    load, infer, _ = drawn(np.random.default_rng(0), True)
    with pytest.raises(TimeoutError):
        Completion(stage_costs(load, infer, None, STAGES, 2, 1.1, None), 20, 4.0, 0.0)


def test_insert_keeps_order():
    rng = np.random.default_rng(0)
    values = rng.uniform(0, 1, (50, 4))
    rows = np.sort(values[:, :3], axis=1)
    assert np.array_equal(np.stack(insert(list(rows.T), values[:, 3]), axis=1), np.sort(values, axis=1))
    assert np.array_equal(insert([], values[:, 0])[0], values[:, 0])

"""The earliest first output against brute force, its bound when there is no time, and what is refused."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitload.agents import Optimum, beam, completion, exact_ttfo, ttfo
from splitload.plan.schedule import Contention, simulate

SAME = 1e-8  # relative: optimality is proved up to a billionth


def costs(num_blocks, seed):
    """Return load, infer and read seconds: additive or not, of equal blocks or not, with and without reading."""
    rng = np.random.default_rng(seed)
    size = num_blocks + 1
    legal = np.triu(np.ones((size, size), dtype=bool), k=1)

    def segments(scale):
        if kind == "any":
            return rng.uniform(0, scale, (size, size))
        blocks = np.ones(num_blocks) if kind == "equal" else rng.lognormal(0, 1, num_blocks)
        upto = np.concatenate(([0.0], np.cumsum(blocks)))
        return 0.1 + scale * (upto - upto[:, None])

    kind = rng.choice(["any", "equal", "uneven"])
    load, infer = segments(1.0), segments(rng.choice([0.1, 0.5, 3.0]))
    read = load * rng.uniform(0, 1, load.shape) * (rng.uniform(0, 1, load.shape) < 0.8) * rng.integers(2)
    return [np.where(legal, matrix, np.inf) for matrix in (load, infer, read)]


def values(load, infer, read, num_stages, contention, trainable_from):
    """Return the time to first output of every plan."""
    num_blocks = len(load) - 1
    found = {}
    for points in itertools.combinations(range(1, num_blocks), num_stages - 1):
        if trainable_from in (None, (0, *points)[-1]):
            stages = list(itertools.pairwise((0, *points, num_blocks)))
            each = ([matrix[stage] for stage in stages] for matrix in (load, infer, read))
            loads, infers, reads = each
            found[points] = simulate(loads, infers, contention, read_s=reads).ttfo_s
    return found


problems = st.integers(1, 8).flatmap(
    lambda count: st.tuples(
        st.just(count), st.integers(1, 6), st.none() | st.integers(0, count - 1), st.integers(0, 10**6)
    )
)


@settings(max_examples=80, deadline=None)
@given(problems)
def test_it_is_the_best_of_all_schedules(problem):
    num_blocks, threads, trainable_from, seed = problem
    load, infer, read = costs(num_blocks, seed)
    contention = Contention(threads, 0.3, 0.2)
    for num_stages in range(
        2 if trainable_from else 1, num_blocks + 1 if trainable_from is None else trainable_from + 2
    ):
        slowdown = contention.slowdown(num_stages)
        found = ttfo(load, infer, num_stages, threads, slowdown, trainable_from, read=read, limit_s=60.0)
        plans = values(load, infer, read, num_stages, contention, trainable_from)
        assert found.proved
        assert found.gap == 0.0
        assert found.value_s == found.bound_s == pytest.approx(min(plans.values()), rel=SAME)
        assert plans[found.split_points] == pytest.approx(found.value_s, rel=1e-12)


@settings(max_examples=80, deadline=None)
@given(problems, st.lists(st.tuples(st.sampled_from([1, 4, 30]), st.integers(1, 5)), max_size=2))
def test_the_bound_holds_where_the_search_is_too_small(problem, searches):
    num_blocks, threads, trainable_from, seed = problem
    load, infer, read = costs(num_blocks, seed)
    contention = Contention(threads, 0.3, 0.2)
    fewest, most = (1, num_blocks) if trainable_from is None else (2 if trainable_from else 1, trainable_from + 1)
    num_stages = max(fewest, most - 1)
    slowdown = contention.slowdown(num_stages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exact_ttfo, "_SEARCHES", searches)
        found = ttfo(load, infer, num_stages, threads, slowdown, trainable_from, read=read)
    plans = values(load, infer, read, num_stages, contention, trainable_from)
    best = min(plans.values())
    assert found.bound_s * (1 - SAME) <= best <= plans[found.split_points] * (1 + SAME)
    assert plans[found.split_points] == pytest.approx(found.value_s, rel=1e-12)
    assert not found.proved or found.value_s == pytest.approx(best, rel=SAME)


def additive(num_blocks, seed, infer_share):
    """Return load and infer seconds of a model of uneven blocks."""
    rng = np.random.default_rng(seed)
    upto = [np.concatenate(([0.0], np.cumsum(rng.lognormal(0, 1, num_blocks)))) for _ in range(2)]
    load, infer = (np.where(matrix > 0, matrix, np.inf) for matrix in (each - each[:, None] for each in upto))
    return load + 0.1, infer * infer_share


@pytest.mark.parametrize("limit_s", [0.0, 0.01, 0.05])
def test_the_bound_holds_where_time_is_short(limit_s):
    load, infer = additive(24, 1, 0.1)
    sure = ttfo(load, infer, 6, 2, 1.2, limit_s=60.0)
    assert sure.proved
    found = ttfo(load, infer, 6, 2, 1.2, limit_s=limit_s)
    assert 0 < found.bound_s <= sure.value_s * (1 + SAME) <= found.value_s * (1 + 2 * SAME)
    assert found.gap == 0.0 if found.proved else found.gap == found.value_s / found.bound_s - 1


@pytest.mark.parametrize("ticks", range(0, 60, 2))
def test_the_bound_holds_wherever_the_clock_stops_it(ticks, monkeypatch):
    load, infer = additive(16, 4, 0.1)
    sure = ttfo(load, infer, 6, 2, 1.2, limit_s=60.0)
    clock = itertools.count()
    for module in (exact_ttfo, completion, beam):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(exact_ttfo, "_SEARCHES", [(64, 256)])
    monkeypatch.setattr(exact_ttfo, "_improved", lambda costs, points, end_s: points)
    monkeypatch.setattr(beam, "_AT_ONCE", 1)  # a few labels between two looks
    found = ttfo(load, infer, 6, 2, 1.2, limit_s=ticks)
    assert found.bound_s <= sure.value_s * (1 + SAME) <= found.value_s * (1 + 2 * SAME)


def test_no_time_at_all_still_gives_a_plan_no_worse_than_the_starts():
    load, infer = additive(24, 1, 0.1)
    best = ttfo(load, infer, 6, 2, 1.2, limit_s=60.0)
    found = ttfo(load, infer, 6, 2, 1.2, limit_s=0.0, starts=[(1, 2, 3, 4, 5), best.split_points])
    assert (found.split_points, found.value_s) == (best.split_points, best.value_s)
    assert not ttfo(load, infer, 6, 2, 1.2, limit_s=0.0).proved


def test_a_finished_search_gives_the_same_again():
    load, infer = additive(32, 2, 0.3)
    assert ttfo(load, infer, 6, 3, 1.2, limit_s=60.0) == ttfo(load, infer, 6, 3, 1.2, limit_s=60.0)


@pytest.mark.parametrize("threads", [2, 4, 8])
def test_sixty_four_blocks_and_eight_stages_are_proved(threads):
    load, infer = additive(64, 0, 0.5)
    found = ttfo(load, infer, 8, threads, 1.2, limit_s=60.0)
    assert found.proved
    rng = np.random.default_rng(0)
    for _ in range(200):
        points = sorted(rng.choice(np.arange(1, 64), 7, replace=False))
        stages = list(itertools.pairwise((0, *points, 64)))
        contention = Contention(threads)
        other = simulate([1.2 * load[stage] for stage in stages], [infer[stage] for stage in stages], contention)
        assert found.value_s <= other.ttfo_s


def test_costs_of_nothing_and_gaps_without_a_bound():
    nothing = np.zeros((5, 5))
    assert ttfo(nothing, nothing, 3, 2, 1.0).value_s == 0.0
    assert Optimum((1,), 1.0, 0.0).gap == float("inf")
    assert Optimum((1,), 1.5, 1.0).gap == 0.5


def test_matrices_are_left_alone():
    matrices = costs(6, 3)
    copies = [matrix.copy() for matrix in matrices]
    ttfo(*matrices[:2], 4, 2, 1.5, read=matrices[2])
    assert all(np.array_equal(*pair) for pair in zip(matrices, copies, strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"load": np.zeros((3, 4))}, "square"),
        ({"num_stages": 0}, "1 to 4 stages, not 0"),
        ({"num_stages": 5}, "1 to 4 stages, not 5"),
        ({"num_stages": 3, "trainable_from": 1}, "2 to 2 stages, not 3"),
        ({"infer": np.zeros((6, 6))}, "infer .*must be equal"),
        ({"read": np.zeros((6, 6))}, "read .*must be equal"),
        ({"threads": 0}, "at least 1 thread"),
        ({"starts": [(2, 3)]}, "does not cut"),
        ({"starts": [(0,)]}, "does not cut"),
        ({"starts": [(4,)]}, "does not cut"),
        ({"starts": [(3,)], "trainable_from": 2}, "begins at one of the blocks 2 to 2"),
    ],
)
def test_what_cannot_be_solved(changes, message):
    load, infer, _ = costs(4, 0)
    asked = {"load": load, "infer": infer, "num_stages": 2, "threads": 1, "slowdown": 1.0, **changes}
    with pytest.raises(ValueError, match=message):
        ttfo(**asked)

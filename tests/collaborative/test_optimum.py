"""The best plan of a grid is that of trying all, and what segments cost is what the simulator says."""

from __future__ import annotations

from itertools import combinations, product

import models
import numpy as np
import pytest
from shared_models import even_costs, graph_of

from splitload.collaborative.costs import Costs, Link, MachineCosts
from splitload.collaborative.levels import Levels
from splitload.collaborative.operators import row_graph
from splitload.collaborative.optimum import _read_rows, grid_optimum
from splitload.collaborative.search import decoded
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.simulate import latency_s


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Levels:
    graph = graph_of(tmp_path_factory.mktemp("model"))
    return Levels.of(graph, row_graph(graph))


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Levels:
    graph = graph_of(tmp_path_factory.mktemp("few"))
    return Levels.of(graph, row_graph(graph), 4)


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Levels:
    """Rows that nobody reads: between those of a stride, and those that are cut off."""
    text = "g (float[1, 2, 13, 6] x) => (float[1, 2, 5, 2] y) { a = Conv<strides=[2,1]>(x, w) b = Relu(a) "
    text += "c = Slice(b, from, to, axes) y = Conv(c, v) }"
    weights = {"w": models.floats(2, 2, 1, 1), "v": models.floats(2, 2, 1, 5)}
    weights |= {name: np.array([value], np.int64) for name, value in (("from", 2), ("to", 7), ("axes", 2))}
    graph = graph_of(tmp_path_factory.mktemp("gaps"), "portable", models.text(text, **weights))
    return Levels.of(graph, row_graph(graph))


def rough_costs(levels: Levels) -> Costs:
    """Costs that are no straight lines, of calls and messages too."""
    chance = np.random.default_rng(7)

    def machine(scale_s: float) -> MachineCosts:
        units = [tuple(np.r_[0.0, np.cumsum(chance.random(each.num_rows)) * scale_s]) for each in levels.levels[1:]]
        return MachineCosts(((), *units), 0.3 * scale_s, 1e-8, 0.2 * scale_s)

    return Costs(machine(4e-3), machine(1e-3))


def test_segments_cost_what_the_simulator_says(levels: Levels, gaps: Levels) -> None:
    chance = np.random.default_rng(1)
    for each, costs in [(each, make(each)) for each in (levels, gaps) for make in (even_costs, rough_costs)]:
        swift = SegmentCosts(each, costs)
        for _ in range(150):
            plan = decoded(each, chance.random(3 * each.num_units))
            link = Link(float(10 ** chance.uniform(3, 8)), float(chance.choice([0.0, 0.002])))
            assert swift.latency_s(plan, link) == pytest.approx(latency_s(each, plan, costs, link), rel=1e-9)


@pytest.mark.parametrize("bytes_per_s", [2e4, 2e5, 2e6, 1e8])
@pytest.mark.parametrize("name", ["few", "gaps"])
def test_no_plan_of_the_grid_is_sooner(name: str, bytes_per_s: float, request: pytest.FixtureRequest) -> None:
    few: Levels = request.getfixturevalue(name)
    link = Link(bytes_per_s, 0.001)
    for costs in (even_costs(few), even_costs(few, server_s=1e-6), rough_costs(few)):
        swift = SegmentCosts(few, costs)
        least_s, last = np.inf, few.num_units
        rows = [sorted({round(each.num_rows * share / 2) for share in range(3)}) for each in few.levels]
        for count in range(last):
            for chosen in combinations(range(1, last), count):
                exchanges = (0, *chosen, last)
                for own in product(*(rows[level] for level in exchanges[1:])):
                    for strips in product((1, 2), repeat=len(own)):
                        plan = SharedPlan(exchanges, (few.levels[0].num_rows, *own), strips)
                        least_s = min(least_s, swift.latency_s(plan, link))
        found = grid_optimum(swift, link, np.inf, shares=2, strips=(1, 2), most_labels=10_000)
        assert found.is_exact and found.plan is not None
        assert found.latency_s == pytest.approx(least_s)
        assert found.latency_s == pytest.approx(latency_s(few, found.plan, costs, link))
        near = grid_optimum(swift, link, least_s * 1.0001, shares=2, strips=(1, 2), most_labels=10_000)
        assert near.latency_s == pytest.approx(least_s, rel=1e-6), "what may still be sooner is not given up"
        again = grid_optimum(swift, link, least_s, shares=2, strips=(1, 2), most_labels=10_000)
        assert (again.plan, again.latency_s) == (None, least_s), "nothing is sooner than what is known"


def test_where_labels_are_dropped_it_says_so(levels: Levels) -> None:
    swift, link = SegmentCosts(levels, rough_costs(levels)), Link(1e6)
    assert not grid_optimum(swift, link, np.inf, most_labels=1).is_exact


def test_rows_that_nobody_reads_are_in_no_bound(few: Levels, gaps: Levels) -> None:
    assert list(_read_rows(SegmentCosts(few, even_costs(few)))) == [each.num_rows for each in few.levels]
    assert list(_read_rows(SegmentCosts(gaps, even_costs(gaps)))) == [9, 5, 5, 5, 5], "x has 13 rows, a and b 7"

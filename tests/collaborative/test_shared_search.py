"""The search for a plan: never worse than what shares nothing, the same for the same seed, and what its codes mean."""

from __future__ import annotations

import numpy as np
import pytest
from shared_models import even_costs, graph_of

from splitload.collaborative.costs import Link
from splitload.collaborative.energy import Power, energy_j
from splitload.collaborative.levels import Levels
from splitload.collaborative.operators import row_graph
from splitload.collaborative.search import Saving, baselines, decoded, encoded, search
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.simulate import latency_s, simulate


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Levels:
    graph = graph_of(tmp_path_factory.mktemp("model"))
    return Levels.of(graph, row_graph(graph))


@pytest.mark.parametrize("bytes_per_s", [1.0, 1e5, 1e7])
def test_a_plan_is_never_worse_than_those_that_share_nothing(levels: Levels, bytes_per_s: float) -> None:
    costs, link = even_costs(levels), Link(bytes_per_s)
    found = search(SegmentCosts(levels, costs), link, generations=10)
    assert found.latency_s == latency_s(levels, found.plan, costs, link)
    assert found.latency_s <= min(found.baselines_s.values())
    assert found == search(SegmentCosts(levels, costs), link, generations=10), "the same seed finds the same"
    if bytes_per_s == 1.0:
        assert found.plan == SharedPlan.device_only(levels), "a link that carries nothing is of no use"
    if bytes_per_s == 1e5:
        assert found.latency_s < 0.95 * min(found.baselines_s.values()), "both machines and the link are busy at once"


def test_of_cuts_between_layers_the_best_is_a_baseline(levels: Levels) -> None:
    costs, link = even_costs(levels, device_s=0.2), Link(2e5)
    best = baselines(SegmentCosts(levels, costs), link)["layer cut"]
    cuts = [SharedPlan.layer_cut(levels, level) for level in range(1, levels.num_units)]
    assert latency_s(levels, best, costs, link) == min(latency_s(levels, each, costs, link) for each in cuts)


def test_numbers_stand_for_plans_and_plans_for_numbers(levels: Levels) -> None:
    chance = np.random.default_rng(2)
    for _ in range(100):
        plan = decoded(levels, chance.random(3 * levels.num_units))
        assert decoded(levels, encoded(levels, plan)) == plan
    alone = SharedPlan.device_only(levels)
    assert decoded(levels, encoded(levels, alone)) == alone


def test_energy_counts_as_long_as_inferences_are_in_time(levels: Levels) -> None:
    costs, link = even_costs(levels), Link(1e5)
    power = Power(13.35, 4.25, 4.04)
    soonest = search(SegmentCosts(levels, costs), link, generations=10)
    in_time = search(SegmentCosts(levels, costs), link, generations=10, saving=Saving(power, 10.0))
    assert soonest.energy_j is None and in_time.energy_j is not None
    taken_j = energy_j(simulate(levels, soonest.plan, costs, link), power)
    assert in_time.energy_j < taken_j, "the server computes more where there is time"
    hurried = search(SegmentCosts(levels, costs), link, generations=10, saving=Saving(power, 1.02 * soonest.latency_s))
    assert hurried.latency_s <= 1.02 * soonest.latency_s
    late = search(SegmentCosts(levels, costs), link, generations=10, saving=Saving(power, 0.0))
    assert late.latency_s <= 1.05 * soonest.latency_s, "where none is in time the least late one is taken"


def test_a_device_computes_or_communicates_or_waits(levels: Levels) -> None:
    costs, link, power = even_costs(levels), Link(1e6), Power(10.0, 2.0, 1.0)
    assert energy_j(simulate(levels, SharedPlan.device_only(levels), costs, link), power) == pytest.approx(4.0)
    image, classes = 24 * 24 * 3 * 4, 5 * 4
    far = energy_j(simulate(levels, SharedPlan.layer_cut(levels, 0), costs, link), power)
    assert far == pytest.approx(2.0 * (image + classes) / 1e6 + 1.0 * 0.1)

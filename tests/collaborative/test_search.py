"""The search for a plan: never worse than what shares nothing, the same for the same seed, and what its codes mean."""

from __future__ import annotations

import numpy as np
import pytest
from shared_models import even_costs, graph_of

from splitload.collaborative.costs import Link
from splitload.collaborative.levels import Levels
from splitload.collaborative.operators import row_graph
from splitload.collaborative.search import baselines, decoded, encoded, search
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.simulate import latency_s


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Levels:
    graph = graph_of(tmp_path_factory.mktemp("model"))
    return Levels.of(graph, row_graph(graph))


@pytest.mark.parametrize("bytes_per_s", [1e3, 1e5, 1e7])
def test_a_plan_is_never_worse_than_those_that_share_nothing(levels: Levels, bytes_per_s: float) -> None:
    costs, link = even_costs(levels), Link(bytes_per_s)
    found = search(levels, costs, link, generations=10)
    assert found.latency_s == latency_s(levels, found.plan, costs, link)
    assert found.latency_s <= min(found.baselines_s.values())
    assert found == search(levels, costs, link, generations=10), "the same seed finds the same"
    if bytes_per_s == 1e3:
        assert found.plan == SharedPlan.device_only(levels), "a link that carries nothing is of no use"
    if bytes_per_s == 1e5:
        assert found.latency_s < 0.95 * min(found.baselines_s.values()), "both machines and the link are busy at once"


def test_of_cuts_between_layers_the_best_is_a_baseline(levels: Levels) -> None:
    costs, link = even_costs(levels, device_s=0.2), Link(2e5)
    best = baselines(levels, costs, link)["layer cut"]
    cuts = [SharedPlan.layer_cut(levels, level) for level in range(1, levels.num_units)]
    assert latency_s(levels, best, costs, link) == min(latency_s(levels, each, costs, link) for each in cuts)


def test_numbers_stand_for_plans_and_plans_for_numbers(levels: Levels) -> None:
    chance = np.random.default_rng(2)
    for _ in range(100):
        plan = decoded(levels, chance.random(3 * levels.num_units))
        assert decoded(levels, encoded(levels, plan)) == plan
    alone = SharedPlan.device_only(levels)
    assert decoded(levels, encoded(levels, alone)) == alone

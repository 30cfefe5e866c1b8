"""What a device and a server compute by a plan, each with no more than it is sent, is what the model computes."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import pytest
from shared_models import PIXELS, even_costs, graph_of, images, shared_answer

from splitload.collaborative.costs import Link
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.search import decoded, search
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan
from splitload.graphs.here import HERE
from splitload.plan.graph import GraphKind

FEEDS = {"x": np.random.default_rng(3).standard_normal((1, 3, PIXELS, PIXELS)).astype(np.float32)}


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_random_plans_answer_as_the_model_does(tmp_path: Path, kind: GraphKind) -> None:
    graph = graph_of(tmp_path, kind)
    pieces = Pieces(graph)
    assert pieces.levels.num_units > 5
    (expected,) = HERE.run(graph.path, ["y"], FEEDS)
    chance = np.random.default_rng(5)
    for _ in range(12):
        code = chance.random(3 * pieces.levels.num_units)
        plan = decoded(pieces.levels, code)
        found = shared_answer(pieces, plan, graph, FEEDS)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5, err_msg=str(plan))


def test_one_machine_alone_answers_too(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    pieces = Pieces(graph)
    (expected,) = HERE.run(graph.path, ["y"], FEEDS)
    for plan in (SharedPlan.device_only(pieces.levels), SharedPlan.layer_cut(pieces.levels, 0, strips=3)):
        np.testing.assert_allclose(shared_answer(pieces, plan, graph, FEEDS)["y"], expected, rtol=1e-4)


def test_outputs_may_have_rows_as_well(tmp_path: Path) -> None:
    text = "g (float[1, 2, 12, 7] x) => (float[1, 2, 12, 7] y) "
    text += "{ a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, w) y = Add(c, a) }"
    graph = graph_of(tmp_path, "portable", models.text(text, w=models.floats(2, 2, 3, 3)))
    pieces = Pieces(graph)
    levels = pieces.levels.levels
    assert [each.num_rows for each in levels] == [12] * len(levels)
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 2, 12, 7)).astype(np.float32)}
    plan = SharedPlan((0, len(levels) - 1), (12, 5), (2,))
    found = shared_answer(pieces, plan, graph, feeds)["y"]
    np.testing.assert_allclose(found, HERE.run(graph.path, ["y"], feeds)[0], rtol=1e-4, atol=1e-5)


def test_no_weight_is_in_a_piece_that_lies_in_a_file(tmp_path: Path) -> None:
    graph = graph_of(tmp_path, "native", images())
    pieces = Pieces(graph)
    plan = SharedPlan.layer_cut(pieces.levels, 0)
    from splitload.collaborative.program import Compute, programs

    (step,) = [each for each in programs(pieces.levels, plan).server if isinstance(each, Compute)]
    model = pieces.of(step).model
    large = [tensor for tensor in model.graph.initializer if np.prod(tensor.dims) > 1024]
    assert large
    assert all(tensor.data_location == tensor.EXTERNAL for tensor in large)


def test_where_nothing_has_rows_machines_take_turns_between_layers(tmp_path: Path) -> None:
    text = "g (float[8] x) => (float[8] y) "
    text += "{ a = MatMul(x, w) s = Softmax(a) b = MatMul(s, w) t = Softmax(b) y = MatMul(t, w) }"
    graph = graph_of(tmp_path, "portable", models.text(text, w=models.floats(8, 8)))
    pieces = Pieces(graph)
    levels = pieces.levels
    assert levels.num_units > 1 and all(each.num_rows == 1 and each.is_whole for each in levels.levels)
    feeds = {"x": np.random.default_rng(1).standard_normal(8).astype(np.float32)}
    (expected,) = HERE.run(graph.path, ["y"], feeds)
    for level in range(levels.num_units):
        found = shared_answer(pieces, SharedPlan.layer_cut(levels, level), graph, feeds)["y"]
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    costs, link = even_costs(levels), Link(1e6)
    best = search(SegmentCosts(levels, costs), link, generations=3)
    assert "layer cut" in best.baselines
    assert best.latency_s == pytest.approx(min(best.baselines_s.values())), "there is nothing else to find"

"""When a plan would answer, by hand; and that programs of both machines fit together."""

from __future__ import annotations

import numpy as np
import pytest
from shared_models import even_costs, graph_of

from splitload.collaborative.costs import Costs, Link, MachineCosts, by_rows
from splitload.collaborative.levels import Levels
from splitload.collaborative.operators import row_graph
from splitload.collaborative.program import Receive, Send, programs
from splitload.collaborative.search import decoded
from splitload.collaborative.shared_plan import SharedPlan, strips_of
from splitload.collaborative.simulate import simulate
from splitload.graphs.row_pieces import Range


@pytest.fixture(scope="module")
def levels(tmp_path_factory: pytest.TempPathFactory) -> Levels:
    graph = graph_of(tmp_path_factory.mktemp("model"))
    return Levels.of(graph, row_graph(graph))


def test_levels_have_rows_and_say_what_they_need(levels: Levels) -> None:
    assert [each.num_rows for each in levels.levels][:2] == [24, 24]
    assert levels.levels[0].row_bytes == 3 * 24 * 4
    assert (levels.levels[-1].num_rows, levels.levels[-1].is_whole) == (1, True), "nothing computes classes by rows"
    assert levels.stops[1][:3] == (0, 2, 3), "the first row of a convolution needs two, the first two three"
    assert levels.starts[1][22:] == (21, 22, 24)


def test_rows_may_be_exchanged_before_each_convolution(levels: Levels) -> None:
    kinds = [node.operation.kind for node in levels.graph.nodes]
    convolutions = {at for at, kind in enumerate(kinds) if kind.endswith("Conv")}
    assert len(convolutions) == 5
    assert convolutions <= {level.position for level in levels.levels}


def test_of_what_passes_a_block_no_rows_beside_its_own_are_needed(levels: Levels) -> None:
    within = next(strands for strands in levels.strands if len(strands) == 2)
    narrow, passing = sorted(within, key=lambda strand: -strand.stops[4])
    assert (narrow.needs(Range(4, 8)), passing.needs(Range(4, 8))) == (Range(3, 9), Range(4, 8))
    assert passing.needs(Range(4, 4)) == Range(0, 0)
    level = levels.strands.index(within)
    assert levels.stops[level + 1][8] == 9, "the most of both"
    rows = (Range(3, 9), Range(0, 0))
    assert levels.parts(level, rows) == dict.fromkeys(within[0].tensors, Range(3, 9))
    assert levels.bytes_of(level, rows) == 6 * within[0].row_bytes


def test_one_machine_takes_what_its_units_take(levels: Levels) -> None:
    costs, link = even_costs(levels), Link(1e6, 0.001)
    alone = simulate(levels, SharedPlan.device_only(levels), costs, link)
    assert alone.latency_s == pytest.approx(0.4)
    assert [task.where for task in alone.tasks] == ["device"]
    image, classes = 24 * 24 * 3 * 4, 5 * 4
    far = simulate(levels, SharedPlan.layer_cut(levels, 0), costs, link)
    assert far.latency_s == pytest.approx(image / 1e6 + 0.001 + 0.1 + classes / 1e6 + 0.001)
    assert [task.where for task in far.tasks] == ["up", "server", "down"]


def test_a_server_computes_strips_while_others_come(levels: Levels) -> None:
    costs, link = even_costs(levels), Link(1e5)
    whole = simulate(levels, SharedPlan((0, 1, levels.num_units), (24, 0, 0), (1, 1)), costs, link).latency_s
    strips = simulate(levels, SharedPlan((0, 1, levels.num_units), (24, 0, 0), (4, 1)), costs, link)
    assert strips.latency_s < whole
    ups = [task for task in strips.tasks if task.where == "up"]
    assert [task.rows for task in ups] == [Range(17, 24), Range(11, 17), Range(5, 11), Range(0, 5)]
    assert ups[1].start_s == ups[0].end_s, "one message after the other"


def test_carrying_takes_time_from_computing(levels: Levels) -> None:
    costs = even_costs(levels)
    slow = Costs(MachineCosts(costs.device.units_s, 0.01, 1e-6), MachineCosts(costs.server.units_s, 0.002, 2e-6))
    sent = 24 * 24 * 3 * 4 + 20
    plan, link = SharedPlan.layer_cut(levels, 0), Link(1e9)
    more = simulate(levels, plan, slow, link).latency_s - simulate(levels, plan, costs, link).latency_s
    assert more == pytest.approx(0.002 + 2e-6 * (24 * 24 * 3 * 4) + 1e-6 * 20 + 2e-6 * 0, rel=1e-3), sent


def test_what_one_sends_the_other_waits_for(levels: Levels) -> None:
    chance = np.random.default_rng(0)
    for _ in range(200):
        plan = decoded(levels, chance.random(3 * levels.num_units))
        both = programs(levels, plan)
        for sender, receiver in ((both.device, both.server), (both.server, both.device)):
            sent = [tuple(step) for step in sender if isinstance(step, Send)]
            assert sent == [tuple(step) for step in receiver if isinstance(step, Receive)]
        assert simulate(levels, plan, even_costs(levels), Link(1e6)).latency_s > 0


def test_strips_are_about_equal_and_the_last_rows_come_first() -> None:
    assert strips_of(Range(4, 11), 3) == (Range(8, 11), Range(6, 8), Range(4, 6))
    assert strips_of(Range(4, 6), 8) == (Range(5, 6), Range(4, 5))
    assert strips_of(Range(4, 4), 2) == ()


def test_seconds_by_rows_lie_on_lines_between_those_that_were_measured() -> None:
    assert by_rows({2: 0.3, 4: 0.5}, 6) == pytest.approx((0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7))
    assert by_rows({4: 0.4}, 4) == pytest.approx((0, 0.1, 0.2, 0.3, 0.4))

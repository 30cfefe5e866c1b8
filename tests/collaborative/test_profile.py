"""What units cost on this machine, measured in fresh processes."""

from __future__ import annotations

from pathlib import Path

from shared_models import graph_of

from splitload.collaborative.pieces import Pieces
from splitload.collaborative.profile import measure_costs
from splitload.devices.host import HostDevice
from splitload.planner.report import LogReport


def test_every_unit_is_measured_with_few_and_with_all_rows(tmp_path: Path) -> None:
    graph = graph_of(tmp_path)
    pieces = Pieces(graph)
    costs = measure_costs(pieces, graph, HostDevice(tmp_path / "cache"), LogReport(), rounds=2)
    assert costs.call_s > 0 and costs.carried_s_per_byte > 0
    assert 0 <= costs.message_s < 0.1
    assert [len(each) for each in costs.units_s[1:]] == [each.num_rows + 1 for each in pieces.levels.levels[1:]]
    for table in costs.units_s[1:]:
        assert table[0] == 0
        assert all(seconds >= 0 for seconds in table)
    assert sum(table[-1] for table in costs.units_s[1:]) > 0
    assert not list(graph.path.parent.glob(".pieces-*"))

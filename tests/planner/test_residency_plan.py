"""Plans under a ceiling where the working memory of a run is measured: searched again where it is more than thought."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from models import chain, save

from splitload.base.errors import UsageError
from splitload.devices.runs import WorkingMemory
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.plan.ceiling import Ceiling
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.planner.least_ceiling import CeilingTooLowError
from splitload.planner.report import LogReport
from splitload.planner.residency import MemoryLimit, PlanMemory

CEILING = 6_000_000


class Measured:
    """A device whose runs take what is scripted, one plan after the other, besides weights."""

    def __init__(self, *arenas_bytes: int) -> None:
        self._left = list(arenas_bytes)
        self.plans: list[Partition] = []

    @property
    def measuring(self) -> Measured:
        return self

    @contextlib.contextmanager
    def runs(self, graph: ModelGraph, feeds: Any) -> Iterator[Measured]:
        yield self

    def working_memory(self, plan: Partition, reserve_bytes: int) -> WorkingMemory:
        self.plans.append(plan)
        return WorkingMemory(self._left.pop(0), 1600)


@pytest.fixture
def graph(tmp_path: Path) -> ModelGraph:
    source = open_source(str(save(chain(8, width=400), tmp_path)), tmp_path)
    return load_graph(source, "portable", tmp_path)


def planned(graph: ModelGraph, device: Measured) -> tuple[list[Ceiling], Partition, PlanMemory]:
    """Return the ceilings that were searched under, the plan and what it needs; each search takes the fewest stages."""
    residency = MemoryLimit(CEILING, device, graph, {}, LogReport())  # type: ignore[arg-type]
    ceilings: list[Ceiling] = []

    def search(ceiling: Ceiling | None) -> Partition:
        assert ceiling is not None
        ceilings.append(ceiling)
        count = ceiling.counts(8)[0]
        ends, points = ceiling.ends(count), [0]
        for left in range(count, 1, -1):
            points.append(ends[left][points[-1]][-1])
        return Partition(len(graph.blocks), tuple(points[1:]))

    plan, memory = residency.plan(residency.ceiling(None), search, lambda each: each)
    return ceilings, plan, memory


def test_what_was_measured_of_small_stages_is_enough(graph: ModelGraph) -> None:
    device = Measured(3_000_000, 3_100_000)
    ceilings, plan, memory = planned(graph, device)
    assert [each.arena_bytes for each in ceilings] == [3 << 20]
    assert device.plans[-1] == plan
    assert (memory.arena_bytes, memory.input_bytes) == (3_100_000, 1600)
    assert memory.peak_bytes <= CEILING
    assert memory.to_json(0)["arena_source"] == "measured"


def test_a_plan_that_takes_more_is_searched_again(graph: ModelGraph) -> None:
    ceilings, plan, memory = planned(graph, Measured(3_000_000, 4_100_000, 4_100_000))
    assert [each.arena_bytes for each in ceilings] == [3 << 20, 4 << 20]
    assert plan.num_stages > ceilings[0].counts(8)[0]
    assert memory.ceiling is not None
    assert memory.ceiling.allows(plan)
    assert memory.peak_bytes <= CEILING


def test_a_ceiling_that_is_too_low_is_refused_before_a_search(graph: ModelGraph) -> None:
    device = Measured(5_500_000)
    with pytest.raises(CeilingTooLowError, match=r"a run 5\.5 MB besides") as refused:
        planned(graph, device)
    assert refused.value.least_bytes > CEILING
    assert len(device.plans) == 1


def test_runs_that_take_more_each_time_are_given_up(graph: ModelGraph) -> None:
    with pytest.raises(UsageError, match=r"at last it took 5\.0 MB; give a little more --residency"):
        planned(graph, Measured(0, 3_400_000, 4_600_000, 5_000_000))

"""Plans for a crowd: the formula by hand, optima, learned plans beside them, and what fits nowhere."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from crowd_plans import EQUAL, UNEQUAL, model, on

from splitload.base.errors import UsageError
from splitload.plan.ceiling import Ceiling
from splitload.plan.crowd import Crowd
from splitload.plan.crowd_ceiling import CrowdCeiling
from splitload.plan.objectives import OBJECTIVES
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.crowd_plan import check_holders, prediction
from splitload.planner.search import Search

CROWDS = [EQUAL, UNEQUAL, replace(UNEQUAL, batch=1)]
OF_CROWD = [name for name, each in OBJECTIVES.items() if each.of_crowd]


def by_hand(profile: Profile, ceiling: CrowdCeiling, plan: Partition) -> tuple[float, float]:
    """Return the seconds of a batch and of each input, written out."""
    firsts_s, each_s = 0.0, []
    for start, end in plan.stages():
        blocks = profile.blocks[start:end]
        run_s, load_s = sum(block.cost.inference_s for block in blocks), sum(block.cost.load_s for block in blocks)
        sent = sum(block.weights_bytes for block in blocks)
        tensors = ceiling.boundary_bytes[start] + (ceiling.boundary_bytes[end] if end == len(profile.blocks) else 0)
        need = ceiling.needs.stage(start, end)
        waiting = 2 * (ceiling.boundary_bytes[start] + ceiling.boundary_bytes[end])
        taken = need.weights_bytes + 2 * need.live_bytes + need.session_bytes + waiting
        workers = [group for group in ceiling.crowd.groups for _ in range(group.count) if group.memory_bytes >= taken]
        assert workers, "it fits nowhere"
        tasks_s = [run_s / worker.speed + tensors / worker.link_bytes_per_s for worker in workers]
        loads_s = [load_s / worker.speed for worker in workers]
        sends_s = [sent / worker.link_bytes_per_s for worker in workers]
        firsts_s += min(map(sum, zip(tasks_s, loads_s, sends_s, strict=True)))
        turns = plan.num_stages > ceiling.crowd.num_workers
        rate = sum(1 / (task_s + turns * again_s) for task_s, again_s in zip(tasks_s, loads_s, strict=True))
        each_s.append(plan.num_stages / rate)
    return firsts_s + (ceiling.crowd.batch - 1) * max(each_s), max(each_s)


@pytest.mark.parametrize("crowd", CROWDS)
def test_no_plan_is_better_than_the_optimum(crowd: Crowd) -> None:
    profile, ceiling = model(8)
    ceiling = on(ceiling, crowd)
    for place, name in enumerate(OF_CROWD):
        for count in ceiling.counts(8):
            cuts = itertools.combinations(range(1, 8), count - 1)
            plans = [plan for plan in (Partition(8, points) for points in cuts) if ceiling.allows(plan)]
            search = Search(profile, agent="exact", objective=name, ceiling=ceiling, num_stages=count)
            values = [search.value_s(plan) for plan in plans]
            assert values == pytest.approx([by_hand(profile, ceiling, plan)[place] for plan in plans], rel=1e-9)
            found = search.run()
            assert found.values_s["exact"] == pytest.approx(min(values), rel=1e-9)
            assert found.exact_bound_s == found.values_s["exact"]


@pytest.mark.parametrize("objective", OF_CROWD)
def test_learned_plans_reach_the_optimum(objective: str) -> None:
    profile, ceiling = model(8)
    found = Search(profile, objective=objective, ceiling=ceiling, num_stages=5, episodes=3000).run()
    assert ceiling.allows(found.partition)
    assert found.values_s["learned"] == pytest.approx(found.values_s["exact"], rel=1e-9)
    assert all(value is None or value >= found.values_s["exact"] * (1 - 1e-9) for value in found.values_s.values())


def test_what_matters_moves_the_plan() -> None:
    profile, ceiling = model(8)
    roomy = replace(EQUAL, groups=(replace(EQUAL.groups[0], memory_bytes=1 << 30),))
    whole = Search(profile, agent="exact", objective="throughput", ceiling=on(ceiling, roomy)).plan()
    assert whole.num_stages == 1, "each worker runs the whole model, and nothing crosses a link"
    assert Search(profile, agent="exact", objective="throughput", ceiling=on(ceiling, EQUAL)).plan().num_stages > 1
    told = prediction(ceiling, profile, Partition(8, (3, 5)))
    twice = replace(UNEQUAL, groups=tuple(replace(group, count=2 * group.count) for group in UNEQUAL.groups))
    assert prediction(on(ceiling, twice), profile, Partition(8, (3, 5)))["throughput_per_s"] == pytest.approx(
        2 * told["throughput_per_s"]
    )
    assert (
        Search(profile, objective="latency", ceiling=ceiling).identity
        != Search(profile, objective="latency", ceiling=on(ceiling, twice)).identity
    )


def test_a_stage_that_no_worker_can_hold() -> None:
    profile, ceiling = model(8)
    names = [block.name for block in profile.blocks]
    largest = int(np.argmax([ceiling.weights_bytes[number][number + 1] for number in range(8)]))
    taken = ceiling.weights_bytes[largest][largest + 1]
    tight = on(ceiling, Crowd((replace(UNEQUAL.groups[0], memory_bytes=taken),), 5))
    check_holders(tight, names, None)
    lacking = on(ceiling, Crowd((replace(UNEQUAL.groups[0], memory_bytes=taken - 100_000),), 5))
    said = rf"no worker can hold the stage 'b{largest}': it takes .* MB beside the runtime, 0\.1 MB too little; give a"
    with pytest.raises(UsageError, match=said):
        check_holders(lacking, names, None)
    with pytest.raises(UsageError, match=r"best of up to 1 stage, and the largest worker has 14\.0 MB"):
        check_holders(ceiling, names, 1)


@pytest.mark.parametrize("objective", OF_CROWD)
def test_a_device_is_no_crowd(objective: str) -> None:
    profile, ceiling = model(8)
    for other in (None, Ceiling(ceiling.needs, 1 << 30, 0)):
        with pytest.raises(UsageError, match=f"the objective '{objective}' is of a crowd: give --crowd"):
            Search(profile, objective=objective, ceiling=other, agent="exact").plan()

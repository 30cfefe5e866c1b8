"""Searches under a ceiling: every agent's plan fits, learned ones reach the optimum, and refusals say what would do."""

from __future__ import annotations

import json
import math
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
from synthetic import make, needs

from splitload.agents import QLearning
from splitload.agents.checkpoint import dump, restore
from splitload.base.errors import UsageError
from splitload.base.sizes import read_bytes
from splitload.envs import SplitEnv
from splitload.plan.ceiling import Ceiling
from splitload.plan.memory import peak_bytes
from splitload.plan.objectives import OF_ONE_DEVICE
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost
from splitload.planner.agents import AGENTS, BASELINES
from splitload.planner.least_ceiling import least_ceiling
from splitload.planner.search import MOST_STAGES, Search

NUM_BLOCKS = 12
RNG = np.random.default_rng(3)
WEIGHTS = RNG.integers(500_000, 4_000_000, NUM_BLOCKS).tolist()
NEEDS = needs(WEIGHTS, RNG.integers(50_000, 400_000, NUM_BLOCKS).tolist())
BLOCKS = tuple(
    BlockProfile(f"b{number}", size, Cost(size / 1e9, size / 2e9 + 1e-3, 1e-3)) for number, size in enumerate(WEIGHTS)
)
WHOLE = {(0, NUM_BLOCKS): Cost(0.03, 0.023, 0.0118)}
PROFILE = replace(make([1.0]), blocks=BLOCKS, segments=WHOLE)


ARENA = 900_000


def peak(plan: Partition) -> int:
    return peak_bytes([NEEDS.stage(*stage) for stage in plan.stages()], ARENA)


def ceiling(share: float, apart: int | None = None) -> Ceiling:
    """Return a ceiling between the least one and one that holds all."""
    one = Ceiling(NEEDS, 1, ARENA)
    fewest = 1 if apart is None else 2
    least, most = (least_ceiling(one, count, apart).ceiling_bytes for count in (MOST_STAGES // 3, fewest))
    return Ceiling(NEEDS, round(least + share * (most - least)), ARENA)


def search(limit: Ceiling | None, apart: int | None = None, **settings: object) -> Search:
    return Search(PROFILE, ceiling=limit, trainable_from=apart, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("apart", [None, NUM_BLOCKS - 1])
@pytest.mark.parametrize("objective", OF_ONE_DEVICE)
def test_every_plan_of_every_agent_fits(objective: str, apart: int | None) -> None:
    limit = ceiling(0.2, apart)
    least = limit.counts(NUM_BLOCKS, apart)[0]
    assert least > 1
    for agent in AGENTS:
        made = search(limit, apart, agent=agent, objective=objective, episodes=400, max_stages=least + 2)
        plan = made.plan()
        assert list(made.plans) == [least, least + 1, least + 2]
        plans = [plan, *made.plans.values(), made.even(1), made.even(NUM_BLOCKS)]
        assert all(map(limit.allows, plans))
        assert all(peak(plan) <= limit.ceiling_bytes for plan in plans)
        assert all(apart in (None, plan.bounds[-2]) for plan in plans)
    values_s = made.valued(plan, search_s=0.0).values_s
    assert values_s.keys() == {"learned", *BASELINES}
    known = [value for value in values_s.values() if value is not None]
    assert values_s["exact"] == pytest.approx(min(known), rel=1e-9)
    assert math.isfinite(max(known))


@pytest.mark.parametrize("agent", ["q-learning", "sarsa"])
def test_learned_plans_for_a_steady_inference_are_optimal(agent: str) -> None:
    found = search(ceiling(0.05), agent=agent, objective="steady").run()
    assert found.values_s["learned"] == pytest.approx(found.values_s["exact"], rel=1e-9)
    assert found.exact_bound_s == found.values_s["exact"]
    assert agent == "sarsa" or set(search_stops(found.partition.num_stages)) == {"proved"}


def search_stops(num_stages: int) -> list[str]:
    made = search(ceiling(0.05), objective="steady", num_stages=num_stages)
    made.plan()
    assert made.learned is not None
    return list(made.learned.stopped.values())


def test_without_a_ceiling_a_steady_inference_is_not_cut() -> None:
    found = search(None, objective="steady", agent="exact").run()
    assert found.partition == Partition(NUM_BLOCKS)
    assert found.values_s["exact"] == pytest.approx(0.0118)


def test_more_stages_leave_more_room_until_cuts_cost_more() -> None:
    made = search(ceiling(0.2), objective="steady", agent="exact")
    found = made.run().partition
    assert found.num_stages > min(made.plans), "large stages keep much room free"
    assert PROFILE.cut_inference_s == pytest.approx((12e-3 - 11.8e-3) / 11)
    cuts_cost = replace(PROFILE, segments={(0, NUM_BLOCKS): Cost(0.03, 0.018, 0.004)})
    fewer = Search(cuts_cost, objective="steady", agent="exact", ceiling=ceiling(0.2)).run().partition
    assert fewer.num_stages < found.num_stages


@pytest.mark.parametrize("apart", [None, NUM_BLOCKS - 1])
@pytest.mark.parametrize("most", [3, NUM_BLOCKS - 1])
def test_the_least_ceiling_does_and_one_byte_less_does_not(most: int, apart: int | None) -> None:
    least = least_ceiling(ceiling(0.0, apart), most, apart)
    limit = Ceiling(NEEDS, least.ceiling_bytes, ARENA)
    assert search(limit, apart, agent="exact", max_stages=most).run().partition.num_stages <= most
    with pytest.raises(UsageError, match=f"no plan of up to {most} stages fits") as refused:
        search(replace(limit, ceiling_bytes=least.ceiling_bytes - 1), apart, agent="exact", max_stages=most)
    advised = re.search(r"give --residency (\S+)$", str(refused.value))
    assert advised is not None
    search(replace(limit, ceiling_bytes=read_bytes(advised[1])), apart, agent="exact", max_stages=most)
    start, end = least.largest
    assert f"'b{start}" in str(refused.value)
    assert f"{NEEDS.stage(start, end).mapped_bytes / 1e6:.1f} MB of weights, a run 0.9 MB besides" in str(refused.value)


def test_a_search_under_another_ceiling_is_another_search() -> None:
    limits = [None, ceiling(0.0), ceiling(0.1)]
    assert len({str(search(limit, num_stages=None if limit is None else 8).identity) for limit in limits}) == 3
    assert "ceiling_bytes" not in search(None).identity
    assert pickle.loads(pickle.dumps(ceiling(0.1))) == ceiling(0.1)  # noqa: S301 - search processes are sent it


def test_a_search_under_a_ceiling_is_kept_and_goes_on() -> None:
    limit = ceiling(0.2)

    def agent() -> QLearning:
        return QLearning(SplitEnv(PROFILE, objective="steady", max_stages=8, ceiling=limit), seed=1)

    counts = limit.counts(8)
    whole, begun, resumed = agent(), agent(), agent()
    expected = whole.train(num_stages=counts, episodes=200)
    begun.train(num_stages=counts, episodes=90)
    restore(resumed, json.loads(json.dumps(dump(begun))))
    assert resumed.train(num_stages=counts, episodes=200, resume=True) == expected

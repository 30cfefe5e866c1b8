"""Predictions of plans for a crowd beside the simulator, which schedules every task as the engine does."""

from __future__ import annotations

from dataclasses import replace

import pytest
from crowd_plans import EQUAL, UNEQUAL, model, on

from splitload.crowd.entities import Stage, Worker
from splitload.crowd.simulate import SimulatedDevice, Surroundings, simulate
from splitload.plan.crowd import Crowd
from splitload.plan.crowd_ceiling import CrowdCeiling
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.search import Search


def simulated_s(profile: Profile, ceiling: CrowdCeiling, plan: Partition) -> float:
    """Return the simulated seconds of a batch."""
    stages = []
    for start, end in plan.stages():
        cost = profile.cost(start, end)
        sent, taken = sum(ceiling.sent_bytes[start:end]), ceiling.stage_bytes(start, end)
        stages.append(Stage(f"{start}-{end}", sent, taken, cost.inference_s, cost.load_s, ceiling.boundary_bytes[end]))
    devices = [
        SimulatedDevice(
            Worker(f"{group.memory_bytes}-{number}", group.memory_bytes, group.speed, group.link_bytes_per_s)
        )
        for group in ceiling.crowd.groups
        for number in range(group.count)
    ]
    around = Surroundings(input_bytes=ceiling.boundary_bytes[0])
    return simulate(stages, devices, ceiling.crowd.batch, surroundings=around).makespan_s


@pytest.mark.parametrize(("crowd", "least", "most"), [(EQUAL, 0.95, 1.4), (UNEQUAL, 0.75, 1.65)])
def test_predictions_are_near_and_plans_are_good(crowd: Crowd, least: float, most: float) -> None:
    for seed in range(3):
        profile, ceiling = model(seed=seed)
        for batch in (5, 20, 100):
            here = on(ceiling, replace(crowd, batch=batch))
            search = Search(profile, agent="exact", objective="latency", ceiling=here)
            plan = search.plan()
            mine_s = simulated_s(profile, here, plan)
            assert least <= search.value_s(plan) / mine_s <= most, (seed, batch)
            best_s = min(simulated_s(profile, here, each) for each in search.plans.values())
            assert mine_s <= 1.4 * best_s, "of all numbers of stages it takes a good one"

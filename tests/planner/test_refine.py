"""Search within a budget of loads, against a device whose costs are known: nearness, the budget, memory, stability."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from splitload.base.errors import UsageError
from splitload.devices.estimate import FirstOutput, estimate, with_first_outputs
from splitload.devices.ledger import SAMPLES, Ledger
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.planner.refine import refine
from splitload.planner.search import Search

BUDGET = 200


def make(
    loads: Sequence[float], infers: Sequence[float], *, whole_s: float | None = None, fixed: float = 0.0
) -> Profile:
    blocks = tuple(
        BlockProfile(f"b{number}", 100, Cost(load + fixed, infer, infer))
        for number, (load, infer) in enumerate(zip(loads, infers, strict=True))
    )
    whole = {} if whole_s is None else {(0, len(blocks)): Cost(whole_s, sum(infers), sum(infers))}
    return Profile("m", "a" * 64, "native", "dev", "measured", blocks, fixed, Contention(4, 0.2, 0.1), whole)


def truth(seed: int) -> Profile:
    """Sixty-four uneven blocks, of which long stages load slower than their sum."""
    rng = np.random.default_rng(seed)
    loads = rng.lognormal(-6, 1, 64)
    return make(
        loads.tolist(), (0.3 * rng.lognormal(-6, 1, 64)).tolist(), whole_s=1.5 * loads.sum() + 0.001, fixed=0.001
    )


def device(profile: Profile, noise: float, seed: int, measured: list[Sequence[tuple[int, int]]]):  # type: ignore[no-untyped-def]
    rng = random.Random(seed)  # noqa: S311 - not for secrets

    def sample(stages: Sequence[tuple[int, int]]) -> list[Cost]:
        measured.append(stages)
        costs = [profile.cost(*stage) for stage in stages]
        return [
            Cost(cost.load_s * rng.gauss(1, noise), cost.first_inference_s * rng.gauss(1, noise), cost.inference_s)
            for cost in costs
        ]

    return sample


def guess(profile: Profile, seed: int) -> Profile:
    """A simulator that is off by half in the standard deviation of the logarithm of every block."""
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    blocks = [
        Cost(block.cost.load_s * rng.lognormvariate(0, 0.5), block.cost.inference_s * rng.lognormvariate(0, 0.5), 0.0)
        for block in profile.blocks
    ]
    return replace(
        make([cost.load_s for cost in blocks], [cost.first_inference_s for cost in blocks]), source="simulated"
    )


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("objective", ["balance", "ttfo"])
def test_two_hundred_loads_come_within_three_percent_of_a_full_profile(objective: str, seed: int) -> None:
    real = truth(seed)
    measured: list[Sequence[tuple[int, int]]] = []
    ledger = Ledger(device(real, 0.01, seed, measured), BUDGET)
    refined = refine(
        guess(real, seed),
        ledger,
        lambda profile: Search(profile, objective=objective, max_stages=4),
        serial_share=lambda: 0.2,
    )
    assert ledger.loads == sum(map(len, measured)) <= BUDGET
    judge = Search(real, objective=objective, max_stages=4)
    unlimited = Search(real, objective=objective, max_stages=4, agent="exact").plan()
    assert judge.deciding_s(refined.found.partition) <= 1.03 * judge.deciding_s(unlimited)
    assert refined.found.partition in refined.plans
    assert refined.profile.segments.keys() >= set(refined.found.partition.stages())


def test_a_budget_that_ends_leaves_what_was_measured() -> None:
    real = truth(0)
    plans = []
    for budget in (1, 20, 40):
        ledger = Ledger(device(real, 0.0, 0, []), budget)
        refined = refine(guess(real, 0), ledger, lambda profile: Search(profile, max_stages=4))
        assert ledger.loads <= budget
        assert not refined.complete
        plans.append(len(refined.plans))
    assert plans[0] == 1
    assert plans == sorted(plans)
    with pytest.raises(UsageError, match="larger --budget"):
        refine(guess(real, 0), Ledger(device(real, 0.0, 0, []), 0), lambda profile: Search(profile))


def test_trainable_blocks_stay_in_the_last_stage() -> None:
    real = truth(1)
    refined = refine(
        guess(real, 1),
        Ledger(device(real, 0.0, 0, []), BUDGET),
        lambda profile: Search(profile, max_stages=4, trainable_from=40),
        trainable_from=40,
    )
    assert all(plan.split_points[-1] == 40 for plan in refined.plans if plan.split_points)
    assert refined.found.partition.split_points[-1] == 40


def test_one_block_needs_no_search() -> None:
    one = make([0.1], [0.1])
    ledger = Ledger(device(one, 0.0, 0, []), None)
    assert refine(one, ledger, lambda profile: Search(profile)).plans == (Partition(1),)
    assert ledger.loads == SAMPLES


def test_known_stages_are_not_measured_again() -> None:
    measured: list[Sequence[tuple[int, int]]] = []
    ledger = Ledger(device(truth(0), 0.0, 0, measured))
    assert ledger.measure(Partition(64, (10, 30)))
    assert len(measured) == SAMPLES
    assert ledger.measure(Partition(64, (10, 30)))
    assert ledger.loads == 3 * SAMPLES
    assert ledger.measure(Partition(64, (10, 40)))  # a stage it knows, and two it does not
    assert ledger.loads == 6 * SAMPLES
    assert ledger.costs()[0, 10] == truth(0).cost(0, 10)


def test_a_stage_that_scatters_is_sampled_no_more_often() -> None:
    jumping = iter([5.0, 1.0, 3.0, 7.0])
    ledger = Ledger(lambda stages: [Cost(next(jumping), 0.1, 0.1) for _ in stages])
    assert ledger.measure(Partition(4))
    assert (ledger.loads, ledger.costs()[0, 4].load_s) == (SAMPLES, 3.0)


def test_an_estimate_gives_back_what_was_measured() -> None:
    real = truth(2)
    plans = [Partition(64), Partition(64, (16, 32, 48)), Partition(64, (20, 40))]
    costs = {stage: real.cost(*stage) for plan in plans for stage in plan.stages()}
    made = estimate(guess(real, 2), plans, costs)
    assert (made.source, made.contention) == ("measured", Contention(4, 0.2, 0.1))
    assert made.whole() == real.whole()
    for stage, cost in costs.items():
        assert made.cost(*stage).load_s == pytest.approx(cost.load_s, rel=0.05)
        assert made.cost(*stage).first_inference_s == pytest.approx(cost.first_inference_s, rel=0.05)


def first_output(profile: Profile, plan: Partition) -> FirstOutput:
    schedule = profile.schedule(plan)
    return FirstOutput(schedule.load_makespan_s, schedule.ttfo_s)


@pytest.mark.parametrize("infers", [0.3, 3.0])  # the cut waits for loads, or it does not
@pytest.mark.parametrize("threads", [1, 4])
def test_what_a_call_and_a_cut_cost_is_found_from_two_plans(threads: int, infers: float) -> None:
    contention = Contention(threads, 0.2, 0.1, start_s=0.003, cut_infer_s=0.002)
    slower = [replace(b, cost=replace(b.cost, first_inference_s=infers * b.cost.load_s)) for b in truth(3).blocks]
    real = replace(truth(3), blocks=tuple(slower), contention=contention)
    known = replace(real, contention=contention._replace(start_s=0.0, cut_infer_s=0.0))
    whole, cut = Partition(64), Partition(64, (12, 30, 50))
    found = with_first_outputs(known, cut, first_output(real, whole), first_output(real, cut))
    assert found == pytest.approx(contention)
    soon = FirstOutput(0.0, 0.0)
    assert with_first_outputs(known, cut, soon, soon) == known.contention, "nothing costs less than 0"


@pytest.mark.parametrize(("cut_infer_s", "stages"), [(0.0, 4), (0.5, 1)])
def test_a_cut_that_costs_more_than_it_gains_is_not_taken(cut_infer_s: float, stages: int) -> None:
    real = replace(truth(1), contention=Contention(4, 0.2, 0.1, start_s=0.001, cut_infer_s=cut_infer_s))
    asked = []

    def first_outputs(cut: Partition) -> tuple[FirstOutput, FirstOutput]:
        asked.append(cut.num_stages)
        return first_output(real, Partition(64)), first_output(real, cut)

    def search(most: int) -> Any:
        return lambda profile: Search(profile, objective="ttfo", max_stages=most, episodes=2000)

    ledger = Ledger(device(real, 0.0, 1, []), BUDGET)
    found = refine(guess(real, 1), ledger, search(4), first_outputs=first_outputs).found
    assert (found.partition.num_stages, asked) == (stages, [4])
    only = Ledger(device(real, 0.0, 1, []), BUDGET)
    refined = refine(guess(real, 1), only, search(1), first_outputs=first_outputs)
    assert asked == [4], "where nothing may be cut nothing is asked"
    assert (refined.plans, only.loads, refined.complete) == ((Partition(64),), SAMPLES, True)


def test_a_budget_that_ends_before_a_cut_is_known_is_said_to_end() -> None:
    real = truth(1)
    ledger = Ledger(device(real, 0.0, 1, []), BUDGET)
    refined = refine(guess(real, 1), ledger, lambda profile: Search(profile), first_outputs=lambda _: None)
    assert (len(refined.plans), refined.complete) == (2, False)

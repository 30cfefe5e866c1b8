"""How many stages a search looks at and takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from splitload.plan.objectives import OBJECTIVES, OF_LOADING
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.planner.agents import AGENTS, BASELINES, DEFAULT_AGENT
from splitload.planner.search import MANY_STAGES, MAX_STAGES, WORTHWHILE, Search

BLOCKS = 32


def profile(whole_load_s: float, blocks: int = BLOCKS) -> Profile:
    """Blocks that load in a second each, of a model that loads in so many."""
    each = tuple(BlockProfile(f"b{number}", 100, Cost(1.0, 0.01, 0.01)) for number in range(blocks))
    whole = {(0, blocks): Cost(whole_load_s, 0.01 * blocks, 0.01 * blocks)}
    return Profile("m", "a" * 64, "native", "dev", "measured", each, 0.0, Contention(2), whole, {})


@pytest.mark.parametrize(("whole_load_s", "most"), [(32.0, MAX_STAGES), (1000.0, MANY_STAGES)])
def test_many_stages_are_looked_at_where_loading_grows_faster_than_the_model(whole_load_s: float, most: int) -> None:
    found = Search(profile(whole_load_s), objective="ttfo", agent="uniform").run().partition.num_stages
    assert (found > MAX_STAGES) == (most > MAX_STAGES)
    assert found <= most
    assert (
        Search(profile(whole_load_s), objective="ttfo", agent="uniform", max_stages=3).run().partition.num_stages <= 3
    )


def test_short_models_have_no_more_stages_than_blocks() -> None:
    assert Search(profile(1000.0, 5), objective="ttfo", agent="uniform").run().partition.num_stages <= 5
    search = Search(profile(1000.0), objective="ttfo", agent="uniform", trainable_from=3)
    assert search.run().partition.num_stages <= 4


@pytest.mark.parametrize("objective", ["balance", "ttfo"])
def test_more_stages_pay(objective: str) -> None:
    made = profile(400.0)
    taken = Search(made, objective=objective, agent="uniform").run().partition
    assert taken.num_stages > 1

    def seconds(count: int) -> float:
        search = Search(made, objective=objective, agent="uniform", max_stages=count)
        plan = search._rivals.by_rule(BASELINES["uniform_bytes"], count)
        assert plan is not None
        return OBJECTIVES[objective].deciding_s(made, plan)

    mine = seconds(taken.num_stages)
    assert mine < (1 - WORTHWHILE) * seconds(1)
    assert all(mine < seconds(count) for count in range(2, taken.num_stages))
    least_s = (1 - OBJECTIVES[objective].further_gain) * mine
    assert all(seconds(count) > least_s for count in range(taken.num_stages, MAX_STAGES + 1))


@pytest.mark.parametrize("agent", ["exact", "uniform", "annealing", "q-learning"])
@pytest.mark.parametrize("limit_s", [0.0, 60.0])
def test_no_plan_is_better_than_the_exact_one(agent: str, limit_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitload.planner.rivals.EXACT_LIMIT_S", limit_s)
    made = profile(60.0, 16)  # on two threads
    found = Search(made, objective="ttfo", agent=agent, max_stages=5, episodes=300).run()
    assert found.partition.num_stages > 2
    value = made.schedule(found.partition).ttfo_s
    values = [value, *(each for each in found.values_s.values() if each is not None)]
    exact, bound = found.values_s["exact"], found.exact_bound_s
    assert exact is not None
    assert bound is not None
    assert bound <= exact * (1 + 1e-9)
    if limit_s:
        assert bound == exact <= min(values) * (1 + 1e-9)
    else:
        assert bound < exact <= value * (1 + 1e-9)


@pytest.mark.parametrize("agent", ["exact", "uniform"])
def test_all_is_loaded_no_sooner_than_the_slowest_stage_alone(agent: str) -> None:
    blocks = tuple(BlockProfile(f"b{number}", 100, Cost(1.0 + number % 3, 0.01, 0.01, 0.9)) for number in range(12))
    made = Profile("m", "a" * 64, "native", "dev", "simulated", blocks, 0.1, Contention(8, 0.4))
    found = Search(made, agent=agent, num_stages=4).run()
    value = found.values_s["exact"]
    alone = max(made.cost(*stage).load_s for stage in found.partition.stages())
    assert value is not None
    assert value <= alone <= made.schedule(found.partition).load_makespan_s
    assert agent != "exact" or value == alone


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("objective", OF_LOADING)
def test_what_is_trained_is_cut_off_in_every_plan_that_is_searched(agent: str, objective: str) -> None:
    search = Search(profile(400.0), objective=objective, agent=agent, max_stages=5, trainable_from=30, episodes=2000)
    found = search.run()
    assert list(search.plans) == [2, 3, 4, 5]
    assert all(plan.bounds[-2] == 30 for plan in search.plans.values())
    assert found.exact_bound_s is not None
    assert all(value is None or value >= found.exact_bound_s * (1 - 1e-9) for value in found.values_s.values())
    assert search.value_s(found.partition) >= found.exact_bound_s * (1 - 1e-9)


def test_what_is_trained_is_cut_off_in_all_plans_that_are_compared() -> None:
    whole = {(0, 8): Cost(2.0, 0.08, 0.08)}  # far quicker than its blocks: no plan with a cut is as good
    made = replace(profile(2.0, 8), contention=Contention(8, 0.3), segments=whole)
    search = Search(made, agent="exact", max_stages=3, trainable_from=7)
    found = search.run()
    frozen_in_one, frozen_in_two = (made.schedule(plan).load_makespan_s for plan in search.plans.values())
    assert made.schedule(Partition(8)).load_makespan_s < frozen_in_two < (1 - WORTHWHILE) * frozen_in_one
    assert found.partition == search.plans[3]
    assert search.whole(found).partition == search.fewest == Partition(8, (7,))
    assert search.whole(found).cut_s == frozen_in_two, "which is what one frozen stage is compared with"


def hard(blocks: int = 24) -> Profile:
    """Blocks unlike each other on two threads: what a short search learns is not the best there is."""
    each = tuple(
        BlockProfile(f"b{number}", 100, Cost(1.0 + number * 7 % 5, 0.2 + number % 3, 0.1)) for number in range(blocks)
    )
    return Profile("m", "a" * 64, "native", "dev", "measured", each, 0.3, Contention(2, 0.2))


def test_the_best_plan_known_is_taken_and_it_is_said_who_found_it() -> None:
    asked = {"objective": "ttfo", "num_stages": 7, "episodes": 40}
    learned = Search(hard(), agent="q-learning", **asked).run()  # type: ignore[arg-type]
    best = Search(hard(), agent="best", **asked).run()  # type: ignore[arg-type]
    assert (learned.found_by, best.found_by) == ("q-learning", "exact")
    made = Search(hard(), **asked)  # type: ignore[arg-type]
    assert made.identity["agent"] == DEFAULT_AGENT == "best"
    assert best.values_s == learned.values_s, "the value of what was learned stays beside"
    value_s = made.value_s(best.partition)
    assert best.values_s["learned"] == made.value_s(learned.partition) > value_s
    assert value_s == pytest.approx(min(value for value in best.values_s.values() if value is not None))


def test_what_was_learned_is_taken_where_nobody_knows_better() -> None:
    found = Search(hard(8), objective="balance", max_stages=4).run()
    assert found.found_by == "q-learning"
    assert found.values_s["learned"] == found.values_s["exact"] == found.exact_bound_s


def test_numbers_of_stages_that_are_far_behind_are_given_up() -> None:
    search = Search(hard(), objective="ttfo", agent="q-learning", max_stages=9)
    search.plan()
    assert search.learned is not None
    stopped = search.learned.stopped
    assert "outdone" in stopped.values()
    least_s = min(map(search.deciding_s, search.plans.values()))
    assert all(
        search.deciding_s(search.plans[count]) > least_s for count, reason in stopped.items() if reason == "outdone"
    )

"""The race of plans at the end of a search: who runs, who is given up, who wins; and one in a search on a device."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import pytest

from splitload.devices.estimate import FirstOutput
from splitload.devices.ledger import Ledger
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.planner.race import (
    EQUAL_STAGES,
    FEWEST_ROUNDS,
    FORESEEN,
    LEAST_ROUNDS,
    MOST_ROUNDS,
    RUNNERS,
    levelled,
    median_error,
    race,
    runners,
    winner,
)
from splitload.planner.refine import refine
from splitload.planner.search import Search
from splitload.planner.trial import trial_of

ONE, TWO, THREE = Partition(4), Partition(4, (2,)), Partition(4, (1, 2))


def profile_of(num_blocks: int) -> Profile:
    blocks = tuple(BlockProfile(f"b{number}", 1, Cost(0.01, 0.01, 0.01)) for number in range(num_blocks))
    return Profile("m", "a" * 64, "native", "dev", "measured", blocks, 0.0, Contention(2))


def test_who_falls_behind_is_given_up() -> None:
    taken_s = {ONE: 1.0, TWO: 0.97, THREE: 1.5}
    found = race((ONE, TWO, THREE), taken_s.__getitem__)
    assert {plan: len(each) for plan, each in found.items()} == {
        ONE: MOST_ROUNDS,
        TWO: MOST_ROUNDS,
        THREE: FEWEST_ROUNDS,
    }
    assert winner(found) == TWO
    assert len(race((ONE, THREE), taken_s.__getitem__)[ONE]) == FEWEST_ROUNDS, "nobody is left to run against"


def test_what_may_still_be_measured_goes_to_those_that_may_be_the_best() -> None:
    plans = [Partition(8, tuple(range(1, count))) for count in range(1, 7)]
    taken_s = dict(zip(plans, (1.05, 1.0, 1.02, 1.06, 1.07, 1.08), strict=True))
    found = race(plans, taken_s.__getitem__)
    assert [len(found[plan]) for plan in plans] == [5, MOST_ROUNDS, MOST_ROUNDS, 3, 3, 3], "halves of six, and of three"
    assert winner(found) == plans[1]


def test_who_is_slow_once_is_not_given_up_for_it() -> None:
    slow_once = iter([1.4, *[0.9] * MOST_ROUNDS])
    found = race((ONE, TWO), lambda plan: next(slow_once) if plan == ONE else 0.95)
    assert len(found[ONE]) == MOST_ROUNDS
    assert winner(found) == ONE


def test_the_error_of_a_median() -> None:
    assert median_error([1.0, 1.0, 4.0]) == 0
    assert median_error([1.0, 2.0, 3.0, 5.0]) == pytest.approx(1.253 * 1.483 / 2)


def test_a_round_in_which_the_machine_is_slow_decides_nothing() -> None:
    slow = [1.0, 2.0, 1.0, 1.5, 1.0]
    level_s = levelled({ONE: slow, TWO: [1.1 * each for each in slow], THREE: [1.3 * each for each in slow[:3]]})
    assert level_s[ONE] == pytest.approx([1.0] * 5)
    assert level_s[TWO] == pytest.approx([1.1] * 5)
    assert level_s[THREE] == pytest.approx([1.3] * 3), "a plan that was given up after three rounds"
    one, two, three = [1.0, 1.0, 2.0, 2.2, 2.0], [1.1, 1.1, 1.1, 2.2, 2.2], [1.2, 1.2, 2.4, 2.4, 2.4]
    assert statistics.median(two) < statistics.median(one)
    assert winner({ONE: one, TWO: two, THREE: three}) == ONE
    assert levelled({}) == {}
    assert levelled({ONE: [], TWO: [1.0]}) == {ONE: [], TWO: [1.0]}


def test_a_sample_that_failed_is_one_of_its_plan_alone() -> None:
    assert levelled({ONE: [math.inf, 1.0, 1.0], TWO: [2.0, 2.0, 4.0], THREE: [3.0, 3.0, 6.0]})[ONE][0] == math.inf
    assert levelled({ONE: [math.inf] * 3, TWO: [2.0] * 3}) == {ONE: [math.inf] * 3, TWO: [2.0] * 3}


def test_it_ends_where_no_more_may_be_measured() -> None:
    left = iter([1.0] * 7)
    found = race((ONE, TWO), lambda _: next(left, None))
    assert sorted(map(len, found.values())) == [3, 4]
    assert winner({ONE: [1.0] * (LEAST_ROUNDS - 1), TWO: [1.0] * LEAST_ROUNDS}) is None
    assert winner({ONE: [0.5] * (LEAST_ROUNDS - 1), TWO: [1.0] * 2, THREE: [0.9] * 2}) == THREE
    assert winner({TWO: [1.0] * LEAST_ROUNDS}) == TWO
    assert winner({ONE: [1.0] * FEWEST_ROUNDS, TWO: [0.5] * LEAST_ROUNDS}) == TWO
    assert winner({}) is None


def test_of_plans_that_are_alike_the_one_with_the_fewest_stages_wins() -> None:
    samples: Mapping[Partition, Sequence[float]] = {THREE: [1.0] * 3, TWO: [1.005] * 3, ONE: [1.02] * 3}
    assert winner(samples) == TWO


def test_who_runs() -> None:
    search = Search(profile_of(40), objective="ttfo", max_stages=12)
    found = [search.even(count) for count in range(2, 13)]
    plans = runners(search, [Partition(40), Partition(40, (1,))], found, 200)
    assert plans[0] == Partition(40)
    assert len(plans) == RUNNERS == len(set(plans))
    assert {search.equal_bytes(count) for count in EQUAL_STAGES} < set(plans)
    assert Partition(40, (1,)) not in plans, "another plan of two stages is better"
    assert all(plan.num_stages < 13 for plan in plans)
    few = Search(profile_of(40), objective="ttfo", max_stages=2)
    assert runners(few, [Partition(40)], found, 200) == [Partition(40), few.equal_bytes(2)], "not more than may be"


def test_who_promises_most_takes_turns_with_equal_bytes() -> None:
    search = Search(profile_of(40), objective="ttfo", max_stages=12)
    uneven = [Partition(40, tuple(range(3, 3 * count, 3))) for count in range(2, 9)]
    best = sorted(uneven, key=search.deciding_s)
    equal = [search.equal_bytes(count) for count in EQUAL_STAGES]
    plans = runners(search, [Partition(40)], uneven, math.inf)
    assert plans == [Partition(40), best[0], equal[0], best[1], equal[1], best[2]]
    assert runners(search, [], [search.equal_bytes(3)], 200)[0] == search.equal_bytes(3)


def test_of_plans_that_promise_about_as_much_those_of_fewer_stages_run_first() -> None:
    search = Search(profile_of(40), objective="ttfo", max_stages=12)
    found = [search.even(count) for count in range(2, 13)]
    least_s = min(map(search.deciding_s, found))
    assert min(each.num_stages for each in found if search.deciding_s(each) <= (1 + FORESEEN) * least_s) == 7
    plans = runners(search, [Partition(40)], reversed(found), math.inf)
    assert [plan.num_stages for plan in plans if plan in found] == [7, 8, 9]


@pytest.mark.parametrize("loads", [1, 12, 30, 60])
def test_so_many_run_that_the_budget_lasts(loads: int) -> None:
    search = Search(profile_of(40), objective="ttfo", max_stages=12)
    plans = runners(search, [Partition(40)], [search.even(count) for count in range(2, 13)], loads)
    assert FEWEST_ROUNDS * sum(plan.num_stages for plan in plans) <= max(loads, FEWEST_ROUNDS)
    assert (len(plans) > 1) == (loads > 9)


@pytest.mark.parametrize("budget", [40, 200])
def test_a_search_ends_with_a_race(budget: int) -> None:
    profile = profile_of(12)
    ledger = Ledger(lambda stages: [profile.cost(*stage) for stage in stages], budget, reserve=budget // 2)
    loaded: Counter[Partition] = Counter()

    def load(plan: Partition) -> FirstOutput | None:
        """A device on which three stages answer first, whatever they cost alone."""
        ledger.release()
        if not ledger.spend(plan.num_stages):
            return None
        loaded[plan] += 1
        return FirstOutput(0.1, 0.1 + 0.01 * abs(plan.num_stages - 3))

    refined = refine(profile, ledger, lambda made: Search(made, objective="ttfo"), load=load)
    assert ledger.loads <= budget
    assert {plan: len(taken) for plan, taken in refined.raced.items()} == dict(loaded)
    trial = trial_of(refined)
    if budget == 200:
        assert refined.found.partition.num_stages == 3
        assert trial is not None
        assert trial.pays
        assert len(trial.split_s) == len(trial.whole_s) >= FEWEST_ROUNDS
        assert refined.winner(refined.search) == refined.found.partition
        few = refined.winner(Search(refined.profile, objective="ttfo", max_stages=2))
        assert few is not None
        assert few in refined.raced
        assert few.num_stages <= 2
        assert refined.winner(Search(refined.profile, objective="ttfo", num_stages=11)) is None, "none has so many"

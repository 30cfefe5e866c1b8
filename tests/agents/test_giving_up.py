"""When the search for one number of stages is given up, as another one is ahead."""

import pytest

from splitload.agents.results import Plan
from splitload.agents.stopping import SearchState, StoppingRule

RULE = StoppingRule(patience=10, finish=True, proves=True)


def searched(value_s: float, episodes: int, *, separable: bool = False, tolerant: bool = False) -> SearchState:
    plan = Plan(2, (1,), value_s, value_s, 1, (0, 1))
    return SearchState({}, plan=plan, returns=[-1.0] * episodes, separable=separable, tolerant=tolerant)


@pytest.mark.parametrize(
    ("episodes", "separable", "behind", "stopped"),
    [
        (10, False, 0.05, "running"),
        (10, False, 0.07, "outdone"),
        (20, False, 0.02, "running"),
        (20, False, 0.04, "outdone"),
        (20, True, 0.14, "running"),
        (20, True, 0.16, "outdone"),
    ],
)
def test_how_far_a_search_may_be_behind(episodes: int, separable: bool, behind: float, stopped: str) -> None:
    ahead, search = searched(1.0, episodes), searched(1 + behind, episodes, separable=separable)
    assert RULE.compares(search)
    RULE.give_up(search, [ahead, search], lambda plan: plan.value_s)
    assert (ahead.stopped, search.stopped) == ("running", stopped)


def test_searches_are_compared_after_each_patience_and_not_where_a_tolerance_is_tightened() -> None:
    assert [episodes for episodes in range(1, 31) if RULE.compares(searched(1.0, episodes))] == [10, 20, 30]
    assert not RULE.compares(searched(1.0, 10, tolerant=True))

"""When the search for one number of stages C is over, and why its end can be a proof.

A search learns whether its record, the best plan so far, can be beaten. A step earns 0 as long as that is possible, and
less once it is not: with eq. 4 because the tolerance is tightened to just below what the record needs, otherwise
because the return has fallen to the record's.

The rule. A search stops

- "proved", once every value of the starting state is below 0 and that is a proof, see below;
- "patience", at the end of the `ROUNDS`-th round in a row that has not bettered the record since it began or the record
  was set. A round ends after `patience` episodes in a row without a plan better than those of the round, which are then
  forgotten, the record excepted;
- "outdone", where rewards have no tolerance and it is far behind another number of stages: at the end of any `patience`
  episodes, if what decides between numbers of stages is by more than is allowed worse for its record than for the
  best of all records. What can be proved is learned steadily and not by leaps, so that it may be further behind;
- "episodes", when those allowed for all C together are used up;
- "stopped", on request.

The proof. No reward is positive, and values start at 0.

- The value of an action on a path of return 0 never leaves 0, whatever α and γ are: it is only ever moved towards 0.
- So once every value of the starting state is below 0, no path of return 0 is left: no plan beats the record.
- A better record can only lower what an action earns: values learned before stay optimistic, and the table is kept.
- What an action earns must depend on it and its state alone. With eq. 4 it does. Otherwise it does where the return so
  far is the least of terms that each step has for itself (`info["separable"]`): a step then falls to the record or does
  not, whatever came before. Elsewhere (more stages than threads: a load waits for those before) an action may be blamed
  for a bad past, so that the table starts anew and the search goes on.
- SARSA proves it only without exploration, as the action it learns from must be the best one.

The two forms of eq. 4. The two-sided one, `|τ - T/C| <= ε`, cannot say "lighter than the target is fine". When its band
is empty, by the same proof, or worn out, after `patience` episodes in a row without a better plan, the search goes on
with the one-sided form, `τ <= T/C + ε`, and a new table.

An example: three blocks that load in 1, 2 and 3 s, and C = 2, so that T/C = 3 s. The starting state has two actions, a
cut after block 1 (loads 1 and 5 s) and one after block 2 (loads 3 and 3 s). Both values are 0.

1. An episode cuts after block 1. Any load is within the tolerance at first, so that it earns 0 and 0. Its largest load,
   5 s, becomes the record, and ε falls to just below 5 - 3 = 2 s.
2. The next cuts there again. Loads of 1 and 5 s both miss by 2 s, so that it earns -1 and -1: the value becomes -2.
3. The next cuts after block 2, whose value is still 0, and earns 0 and 0. The record becomes 3 s, and ε falls to just
   below 0: no load is that near its target.
4. The next cuts there again and earns -1 and -1. Both values are below 0, so that the band is empty. The search turns
   to the one-sided reward, and both values are 0 once more.
5. The next cuts after block 1 and earns 0 for 1 s, and -1 for 5 s: the value becomes -1.
6. The next cuts after block 2. Its first stage earns -1, as 3 s is above 3 s less a trace: the value becomes -1.

Both values are below 0 again. It is proved that no plan has a largest load below 3 s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from splitload.agents.results import Plan, StopReason
from splitload.agents.returning import Stand

__all__ = ["BEHIND", "EQUAL", "ROUNDS", "SearchState", "StoppingRule"]

ROUNDS = 8  # in a row without a better plan, after which a search is given up
BEHIND_FIRST, BEHIND, BEHIND_PROVABLE = 0.06, 0.03, 0.15  # may be behind: after one patience, after more, if provable
EQUAL = 1e-9  # Plans whose values differ by a smaller share count as equal, so that rounding makes no record.


@dataclass(slots=True)
class SearchState:
    """The state of the search for one number of stages.

    Attributes:
        options: Of every reset.
        start: Actions of a first episode that is given.
        table: By observation the legal actions and their values. Restored rows have no actions until they are met.
        plan: The record.
        bar: Its return.
        separable: Whether what is learned depends on state and action alone.
        tolerant: Whether rewards are of eq. 4, with a tolerance.
        one_sided: Whether they are of its one-sided form.
        returns: Of every episode, in order.
        curve: At each better plan the episodes so far, and its value in seconds.
        stand: The plan that episodes return to; None where a round begins.
        round_s: Value of the round's best plan in seconds.
        idle: Episodes since the round's best plan.
        rounds: Rounds in a row without a better record.
        band_empty: Whether no plan is left that the two-sided form would pay in full.
        stopped: Why the search is over; "running" while it is not.
    """

    options: dict[str, Any]
    start: tuple[int, ...] = ()
    table: dict[bytes, tuple[list[int], list[float]]] = field(default_factory=dict)
    plan: Plan | None = None
    bar: float = -math.inf
    separable: bool = False
    tolerant: bool = False
    one_sided: bool = False
    returns: list[float] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    stand: Stand | None = None
    round_s: float = math.inf
    idle: int = 0
    rounds: int = 0
    band_empty: bool = False
    stopped: StopReason = "running"

    @property
    def start_below_zero(self) -> bool:
        """Whether every value of the starting state is below 0; the table's first row is its."""
        _, values = next(iter(self.table.values()), ([], [0.0]))
        return max(values) < 0

    def keep(self, info: dict[str, Any], episode: int) -> None:
        """Take the plan an episode ended with as the one to return to, and as the record, if it is good enough.

        Args:
            info: Of the last step, with the `actions` that led there, whether it `stands`: is good enough to return to,
                and which stages it is `held_up_by`.
            episode: The episode of the whole search, from 1.
        """
        value_s, actions = info["value_s"], info["actions"]
        self.separable = info["separable"]
        self.tolerant = "excess_s" in info
        self.one_sided = info.get("one_sided", False)
        if value_s < self.round_s * (1 - EQUAL):
            self.round_s, self.idle = value_s, 0
        if info["stands"]:
            self.stand = Stand(self.returns[-1], actions, info["held_up_by"])
        if self.plan is None or value_s < self.plan.value_s * (1 - EQUAL):
            points = tuple(info["split_points"])
            makespan_s = info["load_makespan_s"]
            self.plan = Plan(len(points) + 1, points, value_s, makespan_s, episode, tuple(actions))
            self.bar = self.returns[-1]
            self.rounds = 0
            self.curve.append((len(self.returns), value_s))
            if self.tolerant:
                self.options["tolerance_s"] = info["excess_s"] - EQUAL * value_s

    def turn_one_sided(self) -> None:
        """Turn to the one-sided reward; what was learned of the two-sided one is no longer optimistic."""
        self.options["one_sided"] = self.one_sided = True
        self.table = {}
        self.idle = 0
        self.band_empty = False


@dataclass(frozen=True, slots=True)
class StoppingRule:
    """The rule in the head of this file.

    Attributes:
        patience: Episodes in a row without a better plan that end a round.
        finish: Whether the one-sided form follows the two-sided one; otherwise that goes on once its band is empty.
        proves: Whether values of the starting state below 0 show anything: the agent starts optimistic, and learns from
            the best next action.
    """

    patience: int
    finish: bool
    proves: bool

    def judge(self, search: SearchState, info: dict[str, Any], episode: int) -> None:
        """Keep a plan that is among the best, and decide whether and how the search goes on.

        Args:
            search: The search, after an episode.
            info: Of the episode's last step; empty where it was left before its end.
            episode: Its number in the whole search, from 1.
        """
        search.idle += 1
        if info:
            search.keep(info, episode)
        two_sided = search.tolerant and not search.one_sided
        if self.proves and not search.band_empty and search.start_below_zero:
            if two_sided:
                search.band_empty = True
                if self.finish:
                    search.turn_one_sided()
                else:
                    search.idle = 0
            elif search.tolerant or search.separable:
                search.stopped = "proved"
            else:
                search.table = {}
        if search.stopped == "running" and search.idle >= self.patience:
            if two_sided and self.finish and not search.band_empty:
                search.turn_one_sided()
                return
            search.stand, search.round_s, search.idle = None, math.inf, 0
            search.rounds += 1
            if search.rounds == ROUNDS:
                search.stopped = "patience"

    def compares(self, search: SearchState) -> bool:
        """Return whether it is time to hold a search against those of other numbers of stages."""
        return not search.tolerant and search.stopped == "running" and len(search.returns) % self.patience == 0

    def give_up(self, search: SearchState, searches: Iterable[SearchState], decides: Callable[[Plan], float]) -> None:
        """End a search whose record is too far behind the best one.

        Args:
            search: It.
            searches: Of all numbers of stages.
            decides: Returns what decides between plans of different numbers of stages, in seconds.
        """
        least_s = min(decides(each.plan) for each in searches if each.plan is not None)
        late = len(search.returns) > self.patience
        allowed = BEHIND_PROVABLE if search.separable else BEHIND if late else BEHIND_FIRST
        if search.plan is None or decides(search.plan) > (1 + allowed) * least_s:
            search.stopped = "outdone"

"""What a learning agent tells of its search: on the way, and at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Plan", "Progress", "SearchResult", "StopReason"]

StopReason = Literal["running", "proved", "patience", "outdone", "episodes", "stopped"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A partition that an episode ended with.

    Attributes:
        num_stages: C.
        split_points: The ends of all stages but the last, in blocks.
        value_s: What the environment's objective makes small, in seconds.
        load_makespan_s: Seconds until every stage is loaded.
        episode: The episode of the whole search that found it, from 1.
        actions: What led to it; `train(start=…)` begins another search with it.
    """

    num_stages: int
    split_points: tuple[int, ...]
    value_s: float
    load_makespan_s: float
    episode: int
    actions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search stands after an episode.

    Attributes:
        episode: Episodes so far, of all numbers of stages together.
        episodes: The budget; a search may stop before.
        num_stages: C of this episode.
        reward: Its return, the sum of its rewards.
        epsilon: Share of actions drawn at random in it.
        best_value_s: Value in seconds of the best plan so far for this C.
        best_split_points: Its split points.
    """

    episode: int
    episodes: int
    num_stages: int
    reward: float
    epsilon: float
    best_value_s: float
    best_split_points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found, whole or interrupted.

    Attributes:
        plans: The best plan for each number of stages that had an episode.
        returns: The return of every episode, in order, for each number of stages; that of an episode that was left
            is of the steps played.
        curves: The learning curve for each number of stages: at each better plan the episodes of that C so far, and
            its value in seconds.
        stopped: Why the search of each number of stages ended: "proved", "patience", "outdone" (by another number),
            "episodes" (the budget), "stopped" (on request), or "running" if it was interrupted.
        episodes: Episodes run in all.
    """

    plans: Mapping[int, Plan]
    returns: Mapping[int, tuple[float, ...]]
    curves: Mapping[int, tuple[tuple[int, float], ...]]
    stopped: Mapping[int, StopReason]
    episodes: int

    @property
    def best(self) -> Plan:
        """The plan with the smallest value; of equals the one with the fewest stages."""
        return min(self.plans.values(), key=lambda plan: (plan.value_s, plan.num_stages))

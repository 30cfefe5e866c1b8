"""What an objective is worth that adds something up over all stages and takes the most of something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from splitload.plan.costs import CostMatrices, CostRows, Rows, adds_up, largest, least_left_s
from splitload.plan.objective import Best, Rewards, Solvers, SplitPoints


class Terms(NamedTuple):
    """The seconds of plans of some number of stages: a sum over stages, a maximum over them, and what all plans have.

    Attributes:
        added_s: What each segment adds as a stage; finite where it is one.
        largest_s: Of each segment the seconds of which only the most of any stage counts; likewise.
        always_s: What all plans of as many stages have; maybe below 0.
    """

    added_s: Rows
    largest_s: Rows
    always_s: float

    def valuer(self, num_blocks: int) -> Callable[[SplitPoints], float]:
        """Return what gives the seconds of split points."""
        added_s, largest_s, always_s = self

        def seconds(points: SplitPoints) -> float:
            stages = list(pairwise((0, *points, num_blocks)))
            sums = sum(added_s[start][end] for start, end in stages)
            return sums + max(largest_s[start][end] for start, end in stages) + always_s

        return seconds

    def optimum(
        self, costs: CostMatrices, num_stages: int, solvers: Solvers, *, trainable_from: int | None, limit_s: float
    ) -> Best:
        """Return the plan of the least seconds; see `Objective.optimum`."""
        import numpy as np

        found = solvers.steady(
            np.array(self.added_s),
            np.array(self.largest_s),
            num_stages,
            trainable_from,
            allowed=costs.allowed(num_stages),
            limit_s=limit_s,
        )
        return Best(found.split_points, found.value_s + self.always_s, found.bound_s + self.always_s)


class SumAndMostRewards(Rewards):
    """Pays minus the seconds by which a stage moves the value that the cuts so far allow.

    After some stages, which end at block e, a plan takes no less than what they add, the least that all later blocks
    can add, the most of any stage so far, and what all plans have. A reward is minus the move of that, where it is
    above 0. All moves add up to the seconds of the plan, as nothing is left in the end.

    Args:
        costs: Of the model on the device.
        terms: By number of stages; what they add is the same for all numbers.
    """

    def __init__(self, costs: CostRows, terms: Mapping[int, Terms]) -> None:
        self._costs = costs
        self._terms = terms
        added_s = terms[1].added_s
        self.illegal = -1 - max(
            count * largest(added_s) + largest(each.largest_s) + max(each.always_s, 0.0)
            for count, each in terms.items()
        )
        self._left_s = least_left_s(added_s)
        self._adds_up = adds_up(added_s)

    def begin(self, num_stages: int, tolerance_s: float | None, one_sided: bool) -> None:
        """Start a plan; there is no tolerance."""
        self._now = self._terms[num_stages]
        self._added_s = self._largest_s = self._allowed_s = 0.0

    def pay(self, start: int, end: int) -> float:
        """Return minus the seconds by which a stage moves what its cuts allow."""
        added_s, largest_s, always_s = self._now
        self._added_s += added_s[start][end]
        self._largest_s = max(self._largest_s, largest_s[start][end])
        before_s = self._allowed_s
        self._allowed_s = max(before_s, self._added_s + self._left_s[end] + self._largest_s + always_s)
        return before_s - self._allowed_s

    def outcome(self, bounds: Sequence[int]) -> dict[str, Any]:
        """Return the seconds of the plan, and whether each reward depends on its stage and the state alone."""
        costs, stages = self._costs, list(pairwise(bounds))
        clock = costs.contention.clock(len(stages))
        for start, end in stages:
            clock.add(costs.load_s[start][end], costs.first_inference_s[start][end], costs.read_s[start][end])
        return {"value_s": self._allowed_s, "load_makespan_s": clock.loaded_s, "separable": self._adds_up}

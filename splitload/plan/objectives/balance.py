"""The objective "balance": stages of equal load time, the objective of the paper."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from splitload.plan.ceiling import Ceiling
from splitload.plan.costs import CostMatrices, CostRows
from splitload.plan.objective import Best, Objective, Rewards, Solvers, SplitPoints
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.plan.schedule import Contention


class Balance(Objective):
    """Makes the largest stage load small.

    A number of stages is chosen by when all of them are loaded: equal loads alone would always be had with one stage.
    More stages than needed load longer here, as each load slows the others, so they must gain a tenth.
    """

    name = "balance"
    wish = "equal load times"
    value_name = "slowest load"
    value_phrase = "slowest stage's load, {count}, each alone"
    done_verb = "have loaded"
    deciding_key = "load_s"
    return_name = "return"
    further_gain = 0.1

    def value_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return the load of the slowest stage alone, in seconds."""
        return profile.slowest_load_s(partition)

    def scale(self, contention: Contention, num_stages: int) -> float:
        """Return how many times longer each load takes beside the others: what is made small is slowed by them."""
        return contention.slowdown(num_stages)

    def deciding_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return the seconds until all stages are loaded."""
        return profile.schedule(partition).load_makespan_s

    def valuer(self, costs: CostRows, num_stages: int) -> Callable[[SplitPoints], float]:
        """Return what gives the largest stage load of split points, under contention."""
        load_s, num_blocks = costs.load_s, costs.num_blocks
        slowdown = costs.contention.slowdown(num_stages)

        def largest_s(points: SplitPoints) -> float:
            return slowdown * max(load_s[start][end] for start, end in pairwise((0, *points, num_blocks)))

        return largest_s

    def rewards(self, costs: CostRows, max_stages: int, tolerance: float) -> BalanceRewards:
        """Return what pays by eq. 4."""
        return BalanceRewards(costs, max_stages, tolerance)

    def optimum(
        self,
        costs: CostMatrices,
        num_stages: int,
        solvers: Solvers,
        *,
        trainable_from: int | None,
        limit_s: float,
        starts: Sequence[Sequence[int]],
    ) -> Best:
        """Return the plan whose largest load is smallest; it is always proved, within no time."""
        points, largest_s = solvers.balance(costs.load_s, num_stages, trainable_from, allowed=costs.allowed(num_stages))
        value_s = largest_s * self.scale(costs.contention, num_stages)
        return Best(points, value_s, value_s)


class BalanceRewards(Rewards):
    """Pays for each stage 0 if its load time is within the tolerance of its target T/C, and -1 otherwise."""

    def __init__(self, costs: CostRows, max_stages: int, tolerance: float) -> None:
        self.illegal = -float(max_stages + 1)
        self._costs = costs
        self._load_s = costs.load_s
        self._tolerance = tolerance

    def begin(self, num_stages: int, tolerance_s: float | None, one_sided: bool) -> None:
        """Set the target to T/C, and ε to `tolerance_s` or else to its share of the target."""
        self._num_stages = num_stages
        self._target_s = self._load_s[0][-1] / num_stages
        self._tolerance_s = self._tolerance * self._target_s if tolerance_s is None else tolerance_s
        self._one_sided = one_sided

    def pay(self, start: int, end: int) -> float:
        """Return the reward of a stage by eq. 4."""
        return balance_reward(self._load_s[start][end], self._target_s, self._tolerance_s, self._one_sided)

    def outcome(self, bounds: Sequence[int]) -> dict[str, Any]:
        """Return the largest stage load; no reward needs the clock, so that it runs once a plan and not each step.

        Besides `excess_s`, the one-sided tolerance in seconds that the plan just meets, and `one_sided`.
        """
        costs, clock = self._costs, self._costs.contention.clock(self._num_stages)
        largest_s = 0.0
        for start, end in pairwise(bounds):
            load_s = self._load_s[start][end]
            clock.add(load_s, costs.first_inference_s[start][end], costs.read_s[start][end])
            largest_s = max(largest_s, load_s)
        return {
            "value_s": largest_s * clock.slowdown,
            "load_makespan_s": clock.loaded_s,
            "separable": True,
            "excess_s": largest_s - self._target_s,
            "one_sided": self._one_sided,
        }


def balance_reward(load_s: float, target_s: float, tolerance_s: float, one_sided: bool = False) -> float:
    """Return 0.0 if a stage's load time is within the tolerance of its target, else -1.0.

    Source: eq. 4 of the ICLR 2021 submission, `|τ - T/C| <= ε`; with `one_sided` the form of its prose, "at max
    equal", `τ <= T/C + ε`, for which a negative tolerance is meaningful too.

    Args:
        load_s: τ, seconds the stage takes to load alone.
        target_s: T/C, seconds the whole model takes to load, divided by the number of stages.
        tolerance_s: ε in seconds.
        one_sided: Whether a stage that loads faster than the target is always right.
    """
    excess_s = load_s - target_s
    within = excess_s <= tolerance_s and (one_sided or -excess_s <= tolerance_s)
    return 0.0 if within else -1.0


OBJECTIVE = Balance()

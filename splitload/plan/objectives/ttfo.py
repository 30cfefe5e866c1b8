"""The objective "ttfo": the shortest time from the load call to the first output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from splitload.plan.ceiling import Ceiling
from splitload.plan.costs import CostMatrices, CostRows, adds_up, least_left_s
from splitload.plan.objective import Best, Objective, Rewards, Solvers, SplitPoints
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.plan.schedule import Contention, held_up_by


class FirstOutputTime(Objective):
    """Makes the time to first output small.

    It decides between numbers of stages as well. Plans of many stages err alike, so that a fiftieth counts.
    """

    name = "ttfo"
    wish = "the shortest time to first output"
    value_name = "first output"
    value_phrase = "time to first output, {count} loading in parallel"
    done_verb = "answer"
    deciding_key = "ttfo_s"
    return_name = "return_s"
    further_gain = 0.02

    def value_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return the time to first output in seconds."""
        return profile.schedule(partition).ttfo_s

    def scale(self, contention: Contention, num_stages: int) -> float:
        """Return 1: the value is what is made small."""
        return 1.0

    def deciding_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return the time to first output in seconds."""
        return profile.schedule(partition).ttfo_s

    def valuer(self, costs: CostRows, num_stages: int) -> Callable[[SplitPoints], float]:
        """Return what gives the time to first output of split points."""
        load_s, infer_s, read_s = costs.load_s, costs.first_inference_s, costs.read_s
        contention, num_blocks = costs.contention, costs.num_blocks

        def first_output_s(points: SplitPoints) -> float:
            clock = contention.clock(num_stages)
            for start, end in pairwise((0, *points, num_blocks)):
                clock.add(load_s[start][end], infer_s[start][end], read_s[start][end])
            return clock.inferred_s

        return first_output_s

    def rewards(self, costs: CostRows, max_stages: int, tolerance: float) -> FirstOutputRewards:
        """Return what pays minus the seconds that each stage costs; there is no tolerance."""
        return FirstOutputRewards(costs, max_stages)

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
        """Return the plan that answers first; every plan answers later by `start_s`, as nothing loads before."""
        contention = costs.contention
        found = solvers.ttfo(
            costs.load_s,
            costs.first_inference_s + contention.beside_s(num_stages),
            num_stages,
            contention.threads,
            contention.slowdown(num_stages),
            trainable_from,
            read=costs.read_s,
            limit_s=limit_s,
            starts=starts,
            allowed=costs.allowed(num_stages),
        )
        return Best(found.split_points, found.value_s + contention.start_s, found.bound_s + contention.start_s)


class FirstOutputRewards(Rewards):
    """Pays minus the seconds by which a stage moves the first output that the cuts so far allow.

    After i of C stages, which end at block e, the first output comes no sooner than the clock says, and then

    - `left_s[e]`, the least that inferring all later blocks takes, however they are cut, and
    - `beside_s` for each of the C - i stages to come, as each stage of a cut infers so much longer.

    A reward is minus the move of that sum. From one stage to the next its last part falls by `beside_s`; the first
    stage, before which nothing was known, answers for the C - 1 that are still to come. All moves add up to the time to
    first output, as nothing is left in the end.
    """

    def __init__(self, costs: CostRows, max_stages: int) -> None:
        self.illegal = -costs.most_s(max_stages) - 1
        self._contention = costs.contention
        self._load_s, self._infer_s, self._read_s = costs.load_s, costs.first_inference_s, costs.read_s
        self._adds_up = adds_up(costs.first_inference_s) and adds_up(costs.read_s)
        self._left_s = least_left_s(costs.first_inference_s)

    def begin(self, num_stages: int, tolerance_s: float | None, one_sided: bool) -> None:
        """Start the clock."""
        self._num_stages = num_stages
        self._clock = self._contention.clock(num_stages)
        self._threads: list[int] = []  # where each stage so far loads
        self._held = 0  # the last stage that infers as soon as it is loaded
        self._opening_s = -self._clock.beside_s * (num_stages - 1)  # for the stages after the first

    def pay(self, start: int, end: int) -> float:
        """Return minus the seconds by which a stage moves what its cuts allow."""
        left_s, clock = self._left_s, self._clock
        moved_s = clock.add(self._load_s[start][end], self._infer_s[start][end], self._read_s[start][end])
        if clock.infer_start_s == clock.load_end_s:
            self._held = len(self._threads)
        self._threads.append(clock.thread)
        before_s = left_s[start] + clock.beside_s if start else self._opening_s
        return before_s - left_s[end] - moved_s

    def outcome(self, bounds: Sequence[int]) -> dict[str, Any]:
        """Return the time to first output, which stages hold it up, and whether rewards depend on the state alone."""
        return {
            "held_up_by": held_up_by(self._threads, self._held),
            "value_s": self._clock.inferred_s,
            "load_makespan_s": self._clock.loaded_s,
            "separable": self._adds_up and self._num_stages <= self._contention.threads,
        }


OBJECTIVE = FirstOutputTime()

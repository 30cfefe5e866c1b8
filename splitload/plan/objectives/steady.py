"""The objective "steady": the shortest inference once everything is loaded, under a ceiling on memory above all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from splitload.plan.ceiling import Ceiling
from splitload.plan.costs import CostMatrices, CostRows, Rows, adds_up, largest, least_left_s
from splitload.plan.objective import Best, Objective, Rewards, Solvers, SplitPoints
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.plan.schedule import Contention


class SteadyInference(Objective):
    """Makes a later inference short: its stages, its cuts, and the weights that have to come into memory again.

    Of k stages it takes `Σ inference + (k - 1) · cut + streamed bytes · seconds a byte`, see `Ceiling.streamed_bytes`,
    `Profile.cut_inference_s` and `Profile.come_again_s_per_byte`. Without a ceiling nothing comes again, so that no cut
    pays. Under one smaller stages leave more room to weights that stay, and each cut costs. What it costs is in the
    value, so that more stages need gain little beyond that.
    """

    name = "steady"
    wish = "the shortest inference once all is loaded, with what --residency lets go of"
    value_name = "steady inference"
    value_phrase = "steady inference, {count}"
    done_verb = "answer again"
    deciding_key = "steady_inference_s"
    return_name = "return_s"
    further_gain = 0.005

    def value_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return the seconds of a later inference."""
        stages = list(partition.stages())
        inference_s = sum(profile.cost(start, end).inference_s for start, end in stages)
        streamed_bytes = 0 if ceiling is None else ceiling.streamed_bytes(stages)
        cuts_s = profile.cut_inference_s * (len(stages) - 1)
        return inference_s + cuts_s + profile.come_again_s_per_byte * streamed_bytes

    def scale(self, contention: Contention, num_stages: int) -> float:
        """Return 1: the value is what is made small."""
        return 1.0

    def deciding_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return the seconds of a later inference."""
        return self.value_s(profile, partition, ceiling)

    def valuer(self, costs: CostRows, num_stages: int) -> Callable[[SplitPoints], float]:
        """Return what gives the seconds of a later inference of split points."""
        terms = _Terms.of(costs, num_stages)
        added_s, largest_s, always_s, num_blocks = terms.added_s, terms.largest_s, terms.always_s, costs.num_blocks

        def inference_s(points: SplitPoints) -> float:
            stages = list(pairwise((0, *points, num_blocks)))
            sums = sum(added_s[start][end] for start, end in stages)
            return sums + max(largest_s[start][end] for start, end in stages) + always_s

        return inference_s

    def rewards(self, costs: CostRows, max_stages: int, tolerance: float) -> SteadyRewards:
        """Return what pays minus the seconds that each stage costs; there is no tolerance."""
        return SteadyRewards(costs, max_stages)

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
        """Return the plan with the shortest later inference."""
        import numpy as np

        terms = _Terms.of(costs.rows(), num_stages)
        found = solvers.steady(
            np.array(terms.added_s),
            np.array(terms.largest_s),
            num_stages,
            trainable_from,
            allowed=costs.allowed(num_stages),
            limit_s=limit_s,
        )
        return Best(found.split_points, found.value_s + terms.always_s, found.bound_s + terms.always_s)


class _Terms(NamedTuple):
    """The seconds of a later inference as a sum over stages, a maximum over them, and what all plans have.

    Attributes:
        added_s: Of each segment its inference, and its weights that come again.
        largest_s: Of each segment the room that it needs, in seconds of weights that have none.
        always_s: The cuts of a plan, less the room there is, in seconds likewise; maybe below 0.
    """

    added_s: Rows
    largest_s: Rows
    always_s: float

    @classmethod
    def of(cls, costs: CostRows, num_stages: int) -> _Terms:
        """Return them for plans of so many stages."""
        cuts_s, ceiling = costs.cut_inference_s * (num_stages - 1), costs.ceiling
        if ceiling is None or ceiling.holds_all:
            return cls(costs.inference_s, [[0.0] * len(row) for row in costs.inference_s], cuts_s)
        byte_s = costs.come_again_s_per_byte
        added_s = [
            [infer_s + byte_s * size_bytes for infer_s, size_bytes in zip(*rows, strict=True)]
            for rows in zip(costs.inference_s, ceiling.needs.mapped_bytes, strict=True)
        ]
        largest_s = [[byte_s * size_bytes for size_bytes in row] for row in ceiling.weights_bytes]
        return cls(added_s, largest_s, cuts_s - byte_s * ceiling.room_bytes(num_stages))


class SteadyRewards(Rewards):
    """Pays minus the seconds by which a stage moves the inference that the cuts so far allow.

    After some stages, which end at block e, a later inference takes no less than what they add, the least that all
    later blocks can add, the largest room so far, and what all plans have. A reward is minus the move of that, where it
    is above 0. All moves add up to the seconds of the inference, as nothing is left in the end.
    """

    def __init__(self, costs: CostRows, max_stages: int) -> None:
        self._costs = costs
        self._terms = {count: _Terms.of(costs, count) for count in range(1, max_stages + 1)}
        added_s, largest_s, _ = self._terms[1]
        self.illegal = -max_stages * (largest(added_s) + costs.cut_inference_s) - largest(largest_s) - 1
        self._left_s = least_left_s(added_s)
        self._adds_up = adds_up(added_s)

    def begin(self, num_stages: int, tolerance_s: float | None, one_sided: bool) -> None:
        """Start an inference."""
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
        """Return the seconds of the inference, and whether each reward depends on its stage and the state alone."""
        costs, stages = self._costs, list(pairwise(bounds))
        clock = costs.contention.clock(len(stages))
        for start, end in stages:
            clock.add(costs.load_s[start][end], costs.first_inference_s[start][end], costs.read_s[start][end])
        return {"value_s": self._allowed_s, "load_makespan_s": clock.loaded_s, "separable": self._adds_up}


OBJECTIVE = SteadyInference()

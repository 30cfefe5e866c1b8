"""The objective "steady": the shortest inference once everything is loaded, under a ceiling on memory above all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from splitload.plan.ceiling import Ceiling
from splitload.plan.costs import CostMatrices, CostRows
from splitload.plan.objective import Best, Objective, Solvers, SplitPoints
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.plan.schedule import Contention
from splitload.plan.sum_and_most import SumAndMostRewards, Terms


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
        return _terms(costs, num_stages).valuer(costs.num_blocks)

    def rewards(self, costs: CostRows, max_stages: int, tolerance: float) -> SumAndMostRewards:
        """Return what pays minus the seconds that each stage costs; there is no tolerance."""
        return SumAndMostRewards(costs, {count: _terms(costs, count) for count in range(1, max_stages + 1)})

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
        terms = _terms(costs.rows(), num_stages)
        return terms.optimum(costs, num_stages, solvers, trainable_from=trainable_from, limit_s=limit_s)


def _terms(costs: CostRows, num_stages: int) -> Terms:
    """Return what makes up a later inference of plans of so many stages.

    A segment adds its inference and its weights that come again; the most is the room that one needs, in seconds of
    weights that have none. All plans have the cuts, less the room there is, in seconds likewise.
    """
    cuts_s, ceiling = costs.cut_inference_s * (num_stages - 1), costs.ceiling
    if ceiling is None or ceiling.holds_all:
        return Terms(costs.inference_s, [[0.0] * len(row) for row in costs.inference_s], cuts_s)
    byte_s = costs.come_again_s_per_byte
    added_s = [
        [infer_s + byte_s * size_bytes for infer_s, size_bytes in zip(*rows, strict=True)]
        for rows in zip(costs.inference_s, ceiling.needs.mapped_bytes, strict=True)
    ]
    largest_s = [[byte_s * size_bytes for size_bytes in row] for row in ceiling.weights_bytes]
    return Terms(added_s, largest_s, cuts_s - byte_s * ceiling.room_bytes(num_stages))


OBJECTIVE = SteadyInference()

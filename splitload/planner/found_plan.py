"""A plan that was found or given, and what stands beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from splitload.agents.baselines import fixed_cuts
from splitload.base.errors import PartitionError, UsageError
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile


@dataclass(frozen=True, slots=True)
class FoundPlan:
    """What a search came to.

    Attributes:
        partition: The plan.
        found_by: Who found it: an agent, a baseline, "given" where it was, or "budget" where measurements chose it.
        values_s: Values (`Search.value_s`) in seconds of plans of the same number of stages: the one that was
            "learned", and those of the baselines; None where one does not apply.
        episodes: Episodes of the learning agent, 0 for the others.
        search_s: Seconds the search took, without profiling; of one that was resumed, since then.
        cut_s: For a plan of the fewest stages what the number of stages is chosen by, of the best plan with one more;
            None where there is none.
        exact_bound_s: Seconds that no plan of as many stages can do better than: what "exact" is worth where that is
            proved to be optimal, less where the time for a proof was over; None where there is no such value.
    """

    partition: Partition
    found_by: str
    values_s: Mapping[str, float | None]
    episodes: int
    search_s: float
    cut_s: float | None
    exact_bound_s: float | None = None


def fixed_plan(profile: Profile, split_points: Sequence[int], trainable_from: int | None) -> Partition:
    """Return the partition with given split points, checked, and with a cut before what is trained.

    Raises:
        UsageError: If they do not fit the profile's blocks, or cut trainable blocks off the last stage.
    """
    try:
        partition = Partition.of(profile.num_blocks, split_points)
    except PartitionError as error:
        raise UsageError(str(error)) from error
    if trainable_from is not None and partition.bounds[-2] > trainable_from:
        raise UsageError(
            f"the last stage would start at block {partition.bounds[-2]}, "
            f"but block {trainable_from} is trainable; put the last split point at or before it"
        )
    points = {*partition.split_points, *fixed_cuts(trainable_from)}
    return Partition(profile.num_blocks, tuple(sorted(points)))

"""The objective "latency": a crowd is soon done with a batch of inputs, stages on their way to it included."""

from __future__ import annotations

from splitload.plan.crowd import Crowd
from splitload.plan.crowd_objective import CrowdObjective


class BatchLatency(CrowdObjective):
    """Makes the seconds of N inputs small: the first through all stages, and N - 1 more from the slowest one."""

    name = "latency"
    wish = "the shortest time of a batch on a --crowd"
    value_name = "latency of the batch"
    value_phrase = "latency of the batch, {count}"
    done_verb = "be done with the batch"
    deciding_key = "batch_s"

    def counted(self, crowd: Crowd) -> tuple[int, int]:
        """Return that the first inputs count once, and the slowest stage for all others."""
        return 1, crowd.batch - 1


OBJECTIVE = BatchLatency()

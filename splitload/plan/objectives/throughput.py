"""The objective "throughput": a crowd gives as many outputs a second as it can, once all stages have arrived."""

from __future__ import annotations

from splitload.plan.crowd import Crowd
from splitload.plan.crowd_objective import CrowdObjective


class Throughput(CrowdObjective):
    """Makes the seconds between two outputs small: what the slowest stage takes for each input."""

    name = "throughput"
    wish = "the most outputs a second of a --crowd"
    value_name = "each input"
    value_phrase = "seconds for each input, {count}"
    done_verb = "give the next output"
    deciding_key = "each_s"

    def counted(self, crowd: Crowd) -> tuple[int, int]:
        """Return that the slowest stage alone counts."""
        return 0, 1


OBJECTIVE = Throughput()

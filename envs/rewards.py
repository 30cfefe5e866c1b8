"""What an environment pays for a cut: pure functions and the clock that the time to first output is read from."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

__all__ = ["StageClock", "balance_reward"]


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


@dataclass(slots=True)
class StageClock:
    """Times of the execution policy, stage by stage, as `splitload.schedule.simulate` gives them.

    What `add` returns telescopes: over all stages it adds up to the time to first output.

    Attributes:
        threads: Loads that can run at the same time.
        slowdown: `Contention.slowdown(C)` of the final number of stages C, a factor.
        loaded_s: Seconds from the load call until every stage so far is loaded.
        inferred_s: Seconds from the load call until the last stage so far has inferred.
    """

    threads: int
    slowdown: float
    loaded_s: float = 0.0
    inferred_s: float = 0.0
    _busy: list[float] = field(default_factory=list)

    def add(self, load_s: float, infer_s: float) -> float:
        """Append a stage and return by how many seconds it moves the time to first output.

        Args:
            load_s: Seconds the stage takes to load alone.
            infer_s: Seconds its first inference takes.
        """
        start_s = heapq.heappop(self._busy) if len(self._busy) == self.threads else 0.0
        loaded_s = start_s + load_s * self.slowdown
        heapq.heappush(self._busy, loaded_s)
        self.loaded_s = max(self.loaded_s, loaded_s)
        before_s = self.inferred_s
        self.inferred_s = max(loaded_s, before_s) + infer_s
        return self.inferred_s - before_s

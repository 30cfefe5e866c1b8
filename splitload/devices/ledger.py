"""What measured stages cost, remembered, within a budget of stage loads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence

from splitload.plan.partition import Partition
from splitload.plan.profile import Cost, Segment

Sample = Callable[[Sequence[Segment]], Sequence[Cost]]
SAMPLES = 3  # of a stage: where they scatter, stages that were not measured yet tell more than more samples of one


class Ledger:
    """Samples stages `SAMPLES` times, never one that is known, never beyond the budget.

    Args:
        sample: Loads and runs the stages of a partition once, in order, and returns what each took.
        budget: Most stage loads; None for no end.
        reserve: How many of them are kept until `release`.

    Attributes:
        loads: Stage loads so far.
    """

    def __init__(self, sample: Sample, budget: int | None = None, reserve: int = 0) -> None:
        self._sample = sample
        self._budget = None if budget is None else budget - reserve
        self._reserve = reserve
        self._samples: dict[Segment, list[Cost]] = {}
        self.loads = 0

    def measure(self, partition: Partition) -> bool:
        """Sample the stages of a partition until each is known; return whether the budget allowed that.

        A stage needs the outputs of those before it, so that all of them are loaded for each sample, the known ones
        included; each is a load of the budget and one more sample.
        """
        stages = list(partition.stages())
        while not all(self.known(stage) for stage in stages):
            if not self.spend(len(stages)):
                return False
            costs = self._sample(stages)
            for stage, cost in zip(stages, costs, strict=True):
                self._samples.setdefault(stage, []).append(cost)
        return True

    def spend(self, loads: int) -> bool:
        """Count so many loads that are about to be made; return False, and count none, if the budget is too small."""
        if self._budget is not None and self.loads + loads > self._budget:
            return False
        self.loads += loads
        return True

    def release(self) -> None:
        """Let what was kept be spent."""
        if self._budget is not None:
            self._budget, self._reserve = self._budget + self._reserve, 0

    @property
    def left(self) -> float:
        """Loads that may still be made, those kept in reserve among them; infinite without a budget."""
        return math.inf if self._budget is None else self._budget + self._reserve - self.loads

    def known(self, stage: Segment) -> bool:
        """Return whether a stage was sampled often enough."""
        return len(self._samples.get(stage, ())) >= SAMPLES

    def costs(self) -> dict[Segment, Cost]:
        """Return the median cost of every stage that was sampled at least once."""
        return {stage: median_cost(samples) for stage, samples in self._samples.items()}


def median_cost(samples: Sequence[Cost]) -> Cost:
    """Return the median of each part."""
    return Cost(
        statistics.median(cost.load_s for cost in samples),
        statistics.median(cost.first_inference_s for cost in samples),
        statistics.median(cost.inference_s for cost in samples),
        statistics.median(cost.read_s for cost in samples),
    )

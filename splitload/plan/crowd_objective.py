"""What the objectives of a crowd have in common: the seconds of a pipeline, see `CrowdCeiling`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from splitload.plan.ceiling import Ceiling
from splitload.plan.costs import CostMatrices, CostRows
from splitload.plan.crowd import Crowd
from splitload.plan.crowd_ceiling import StageSeconds, crowd_of
from splitload.plan.objective import Best, Objective, Solvers, SplitPoints
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.plan.schedule import Contention
from splitload.plan.sum_and_most import SumAndMostRewards, Terms


class CrowdObjective(Objective):
    """Makes `firsts · Σ first + items · max S · each` small, of S stages on a crowd.

    Its optimum is exact: for a number of stages, each segment's seconds are known, of which a sum and a maximum are
    made small together, see `splitload.agents.steady`.
    """

    of_crowd: ClassVar[bool] = True
    return_name = "return_s"
    further_gain = 0.05

    @abstractmethod
    def counted(self, crowd: Crowd) -> tuple[int, int]:
        """Return `firsts` and `items`: how often the first inputs of all stages count, and how often the slowest."""

    def value_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return the seconds of a plan on the crowd.

        Raises:
            UsageError: If the ceiling is no crowd's.
        """
        crowd = crowd_of(ceiling, self.name)
        firsts, items = self.counted(crowd.crowd)
        stages = []
        for start, end in partition.stages():
            cost = profile.cost(start, end)
            stages.append(crowd.seconds(start, end, cost.load_s, cost.inference_s))
        slowest_s = max(crowd.each_s(stage, partition.num_stages) for stage in stages)
        return firsts * sum(stage.first_s for stage in stages) + items * slowest_s

    def scale(self, contention: Contention, num_stages: int) -> float:
        """Return 1: the value is what is made small."""
        return 1.0

    def deciding_s(self, profile: Profile, partition: Partition, ceiling: Ceiling | None = None) -> float:
        """Return the seconds of a plan on the crowd."""
        return self.value_s(profile, partition, ceiling)

    def valuer(self, costs: CostRows, num_stages: int) -> Callable[[SplitPoints], float]:
        """Return what gives the seconds of split points on the crowd."""
        return self._terms(costs, [num_stages])[num_stages].valuer(costs.num_blocks)

    def rewards(self, costs: CostRows, max_stages: int, tolerance: float) -> SumAndMostRewards:
        """Return what pays minus the seconds by which each stage moves those of the plan; there is no tolerance."""
        return SumAndMostRewards(costs, self._terms(costs, range(1, max_stages + 1)))

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
        """Return the plan of the least seconds."""
        terms = self._terms(costs.rows(), [num_stages])[num_stages]
        return terms.optimum(costs, num_stages, solvers, trainable_from=trainable_from, limit_s=limit_s)

    def _terms(self, costs: CostRows, counts: Sequence[int]) -> dict[int, Terms]:
        """Return what makes up the seconds of plans, by their number of stages."""
        crowd, size = crowd_of(costs.ceiling, self.name), costs.num_blocks
        firsts, items = self.counted(crowd.crowd)
        nothing = StageSeconds(0.0, 0.0, 0.0)
        table = [
            [
                crowd.seconds(start, end, costs.load_s[start][end], costs.inference_s[start][end])
                if start < end
                else nothing
                for end in range(size + 1)
            ]
            for start in range(size + 1)
        ]
        added_s = [[firsts * stage.first_s for stage in row] for row in table]
        return {
            count: Terms(added_s, [[items * crowd.each_s(stage, count) for stage in row] for row in table], 0.0)
            for count in counts
        }

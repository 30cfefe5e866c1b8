"""What rules give for a profiled model and a number of stages, and the best plan there is: each worked out once."""

from __future__ import annotations

from splitload.agents.exact_ttfo import Optimum
from splitload.envs.costs import cost_matrices
from splitload.plan.ceiling import Ceiling
from splitload.plan.objective import Objective
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.agents import BASELINES, Question, Rule, within
from splitload.planner.optimum import optimum

EXACT_LIMIT_S = 0.5  # for a number of stages; usually the proof takes less than half of that


class Rivals:
    """Plans that a learned one stands beside.

    Args:
        profile: Costs of the model on the device.
        objective: What is made small.
        seed: Of rules that draw.
        trainable_from: First trainable block; None where none is trained.
        ceiling: What memory allows; None where nothing limits it.
    """

    def __init__(
        self, profile: Profile, objective: Objective, seed: int, trainable_from: int | None, ceiling: Ceiling | None
    ) -> None:
        self._profile, self._objective, self._seed = profile, objective, seed
        self._trainable_from, self._ceiling = trainable_from, ceiling
        self._matrices = cost_matrices(profile, ceiling)
        self._rows = self._matrices.rows()
        self._ruled: dict[tuple[Rule, int], Partition] = {}
        self._optima: dict[int, tuple[float, Optimum]] = {}  # by number of stages, with the seconds for the proof

    def by_rule(self, rule: Rule, count: int) -> Partition:
        """Return the partition a rule gives for `count` stages."""
        if (rule, count) not in self._ruled:
            self._ruled[rule, count] = Partition.of(self._profile.num_blocks, rule(self._question(count)))
        return self._ruled[rule, count]

    def optimum(self, count: int, start: tuple[int, ...] | None = None, limit_s: float | None = None) -> Optimum:
        """Return the best plan of `count` stages for the objective, worked out once for each limit.

        Args:
            count: How many stages.
            start: A plan to begin with, where it is worked out.
            limit_s: Seconds for a proof; by default `EXACT_LIMIT_S`.
        """
        whole = limit_s is None
        limit_s = EXACT_LIMIT_S if limit_s is None else limit_s
        known_s, known = self._optima.get(count, (-1.0, None))
        if known is None or (known_s < limit_s and not known.proved):
            starts = () if start is None else (start,)
            best = optimum(
                self._profile, self._objective.name, count, limit_s, self._trainable_from, starts, self._matrices
            )
            if whole and not best.proved:  # then annealing may know a better plan
                annealed = self.by_rule(BASELINES["annealing"], count).split_points
                value_s = self._question(count).value(annealed)
                if value_s < best.value_s:
                    best = Optimum(annealed, value_s, best.bound_s)
            known = best
            self._optima[count] = limit_s, best
        return known

    def _question(self, count: int) -> Question:
        value = self._objective.valuer(self._rows, count)
        return Question(
            self._profile,
            self._matrices,
            count,
            self._trainable_from,
            self._seed,
            value if self._ceiling is None else within(self._ceiling, count, value),
            lambda: self.optimum(count),
        )

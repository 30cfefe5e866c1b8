"""Plans under a ceiling on memory: what a run takes besides weights, measured or predicted, and a plan that fits it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from splitload.agents.baselines import fixed_cuts
from splitload.base.errors import UsageError
from splitload.base.sizes import megabytes
from splitload.build.residency import ResidencyScheme
from splitload.plan.ceiling import Ceiling
from splitload.plan.graph import ModelGraph
from splitload.plan.memory import MemoryNeeds, StageNeeds, memory_needs, peak_bytes
from splitload.plan.partition import Partition
from splitload.planner.least_ceiling import (
    MOST_STAGES,
    STEP_BYTES,
    CeilingTooLowError,
    check_ceiling,
    least_ceiling,
)
from splitload.runtime.residency import ARENA_SHARE

if TYPE_CHECKING:
    from splitload.base.sizes import Residency
    from splitload.devices import Measuring
    from splitload.planner.report import Report

_NEAR = 50  # the least ceiling is advised to within one of so many parts of it
ATTEMPTS = 3  # a plan that takes more than was thought is searched again, so often
_STEP_BYTES = 1 << 18  # what was measured is rounded up to this, so that the same search is found again

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class PlanMemory:
    """What a plan needs of memory.

    Attributes:
        needs: Of the model.
        stages: What each stage needs.
        arena_bytes: The working memory of a run.
        input_bytes: Of the inputs that it was measured with; None where it is predicted.
        ceiling: What the plan was made for; None where no size limits it.
    """

    needs: MemoryNeeds
    stages: tuple[StageNeeds, ...]
    arena_bytes: int
    input_bytes: int | None = None
    ceiling: Ceiling | None = None

    @property
    def peak_bytes(self) -> int:
        """The most that is in memory of one device at a time if nothing stays that need not."""
        return peak_bytes(self.stages, self.arena_bytes)

    def scheme(self, residency: Residency) -> ResidencyScheme:
        """Return the execution scheme of the plan.

        Args:
            residency: How much of it may be in memory at a time.
        """
        arena_bytes = None if self.input_bytes is None else self.arena_bytes
        return ResidencyScheme(residency, self.stages, arena_bytes, self.input_bytes)

    def to_json(self, streamed_bytes: int | None) -> dict[str, Any]:
        """Return what `--json` prints of it.

        Args:
            streamed_bytes: Weights that come again in each inference.
        """
        return {
            "source": "predicted",
            "peak_bytes": self.peak_bytes,
            "streamed_bytes": streamed_bytes,
            "arena_bytes": self.arena_bytes,
            "arena_source": "predicted" if self.input_bytes is None else "measured",
            "stages": [{**each._asdict(), "peak_bytes": self._peak_bytes(each)} for each in self.stages],
        }

    def _peak_bytes(self, stage: StageNeeds) -> int:
        return stage.weights_bytes + self.arena_bytes + sum(each.session_bytes for each in self.stages)


class MemoryLimit:
    """What a model may take of memory on a device, and what its plans do.

    Args:
        ceiling_bytes: The most, of everything; None where no size limits it.
        measuring: What measures where plans run; None where their working memory is predicted.
        graph: The model.
        feeds: Inputs to measure with.
        report: Where to tell what is done.

    Attributes:
        loads: Stages that were loaded for it so far.
    """

    def __init__(
        self,
        ceiling_bytes: int | None,
        measuring: Measuring | None,
        graph: ModelGraph,
        feeds: Mapping[str, Any],
        report: Report,
    ) -> None:
        self._ceiling_bytes = ceiling_bytes
        self._measuring, self._graph, self._feeds, self._report = measuring, graph, feeds, report
        self._needs = memory_needs(graph)
        self.loads = 0
        self._input_bytes: int | None = None

    def memory_of(self, plan: Partition) -> PlanMemory:
        """Return what a plan needs; its working memory is measured under a ceiling, on a device that measures.

        Where it is predicted, it is `ARENA_SHARE` of the most tensors at a time.

        Raises:
            SplitloadError: If it cannot be measured.
        """
        stages = tuple(self._needs.stage(*stage) for stage in plan.stages())
        expected_bytes = math.ceil(ARENA_SHARE * self._needs.live_bytes(plan))
        if self._measuring is None or self._ceiling_bytes is None:
            return PlanMemory(self._needs, stages, expected_bytes)
        with (
            self._report.status("measuring what a run takes besides weights"),
            self._measuring.runs(self._graph, self._feeds) as runs,
        ):
            taken = runs.working_memory(plan, expected_bytes)
        self.loads += plan.num_stages
        self._input_bytes = taken.input_bytes
        return PlanMemory(self._needs, stages, taken.arena_bytes, taken.input_bytes)

    def scheme(self, plan: Partition, ceiling: Ceiling | None) -> ResidencyScheme | None:
        """Return how a plan is loaded under a ceiling, whose working memory counts; None where it does not fit."""
        if ceiling is None or not ceiling.allows(plan):
            return None
        stages = tuple(self._needs.stage(*stage) for stage in plan.stages())
        return PlanMemory(self._needs, stages, ceiling.arena_bytes, self._input_bytes).scheme(ceiling.ceiling_bytes)

    def ceiling(self, max_stages: int | None) -> Ceiling | None:
        """Return the ceiling, once some plan of up to so many stages is known to fit; None where there is none.

        On a device that measures, the working memory is that of a plan with small stages; elsewhere that of no plan is
        larger than what is predicted.

        Raises:
            CeilingTooLowError: If none fits.
        """
        if self._ceiling_bytes is None:
            return None
        first_trainable, ceiling = self._graph.first_trainable, self._expected(self._ceiling_bytes)
        most = self._most(max_stages)
        if self._measuring is not None:
            small = Partition(len(self._graph.blocks), least_ceiling(ceiling, most, first_trainable).split_points)
            ceiling = self._with_arena(ceiling, self.memory_of(small).arena_bytes)
        self._check(ceiling, most)
        return ceiling

    def least(self) -> tuple[Partition, PlanMemory]:
        """Return the plan that needs the least memory, as it is built, and what that is; one stage where all fits.

        Its largest stage and the sessions of all are least together. That leaves the most room to weights that stay
        from one inference to the next, see `Ceiling.streamed_bytes`, and suits lower ceilings as well.

        Raises:
            CeilingTooLowError: If it does not fit.
        """
        ceiling, most = self._expected(self._ceiling_bytes or 0), self._most(None)
        if ceiling.holds_all:
            plan = Partition(len(self._graph.blocks), fixed_cuts(self._graph.first_trainable))
            memory = self.memory_of(plan)
            if memory.peak_bytes <= ceiling.ceiling_bytes:
                return plan, memory
        least = least_ceiling(ceiling, most, self._graph.first_trainable)
        plan = Partition(len(self._graph.blocks), least.split_points)
        memory = self.memory_of(plan)
        if self._ceiling_bytes is not None:
            self._check(self._with_arena(ceiling, memory.arena_bytes), most)
        return plan, memory

    def plan(
        self, ceiling: Ceiling | None, search: Callable[[Ceiling | None], Found], plan_of: Callable[[Found], Partition]
    ) -> tuple[Found, PlanMemory]:
        """Return what a search finds, and what that takes; it searches again where that is more than was thought.

        Args:
            ceiling: What `ceiling` returned.
            search: Returns what it finds under a ceiling.
            plan_of: Returns the plan of that, as it is built.

        Raises:
            UsageError: If no plan fits.
        """
        for _ in range(ATTEMPTS):
            found = search(ceiling)
            plan = plan_of(found)
            memory = self.memory_of(plan)
            if ceiling is None:
                return found, memory
            if memory.peak_bytes <= ceiling.ceiling_bytes:
                taken = Ceiling(self._needs, ceiling.ceiling_bytes, memory.arena_bytes)
                return found, PlanMemory(self._needs, memory.stages, memory.arena_bytes, memory.input_bytes, taken)
            ceiling = self._with_arena(ceiling, max(memory.arena_bytes, ceiling.arena_bytes))
        raise UsageError(
            "what a run takes besides weights changes from one measurement to the next, at last it took "
            f"{megabytes(memory.arena_bytes)}; give a little more --residency"
        )

    def _expected(self, ceiling_bytes: int) -> Ceiling:
        """Return a ceiling with the most working memory that is predicted of any plan."""
        arena_bytes = math.ceil(ARENA_SHARE * self._needs.most_live_bytes)
        return Ceiling(self._needs, ceiling_bytes, arena_bytes)

    def _most(self, max_stages: int | None) -> int:
        """Return the most stages of a plan."""
        num_blocks, first_trainable = len(self._graph.blocks), self._graph.first_trainable
        return min(max_stages or MOST_STAGES, num_blocks if first_trainable is None else first_trainable + 1)

    def _check(self, ceiling: Ceiling, most: int) -> None:
        """Raise `CeilingTooLowError` unless some plan of up to so many stages fits."""
        check_ceiling(ceiling, [block.name for block in self._graph.blocks], most, self._graph.first_trainable)

    def _with_arena(self, ceiling: Ceiling, arena_bytes: int) -> Ceiling:
        """Return the ceiling for plans whose runs take so much besides weights."""
        rounded = math.ceil(arena_bytes / _STEP_BYTES) * _STEP_BYTES
        return Ceiling(self._needs, ceiling.ceiling_bytes, rounded)


def advised(refusal: CeilingTooLowError, refused_bytes: int, attempt: Callable[[int], object]) -> CeilingTooLowError:
    """Return the refusal of a ceiling, with the least that does, to within a fiftieth.

    Under a lower ceiling large weights are cut into more parts: what one refusal takes for the least may be too little,
    or more than is needed.

    Args:
        refusal: It, with the least for weights as they were cut.
        refused_bytes: The ceiling that was refused.
        attempt: Looks for a plan under a ceiling, in bytes; raises `CeilingTooLowError` where there is none.
    """
    low_bytes, tried_bytes = refused_bytes, refusal.least_bytes
    high_bytes: int | None = None  # that does
    while True:
        try:
            attempt(tried_bytes)
            high_bytes = tried_bytes
        except CeilingTooLowError as again:
            low_bytes = tried_bytes
            if high_bytes is None:
                tried_bytes = max(again.least_bytes, tried_bytes + STEP_BYTES)
                continue
        if high_bytes - low_bytes <= max(STEP_BYTES, high_bytes // _NEAR):
            return CeilingTooLowError(refusal.reason, high_bytes)
        tried_bytes = (low_bytes + high_bytes) // 2 // STEP_BYTES * STEP_BYTES

"""What the workers of a crowd can hold, and what a plan costs there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import ClassVar, NamedTuple

from splitload.base.errors import UsageError
from splitload.plan.ceiling import Ceiling
from splitload.plan.crowd import Crowd


class StageSeconds(NamedTuple):
    """What one stage costs on a crowd.

    Attributes:
        first_s: Seconds until it has done its first input, from when that is there.
        each_s: Seconds for each input if all workers that can hold the stage ran nothing else.
        turn_s: The same if they loaded it anew for each input, from their disks.
    """

    first_s: float
    each_s: float
    turn_s: float


@dataclass(frozen=True, kw_only=True)
class CrowdCeiling(Ceiling):
    """A limit on memory that is the largest worker's: each holds one stage at a time.

    A stage takes its weights, the working memory of its own runs, which is `arena_share` of its tensors, its own
    session, and what waits on its worker: tensors of further inputs that have come, and those that were made and are
    not fetched yet. That is what `weights_bytes` has here, so that nothing else counts.

    Time is that of a pipeline. Of S stages, stage i is done with its first input after `first(i)` seconds, and then
    gives one every `S · each(i)` seconds, as each stage has an equal share of those workers that can hold it:

        each  = 1 / Σ_g n_g / (run / speed_g + input / link_g)
        first = min over g of weights / link_g + load / speed_g + run / speed_g + input / link_g
        seconds for each input  = max over stages of S · each
        seconds of N inputs     = sum over stages of first + (N - 1) · max over stages of S · each

    over the groups g of n_g workers that can hold the stage. The input of the first stage is the model's, and the last
    stage sends the model's output besides. With more stages than workers these take turns: then `each` has
    `load / speed_g` besides, as if each input changed the stage, which is the worst.

    Most of what is left out makes a crowd faster: workers receive while they compute, those with much memory can leave
    small stages to others, and what is idle helps the slowest stage. Not so: workers change their stage where stages do
    not go evenly into workers, and further workers of a stage get its weights later than the first.

    Attributes:
        crowd: The workers.
        arena_share: Working memory of a run for each byte of tensors.
        sent_bytes: Weights of each block, as they travel: of tables all rows.
        boundary_bytes: What crosses each of the N + 1 bounds of blocks for one input; the first is the model's input,
            the last its output.
    """

    crowd: Crowd
    arena_share: float
    sent_bytes: Sequence[int]
    boundary_bytes: Sequence[int]

    limit_phrase: ClassVar[str] = "beside the runtime no worker has more than"

    @cached_property
    def weights_bytes(self) -> list[list[int]]:
        """What each segment takes on a worker, everything counted; 0 where there is none."""
        size = self.needs.num_blocks
        return [
            [self.stage_bytes(start, end) if start < end else 0 for end in range(size + 1)] for start in range(size + 1)
        ]

    def stage_bytes(self, start: int, end: int) -> int:
        """Return what the blocks `[start, end)` take on the worker that holds them."""
        stage = self.needs.stage(start, end)
        waiting_bytes = _WAITING * (self.boundary_bytes[start] + self.boundary_bytes[end])
        return (
            stage.weights_bytes + math.ceil(self.arena_share * stage.live_bytes) + stage.session_bytes + waiting_bytes
        )

    def sessions_bytes(self, num_stages: int) -> int:
        """Return 0: a stage's own session is part of what it takes, and others are elsewhere."""
        return 0

    def peak_bytes(self, stages: Sequence[tuple[int, int]]) -> int:
        """Return the most that any stage takes on its worker."""
        return max(self.weights_bytes[start][end] for start, end in stages)

    def seconds(self, start: int, end: int, load_s: float, run_s: float) -> StageSeconds:
        """Return what the blocks `[start, end)` cost as a stage; where no worker holds them, as if all did.

        Args:
            start: First block.
            end: Block behind the last.
            load_s: Seconds that the profile's device loads them in.
            run_s: Seconds that it infers them in.
        """
        asked = start, end, load_s, run_s
        if asked not in self._known:
            self._known[asked] = self._worked_out(start, end, load_s, run_s)
        return self._known[asked]

    def _worked_out(self, start: int, end: int, load_s: float, run_s: float) -> StageSeconds:
        """Return what `seconds` does."""
        groups = self.crowd.holders(self.weights_bytes[start][end]) or self.crowd.groups
        weights_bytes = self._sent_upto[end] - self._sent_upto[start]
        tensors_bytes = self.boundary_bytes[start] + (self.boundary_bytes[end] if end == self.needs.num_blocks else 0)
        first_s, rate, turn_rate = math.inf, 0.0, 0.0
        for group in groups:
            task_s = run_s / group.speed + tensors_bytes / group.link_bytes_per_s
            first_s = min(first_s, weights_bytes / group.link_bytes_per_s + load_s / group.speed + task_s)
            rate += group.count / max(task_s, _LEAST_S)
            turn_rate += group.count / max(load_s / group.speed + task_s, _LEAST_S)
        return StageSeconds(first_s, 1 / rate, 1 / turn_rate)

    def each_s(self, stage: StageSeconds, num_stages: int) -> float:
        """Return the seconds for each input of a stage that is one of so many: of S stages each has a share."""
        return num_stages * (stage.each_s if num_stages <= self.crowd.num_workers else stage.turn_s)

    @cached_property
    def _known(self) -> dict[tuple[int, int, float, float], StageSeconds]:
        """What was asked for: searches ask for the same again and again."""
        return {}

    @cached_property
    def _sent_upto(self) -> list[int]:
        return [0, *accumulate(self.sent_bytes)]


_WAITING = 2  # inputs of a stage, and as many outputs, that wait on its worker beside those of the run
_LEAST_S = 1e-9  # nothing takes less, so that nothing is divided by 0


def crowd_of(ceiling: Ceiling | None, objective: str) -> CrowdCeiling:
    """Return a ceiling that is a crowd's.

    Args:
        ceiling: What a plan is made for.
        objective: What asks for it.

    Raises:
        UsageError: If it is of one device, or there is none.
    """
    if not isinstance(ceiling, CrowdCeiling):
        raise UsageError(f"the objective '{objective}' is of a crowd: give --crowd CROWD.toml, or another objective")
    return ceiling

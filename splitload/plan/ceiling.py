"""A limit on memory: which stages it allows, how many there must be, and what has to come again in each inference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

from splitload.plan.memory import MemoryNeeds, peak_bytes
from splitload.plan.partition import Partition

if TYPE_CHECKING:
    from splitload.base.sizes import Residency

Ends = Sequence[Sequence[Sequence[int]]]


@dataclass(frozen=True)
class Ceiling:
    """A limit on memory, and what a model needs of it.

    A plan of C stages is allowed if the weights of each fit beside the working memory of a run and the sessions of all:
    `weights <= room(C) = ceiling - arena - sessions(C)`.

    Attributes:
        needs: Of the model.
        ceiling_bytes: The limit.
        arena_bytes: The working memory of a run, whatever the plan.
        limit_phrase: What sets the limit, before its size in a sentence.
    """

    limit_phrase: ClassVar[str] = "--residency allows"

    needs: MemoryNeeds
    ceiling_bytes: int
    arena_bytes: int

    @cached_property
    def weights_bytes(self) -> list[list[int]]:
        """`StageNeeds.weights_bytes` of every segment; 0 where there is none."""
        size = self.needs.num_blocks
        return [
            [self.needs.stage(start, end).weights_bytes if start < end else 0 for end in range(size + 1)]
            for start in range(size + 1)
        ]

    def sessions_bytes(self, num_stages: int) -> int:
        """Return what sessions of a plan of so many stages take."""
        return self.needs.sessions_bytes(num_stages)

    def room_bytes(self, num_stages: int) -> int:
        """Return what is left to weights in plans of so many stages; below 0 where all else is too much."""
        return self.ceiling_bytes - self.arena_bytes - self.sessions_bytes(num_stages)

    @cached_property
    def holds_all(self) -> bool:
        """Whether the whole model fits as one stage, so that nothing has to come again."""
        return self.needs.stage(0, self.needs.num_blocks).weights_bytes <= self.room_bytes(1)

    def streamed_bytes(self, stages: Sequence[tuple[int, int]]) -> int:
        """Return the weights that have to come again in each inference of a plan that fits.

        Room for the largest stage is kept free for those that come; the others stay in what is left. So it is

            sum of weights - (room - max of weights), and 0 where the model fits as one stage.

        That is above 0 where it does not: then the weights of all stages are more than there is room for.

        Args:
            stages: Their half-open block ranges, of the whole plan.
        """
        if self.holds_all:
            return 0
        mapped_bytes = sum(self.needs.mapped_bytes[start][end] for start, end in stages)
        largest_bytes = max(self.weights_bytes[start][end] for start, end in stages)
        return mapped_bytes + largest_bytes - self.room_bytes(len(stages))

    def peak_bytes(self, stages: Sequence[tuple[int, int]]) -> int:
        """Return the most that stages have in memory at a time, see `splitload.plan.memory.peak_bytes`.

        Args:
            stages: Their half-open block ranges, of the whole plan.
        """
        return peak_bytes([self.needs.stage(*stage) for stage in stages], self.arena_bytes)

    def allows(self, partition: Partition) -> bool:
        """Return whether a plan fits."""
        room_bytes = self.room_bytes(partition.num_stages)
        return all(self.weights_bytes[start][end] <= room_bytes for start, end in partition.stages())

    def ends(self, num_stages: int, trainable_from: int | None = None) -> Ends:
        """Return where stages may end in plans of so many stages, so that what is left can still be cut.

        Args:
            num_stages: C.
            trainable_from: First trainable block; the last stage begins there. None where none is trained.

        Returns:
            The legal ends of the next stage, rising: entry `[j][s]` for a stage that begins at block s and is the first
            of the last j, with j from 0 to C.
        """
        size, room_bytes = self.needs.num_blocks, self.room_bytes(num_stages)
        fitting = [
            [end for end in range(start + 1, size + 1) if row[end] <= room_bytes]
            for start, row in enumerate(self.weights_bytes)
        ]
        nowhere: list[list[int]] = [[] for _ in fitting]
        whole_rest = [
            [size] if size in ends and trainable_from in (None, start) else [] for start, ends in enumerate(fitting)
        ]
        table = [nowhere, whole_rest]
        for _ in range(num_stages - 1):
            later = table[-1]
            table.append([[end for end in ends if later[end]] for ends in fitting])
        return table

    def counts(self, most: int, trainable_from: int | None = None) -> tuple[int, ...]:
        """Return the numbers of stages, up to `most`, of which there is a plan that fits."""
        return tuple(count for count in range(1, most + 1) if self.ends(count, trainable_from)[count][0])


def most_of_a_weight(residency: Residency) -> int | None:
    """Return the most bytes that one weight should have: a quarter of a ceiling, so that tensors fit beside two.

    Args:
        residency: How much of a model may be in memory at a time; None is returned unless it is a size.
    """
    return max(residency // 4, 1) if isinstance(residency, int) else None

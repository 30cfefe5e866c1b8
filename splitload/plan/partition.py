"""A partition: where a model of N blocks is cut into k contiguous stages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

from splitload.base.errors import PartitionError


@dataclass(frozen=True, slots=True)
class Partition:
    """Ordered split points over a fixed number of blocks.

    Stage i holds the blocks `[bounds[i], bounds[i + 1])`.

    Attributes:
        num_blocks: N, at least 1.
        split_points: The ends of stages 1 … k-1 in blocks, strictly increasing, each in 1 … N-1.
            Empty for a single stage.

    Raises:
        PartitionError: If the split points do not fit.
    """

    num_blocks: int
    split_points: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        bounds = (0, *self.split_points, self.num_blocks)
        if any(left >= right for left, right in pairwise(bounds)):
            points = f"split points {list(self.split_points)} do not cut"
            if self.num_blocks == 1:
                raise PartitionError(f"{points} a single block, which is one stage: give none")
            raise PartitionError(
                f"{points} {self.num_blocks} blocks: give strictly increasing numbers from 1 to {self.num_blocks - 1}"
            )

    @classmethod
    def of(cls, num_blocks: int, split_points: Iterable[int]) -> Partition:
        """Return the partition with these split points, in any iterable."""
        return cls(num_blocks, tuple(int(point) for point in split_points))

    @property
    def num_stages(self) -> int:
        """Number of stages k."""
        return len(self.split_points) + 1

    @property
    def bounds(self) -> tuple[int, ...]:
        """The k + 1 block indices that enclose the stages: 0, the split points, N."""
        return (0, *self.split_points, self.num_blocks)

    def stages(self) -> Iterator[tuple[int, int]]:
        """Yield each stage as a half-open block range `(start, end)`."""
        bounds = self.bounds
        return pairwise(bounds)

"""The one cost model: what a stage of several blocks costs, from what each of its blocks costs alone.

Every formula takes numbers, of one stage, or numpy arrays, of many stages at once. Nothing here imports numpy, which
costs whoever loads 100 ms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from splitload.plan.ceiling import Ceiling
    from splitload.plan.schedule import Contention

Amount = TypeVar("Amount", float, "NDArray[np.float64]")
Rows = list[list[float]]


@dataclass(frozen=True, slots=True)
class LoadSums(Generic[Amount]):
    """What the load of a stage depends on: sums over its blocks, each loaded as a stage of its own.

    Attributes:
        num_blocks: How many blocks it has.
        total_s: Their loads added up, in seconds.
        squares_s2: The squares of their loads added up, in squared seconds.
        slowest_s: The largest of their loads, in seconds.
    """

    num_blocks: Amount
    total_s: Amount
    squares_s2: Amount
    slowest_s: Amount

    @classmethod
    def of(cls, loads_s: Sequence[float]) -> LoadSums[float]:
        """Return the sums over blocks that load in so many seconds each; at least one."""
        return LoadSums(len(loads_s), sum(loads_s), sum(load_s**2 for load_s in loads_s), max(loads_s))

    def pairs_s2(self, larger: Callable[[Any, Any], Amount]) -> Amount:
        """Return the sum of the products of each two loads, in squared seconds; not below 0, whatever is rounded."""
        return larger(self.total_s**2 - self.squares_s2, 0.0)


@dataclass(frozen=True, slots=True)
class LoadCosts:
    """How the loads of blocks make up the load of the stage that holds them.

    A stage loads in `fixed + Σ (block - fixed)`, what every stage pays once plus what each block adds, and at least as
    long as its slowest block alone; for each two blocks comes `growth` times the product of their loads.

    Attributes:
        fixed_s: Load seconds every stage pays once, contained in the load of each block.
        growth_per_s: Seconds that each two blocks add, for every squared second of their own loads. Making a session
            takes longer than in proportion to its nodes.
    """

    fixed_s: float
    growth_per_s: float = 0.0

    @classmethod
    def fitted(cls, fixed_s: float, whole: LoadSums[float], whole_load_s: float | None) -> LoadCosts:
        """Return the model that lays on pairs of blocks what all of them take beyond their sum.

        Args:
            fixed_s: Load seconds every stage pays once.
            whole: Sums over all blocks.
            whole_load_s: Seconds that all blocks were measured to load in as one stage; None where they were not.
        """
        pairs_s2 = whole.pairs_s2(max)
        if whole_load_s is None or pairs_s2 <= 0:
            return cls(fixed_s)
        return cls(fixed_s, max(whole_load_s - cls(fixed_s).load_s(whole), 0.0) / pairs_s2)

    def load_s(self, blocks: LoadSums[Amount], larger: Callable[[Any, Any], Any] = max) -> Amount:
        """Return the seconds that a stage of these blocks takes to load.

        Args:
            blocks: Sums over the blocks of the stage, or arrays of them over the blocks of many.
            larger: Returns the larger of two: `numpy.maximum` for arrays.
        """
        added_s: Amount = larger(blocks.total_s - (blocks.num_blocks - 1) * self.fixed_s, blocks.slowest_s)
        return added_s + self.growth_per_s * blocks.pairs_s2(larger)


@dataclass(frozen=True, slots=True, eq=False)
class CostMatrices:
    """Seconds of every segment, alone and without contention; and how parallel loads interfere.

    All matrices are of shape `(N + 1, N + 1)` and type float64: entry `[s, e]` is the cost of the blocks `[s, e)`, and
    infinite where `s >= e`.

    Attributes:
        load_s: Seconds until the segment is loaded.
        first_inference_s: Seconds of its first inference.
        read_s: Seconds of `load_s` that storage is busy for.
        inference_s: Seconds of a later inference.
        contention: What loads beside each other cost, and a load call and a cut besides.
        cut_inference_s: See `Profile.cut_inference_s`.
        come_again_s_per_byte: See `Profile.come_again_s_per_byte`.
        ceiling: What memory allows; None where nothing limits it.
    """

    load_s: NDArray[np.float64]
    first_inference_s: NDArray[np.float64]
    read_s: NDArray[np.float64]
    inference_s: NDArray[np.float64]
    contention: Contention
    cut_inference_s: float
    come_again_s_per_byte: float
    ceiling: Ceiling | None = None

    def rows(self) -> CostRows:
        """Return the same as lists: reading one number from an array costs several times as much."""
        return CostRows(
            self.load_s.tolist(),
            self.first_inference_s.tolist(),
            self.read_s.tolist(),
            self.inference_s.tolist(),
            self.contention,
            self.cut_inference_s,
            self.come_again_s_per_byte,
            self.ceiling,
        )

    def allowed(self, num_stages: int) -> NDArray[np.bool_] | None:
        """Return which segments may be one of so many stages, of the same shape; None where all may."""
        if self.ceiling is None:
            return None
        import numpy as np

        weights_bytes = np.array(self.ceiling.weights_bytes)
        return np.isfinite(self.load_s) & (weights_bytes <= self.ceiling.room_bytes(num_stages))


@dataclass(frozen=True, slots=True, eq=False)
class CostRows:
    """`CostMatrices` as lists of rows, for what asks for one segment after the other."""

    load_s: Rows
    first_inference_s: Rows
    read_s: Rows
    inference_s: Rows
    contention: Contention
    cut_inference_s: float
    come_again_s_per_byte: float
    ceiling: Ceiling | None = None

    @property
    def num_blocks(self) -> int:
        """Number of blocks N."""
        return len(self.load_s) - 1

    def most_s(self, max_stages: int) -> float:
        """Return the seconds that no plan of up to so many stages takes longer than: nothing beside anything else."""
        contention = self.contention
        slowdown = max(contention.slowdown(count) for count in range(1, max_stages + 1))
        stage_s = largest(self.load_s) * slowdown + largest(self.first_inference_s) + contention.cut_infer_s
        return contention.start_s + max_stages * stage_s


def adds_up(cost_s: Rows) -> bool:
    """Return whether each segment costs what its blocks do, up to rounding."""
    upto = [0.0, *cost_s[0][1:]]
    least = 1e-9 * upto[-1]
    return all(
        abs(cost_s[start][end] - (between_s := upto[end] - upto[start])) <= least + 1e-9 * abs(between_s)
        for start in range(len(upto))
        for end in range(start + 1, len(upto))
    )


def largest(cost_s: Rows) -> float:
    """Return the largest cost of any segment."""
    return max(max(row[start + 1 :]) for start, row in enumerate(cost_s[:-1]))


def least_left_s(cost_s: Rows) -> list[float]:
    """Return the least seconds that all blocks from each one on can take together, however they are cut."""
    size = len(cost_s)
    left_s = [0.0] * size
    for start in reversed(range(size - 1)):
        left_s[start] = min(cost_s[start][end] + left_s[end] for end in range(start + 1, size))
    return left_s

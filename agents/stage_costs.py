"""What stages cost under the execution policy, and the least that stages still to come must take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Seconds = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class StageCosts:
    """Seconds of every segment as a stage, and of the best way to cut what is left.

    Matrices have the shape `(N + 1, N + 1)`, entry `[s, e]` for the blocks `[s, e)`. Tables have the shape
    `(k + 1, N + 1)`, entry `[j, p]` for the blocks `[p, N)` cut into j stages; infinite where they cannot be.

    Attributes:
        num_stages: k.
        threads: Loads that can run at the same time.
        starts_last: Where the last stage may begin, shape (N + 1,).
        load: Seconds of a load that does not wait for storage: its reading, and the rest beside other loads.
        infer: Seconds of its first inference.
        read: Seconds of `load` that storage is busy for; 0 where there is no segment.
        reads: Whether it reads at all: a load that does not is not kept by storage.
        infers_left: The least that the first inferences of the rest add up to.
        infers_left_most: And the most; minus infinity where there is no way to cut.
        loads_left: The least that the loads of the rest add up to.
        storage_left: The least time from when storage is free to the first output, were there a thread for each load.
        last_infer: The least that the last stage infers for.
    """

    num_stages: int
    threads: int
    starts_last: NDArray[np.bool_]
    load: Seconds
    infer: Seconds
    read: Seconds
    reads: NDArray[np.bool_]
    infers_left: Seconds
    infers_left_most: Seconds
    loads_left: Seconds
    storage_left: Seconds
    last_infer: float

    @property
    def num_blocks(self) -> int:
        """Number of blocks N."""
        return len(self.load) - 1

    @property
    def any_reads(self) -> bool:
        """Whether storage matters."""
        return bool(self.reads.any())

    @property
    def bound_s(self) -> float:
        """Seconds that no plan is faster than: all inferences, or all loads shared evenly and one inference."""
        whole, threads = self.num_stages, min(self.num_stages, self.threads)
        return max(
            float(self.infers_left[whole, 0]),
            float(self.loads_left[whole, 0]) / threads + self.last_infer,
            float(self.storage_left[whole, 0]),
        )

    def ttfo_s(self, split_points: Sequence[int]) -> float:
        """Return the time to first output of a plan, in seconds."""
        busy = [0.0] * self.threads
        storage_s = done_s = 0.0
        bounds = (0, *split_points, self.num_blocks)
        for stage in pairwise(bounds):
            start_s = min(busy)
            thread = busy.index(start_s)
            if self.reads[stage]:
                start_s = max(start_s, storage_s)
                storage_s = start_s + float(self.read[stage])
            busy[thread] = start_s + float(self.load[stage])
            done_s = max(done_s, busy[thread]) + float(self.infer[stage])
        return done_s


def stage_costs(
    load: Seconds,
    infer: Seconds,
    read: Seconds | None,
    num_stages: int,
    threads: int,
    slowdown: float,
    trainable_from: int | None,
    allowed: NDArray[np.bool_] | None = None,
) -> StageCosts:
    """Return the costs of stages; the arguments are those of `ttfo`, and have been checked."""
    num_blocks = len(load) - 1
    legal = np.triu(np.ones(load.shape, dtype=bool), k=1)
    if allowed is not None:
        legal &= allowed
    reading = np.zeros(load.shape) if read is None else np.where(legal, read, 0.0)
    loading = np.where(legal, reading + (np.where(legal, load, 0.0) - reading) * slowdown, np.inf)
    infer = np.where(legal, infer, np.inf)
    reads = reading > 0.0
    places = np.arange(num_blocks + 1)
    starts_last = places < num_blocks if trainable_from is None else places == trainable_from

    infers, most, loads, storage = (np.full((num_stages + 1, num_blocks + 1), np.inf) for _ in range(4))
    infers[0, num_blocks] = most[0, num_blocks] = loads[0, num_blocks] = storage[0, num_blocks] = 0.0
    infers[1] = most[1] = np.where(starts_last, infer[:, num_blocks], np.inf)
    loads[1] = np.where(starts_last, loading[:, num_blocks], np.inf)
    answered = np.where(legal & reads, loading + infer, 0.0)  # from when storage is free; nothing is known of others
    storage[1] = np.where(starts_last, answered[:, num_blocks], np.inf)
    for left in range(2, num_stages + 1):
        infers[left] = np.min(infer + infers[left - 1], axis=1)
        loads[left] = np.min(loading + loads[left - 1], axis=1)
        possible = legal & np.isfinite(most[left - 1])
        most[left] = np.max(np.where(possible, infer + most[left - 1], -np.inf), axis=1)
        most[left] = np.where(np.isfinite(most[left]), most[left], np.inf)
        first = np.where(reads, answered + infers[left - 1], 0.0)
        storage[left] = np.min(np.where(possible, np.maximum(first, reading + storage[left - 1]), np.inf), axis=1)
    return StageCosts(
        num_stages=num_stages,
        threads=threads,
        starts_last=starts_last,
        load=loading,
        infer=infer,
        read=reading,
        reads=reads,
        infers_left=infers,
        infers_left_most=np.where(np.isfinite(most), most, -np.inf),
        loads_left=loads,
        storage_left=storage,
        last_infer=float(np.min(infer[starts_last, num_blocks])),
    )

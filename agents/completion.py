"""How soon the stages still to come can answer: lower bounds by dynamic programming over the busy times of threads.

What follows after some stages depends on four things: until when each thread is busy, until when storage is, when the
last stage has inferred, and which blocks are left. It is never sooner where any of these times is later, and adding
the same time to all of them adds it to the result. So a table over how much later than the first thread each other is
free, rounded down to a grid, bounds what follows from below; the last inference enters apart, through the least sum of
inferences to come.

Of j stages to come each takes the thread that is free first, so that only the min(j, T) threads that are free soonest
matter. Where i < T stages have come before, T - i threads are free at once. That leaves few axes: none up to as many
stages as threads, one for two threads, at most three for eight stages on four.
"""

from __future__ import annotations

import itertools
import math
import time
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from splitload.agents.stage_costs import Seconds, StageCosts

Levels = NDArray[np.int32]
_Number = TypeVar("_Number", np.int32, np.float64)
_MOST_BITS = 12  # no axis has more than 4,096 levels
_AT_ONCE = 1 << 21  # table entries worked on at a time: some 30 ms, and tens of megabytes


@dataclass(frozen=True, slots=True)
class _Grid:
    """Places of the busy times with some stages left.

    Attributes:
        kept: How many busy times matter; they are the smallest.
        lead: How many of these need no axis: the first, from which the others are counted, and threads not yet used.
        levels: Of each axis; the last one stands for all that is later.
        step_s: Seconds between two levels.
        storage_levels: Of the axis for storage; 1 where it has none.
    """

    kept: int
    lead: int
    levels: int
    step_s: float
    storage_levels: int

    @property
    def num_tuples(self) -> int:
        """Number of sorted tuples of levels."""
        return _num_tuples(self.levels, self.kept - self.lead)


class Completion:
    """Lower bounds on the time to first output from any state of the schedule.

    Args:
        costs: Of the stages.
        cells: Entries of the table, about, for each number of stages left and each first block. With 1, threads are
            taken to be free when the first one is.
        range_s: Seconds that the axes span; what is later counts as that.
        end_s: When to give up, on the clock of `time.perf_counter`.

    Raises:
        TimeoutError: If it is later than `end_s`.
    """

    def __init__(self, costs: StageCosts, cells: int, range_s: float, end_s: float) -> None:
        self._costs = costs
        self._with_storage = costs.any_reads and cells > 1
        self._grids = self._layout(cells, range_s)
        most = max((grid.levels for grid in self._grids.values()), default=1)
        free = max((grid.kept - grid.lead for grid in self._grids.values()), default=0)
        self._binomials = np.array(
            [[min(math.comb(row, column), 2**62) for column in range(free + 2)] for row in range(most + free + 1)]
        )
        self._tables: dict[int, Seconds] = {}
        for left in self._grids:
            self._tables[left] = self._last() if left == 1 else self._table(left, end_s)

    def lower_s(self, left: int, at: NDArray[np.intp], busy: Seconds, storage: Seconds) -> Seconds:
        """Return seconds before which the first output cannot come, as far as threads and storage decide.

        Args:
            left: j, stages still to come, from 1 to k - 1.
            at: First block of the next stage, shape (n,).
            busy: Until when the threads that matter are busy, sorted, shape (n, min(j, T)).
            storage: Until when storage is, not less than the first of `busy`, shape (n,).
        """
        grid, first = self._grids[left], busy[:, 0]
        later = (busy[:, grid.lead : grid.kept] - first[:, None]) / grid.step_s
        cell = self._rank(np.minimum(later, grid.levels - 1).astype(np.int32))
        if self._with_storage:
            later = np.minimum((storage - first) / grid.step_s, grid.storage_levels - 1)
            cell += later.astype(np.intp) * grid.num_tuples
        lower: Seconds = first + self._tables[left][at, cell]
        return lower

    def _layout(self, cells: int, range_s: float) -> dict[int, _Grid]:
        """Return the grid for each number of stages left: as fine as `cells` allow, and never finer for more left.

        Steps are halved, not chosen freely, so that every place of a grid is one of the next grid as well and rounding
        concerns the new busy time alone.
        """
        grids: dict[int, _Grid] = {}
        bits = _MOST_BITS
        for left in range(1, self._costs.num_stages):
            unused = max(self._costs.threads - (self._costs.num_stages - left), 0)
            kept = min(left, self._costs.threads)
            lead = min(max(unused, 1), kept)
            if kept > lead or self._with_storage:
                while bits and self._size(1 << bits, kept - lead) > 1.3 * cells:
                    bits -= 1
            levels = 1 << bits
            grids[left] = _Grid(kept, lead, levels, range_s / levels, levels if self._with_storage else 1)
        return grids

    def _size(self, levels: int, free: int) -> int:
        return _num_tuples(levels, free) * (levels if self._with_storage else 1)

    def _last(self) -> Seconds:
        """Return the table for one stage left: it loads as soon as a thread and storage are free."""
        costs, grid = self._costs, self._grids[1]
        whole = costs.load[:, -1] + costs.infer[:, -1]
        whole = np.where(np.arange(len(whole)) <= costs.last_start, whole, np.inf)
        waits = np.arange(grid.storage_levels) * grid.step_s
        return whole[:, None] + costs.reads[:, -1, None] * waits

    def _table(self, left: int, end_s: float) -> Seconds:
        """Return the table for `left` stages, shape (N + 1, cells): the best next stage from each cell."""
        costs, grid = self._costs, self._grids[left]
        size = grid.storage_levels * grid.num_tuples
        table = np.full((costs.num_blocks + 1, size), np.inf)
        starts, ends = np.nonzero(np.isfinite(costs.load) & np.isfinite(costs.infers_left[left - 1]))
        firsts = np.flatnonzero(np.diff(starts, prepend=-1))
        pairs = max(1, _AT_ONCE // size)
        while len(firsts):
            if time.perf_counter() > end_s:
                raise TimeoutError
            until = np.append(firsts[1:], len(starts))
            count = max(1, int(np.searchsorted(until, firsts[0] + pairs, side="right")))
            chunk = slice(firsts[0], until[count - 1])
            values = self._values(left, starts[chunk], ends[chunk])
            table[starts[firsts[:count]]] = np.minimum.reduceat(values, firsts[:count] - firsts[0], axis=0)
            firsts = firsts[count:]
        return table

    def _values(self, left: int, starts: NDArray[np.intp], ends: NDArray[np.intp]) -> Seconds:
        """Return what follows from each cell if `[start, end)` is the next stage, shape (pairs, cells).

        Everything is counted from when the first thread is free, and in steps of the next grid. The load is pushed in
        among the other busy times, rounded down; its own inference and those after it see it unrounded.
        """
        costs, grid, after = self._costs, self._grids[left], self._grids[left - 1]
        finer = round(grid.step_s / after.step_s)
        reads = costs.reads[starts, ends, None]
        storage = np.arange(grid.storage_levels)[None, :] * finer
        others = np.concatenate(
            (np.zeros((grid.num_tuples, grid.lead - 1), dtype=np.int32), self._tuples(grid) * np.int32(finer)), axis=1
        )
        beyond = grid.levels * finer + after.levels  # so late that it is the last, and cut off
        load = costs.load[starts, ends, None]
        ready = np.minimum(np.floor(load / after.step_s) + reads * storage, beyond).astype(np.int32)
        distinct, which = np.unique(ready, return_inverse=True)
        which = which.reshape(ready.shape)
        busy = insert(
            np.broadcast_to(others, (len(distinct), *others.shape)),
            np.broadcast_to(distinct[:, None], (len(distinct), len(others))),
        )[..., : after.kept]
        first = busy[..., 0]
        cell = self._rank(np.minimum(busy[..., after.lead :] - first[..., None], after.levels - 1))[which]
        shift = first[which]
        if self._with_storage:
            read = np.floor(costs.read[starts, ends, None] / after.step_s).astype(np.int64) + storage
            cell += np.clip(read[..., None] - shift, 0, after.storage_levels - 1) * after.num_tuples
        values: Seconds = self._tables[left - 1][ends[:, None, None], cell]
        values += shift * after.step_s
        inferred = costs.infer[starts, ends] + costs.infers_left[left - 1][ends]
        np.maximum(values, (load + reads * storage * after.step_s + inferred[:, None])[..., None], out=values)
        return values.reshape(len(starts), -1)

    def _tuples(self, grid: _Grid) -> Levels:
        """Return the sorted tuples of levels in the order of `_rank`, shape (num_tuples, axes)."""
        free = grid.kept - grid.lead
        flat = itertools.chain.from_iterable(itertools.combinations_with_replacement(range(grid.levels), free))
        tuples = np.fromiter(flat, dtype=np.int32, count=grid.num_tuples * free).reshape(grid.num_tuples, free)
        return tuples[np.argsort(self._rank(tuples))]

    def _rank(self, levels: Levels) -> NDArray[np.intp]:
        """Return the number of each sorted tuple, in the combinatorial number system."""
        rank = np.zeros(levels.shape[:-1], dtype=np.intp)
        for axis in range(levels.shape[-1]):
            rank += self._binomials[levels[..., axis] + axis, axis + 1]
        return rank


def insert(ordered: NDArray[_Number], value: NDArray[_Number]) -> NDArray[_Number]:
    """Return rows that are sorted with one more value each put in its place.

    Args:
        ordered: Not negative, ascending along the last axis, shape (..., m).
        value: Not negative, shape (...).
    """
    value = value[..., None]
    below = np.concatenate((np.zeros_like(value), ordered), axis=-1)
    above = np.concatenate((ordered, np.maximum(value, ordered[..., -1:]) if ordered.shape[-1] else value), axis=-1)
    put: NDArray[_Number] = np.maximum(below, np.minimum(above, value))
    return put


def _num_tuples(levels: int, free: int) -> int:
    return math.comb(levels - 1 + free, free)

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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from splitload.agents.stage_costs import Seconds, StageCosts

Levels = NDArray[np.intp]
_Number = TypeVar("_Number", np.intp, np.float64)
_MOST_BITS = 12  # no axis has more than 4,096 levels
_AT_ONCE = 1 << 20  # table entries worked on at a time: some 30 ms, and tens of megabytes


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


class _Table(NamedTuple):
    """What follows from each first block and cell, counted from when the first thread is free: (N + 1, cells) each."""

    lower: Seconds
    upper: Seconds


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
        self._tables: dict[int, _Table] = {}
        for left in self._grids:
            self._tables[left] = self._last() if left == 1 else self._table(left, end_s)

    def between_s(self, left: int, at: NDArray[np.intp], busy: Seconds, storage: Seconds) -> tuple[Seconds, Seconds]:
        """Return when the first output comes, as far as threads and storage decide: not sooner than, and about.

        The second is what the dynamic program gives if it rounds up, which some plan keeps unless it leaves the grid.

        Args:
            left: j, stages still to come, from 1 to k - 1.
            at: First block of the next stage, shape (n,).
            busy: Until when the threads that matter are busy, sorted, shape (n, min(j, T)).
            storage: Until when storage is, not less than the first of `busy`, shape (n,).
        """
        grid, first = self._grids[left], busy[:, 0]
        axes = [busy[:, thread] for thread in range(grid.lead, grid.kept)]
        if self._with_storage:
            axes.append(storage)
        below, above, short = [], [], np.zeros(len(at))
        for axis in axes:
            place = np.minimum((axis - first) * (1 / grid.step_s), grid.levels - 1)
            below.append(place.astype(np.intp))
            above.append(np.minimum(below[-1] + 1, grid.levels - 1))
            np.maximum(short, above[-1] - place, out=short)
        table = self._tables[left]
        rows = at * (grid.storage_levels * grid.num_tuples)
        ceiling = rows + self._cell(grid, above)
        lower = np.maximum(
            table.lower.take(rows + self._cell(grid, below)), table.lower.take(ceiling) - short * grid.step_s
        )
        return first + lower, first + table.upper.take(ceiling)

    def _cell(self, grid: _Grid, levels: list[Levels]) -> Levels | int:
        """Return cells of a table: sorted levels of the threads, and of storage last, one array for each axis."""
        cell = _rank(levels[: grid.kept - grid.lead])
        return cell + levels[-1] * grid.num_tuples if self._with_storage else cell

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

    def _last(self) -> _Table:
        """Return the table for one stage left: it loads as soon as a thread and storage are free."""
        costs, grid = self._costs, self._grids[1]
        whole = costs.load[:, -1] + costs.infer[:, -1]
        whole = np.where(costs.starts_last, whole, np.inf)
        waits = np.arange(grid.storage_levels) * grid.step_s
        values = whole[:, None] + costs.reads[:, -1, None] * waits
        return _Table(values, values)

    def _table(self, left: int, end_s: float) -> _Table:
        """Return the table for `left` stages, shape (N + 1, cells): the best next stage from each cell."""
        costs, grid = self._costs, self._grids[left]
        size = grid.storage_levels * grid.num_tuples
        table = _Table(*(np.full((costs.num_blocks + 1, size), np.inf) for _ in range(2)))
        starts, ends = np.nonzero(np.isfinite(costs.load) & np.isfinite(costs.infers_left[left - 1]))
        firsts = np.flatnonzero(np.diff(starts, prepend=-1))
        pairs = max(1, _AT_ONCE // size)
        finer = _finer(grid, self._grids[left - 1])
        others = [np.zeros(grid.num_tuples, dtype=np.intp)] * (grid.lead - 1)
        others += [axis * finer for axis in _tuples(grid.levels, grid.kept - grid.lead)]
        while len(firsts):
            if time.perf_counter() > end_s:
                raise TimeoutError
            until = np.append(firsts[1:], len(starts))
            count = max(1, int(np.searchsorted(until, firsts[0] + pairs, side="right")))
            chunk = slice(firsts[0], until[count - 1])
            for values, best in zip(self._values(left, others, starts[chunk], ends[chunk]), table, strict=True):
                best[starts[firsts[:count]]] = np.minimum.reduceat(values, firsts[:count] - firsts[0], axis=0)
            firsts = firsts[count:]
        return table

    def _values(self, left: int, others: list[Levels], starts: NDArray[np.intp], ends: NDArray[np.intp]) -> _Table:
        """Return what follows from each cell if `[start, end)` is the next stage, each of shape (pairs, cells).

        Everything is counted from when the first thread is free, and in steps of the next grid, in which `others` are
        the busy times without the first. When this load ends is put among them, rounded down and, as what follows is
        later by no more than is added, rounded up less what that adds: the better bound counts. The inference of the
        stage and those to come see it unrounded.
        """
        costs, grid, after = self._costs, self._grids[left], self._grids[left - 1]
        reads = costs.reads[starts, ends, None]
        storage = np.arange(grid.storage_levels)[None, :] * _finer(grid, after)
        load: Seconds = costs.load[starts, ends, None] / after.step_s
        read: Seconds = costs.read[starts, ends, None] / after.step_s
        short = np.maximum(np.ceil(load) - load, np.ceil(read) - read)[..., None] * after.step_s
        inferred = costs.infer[starts, ends] + costs.infers_left[left - 1][ends]
        own = ((load + reads * storage) * after.step_s + inferred[:, None])[..., None]
        tables = self._tables[left - 1]
        rows = (ends * (after.storage_levels * after.num_tuples))[:, None, None]
        cell, shift_s = self._pushed(after, others, np.ceil(load) + reads * storage, np.ceil(read) + storage)
        cell += rows
        lower, upper = tables.lower.take(cell), tables.upper.take(cell)
        lower += shift_s - short
        upper += shift_s
        cell, shift_s = self._pushed(after, others, np.floor(load) + reads * storage, np.floor(read) + storage)
        cell += rows
        shift_s += tables.lower.take(cell)
        np.maximum(lower, shift_s, out=lower)
        np.maximum(lower, own, out=lower)
        np.maximum(upper, own, out=upper)
        return _Table(lower.reshape(len(starts), -1), upper.reshape(len(starts), -1))

    def _pushed(
        self, after: _Grid, others: list[Levels], ready: Seconds, stored: Seconds
    ) -> tuple[NDArray[np.intp], Seconds]:
        """Return the cell once `ready` is among the busy times, and the first of them in seconds.

        Both are of shape (pairs, storage levels, tuples).

        Args:
            after: The grid the cell is of.
            others: Busy times but the first, each of shape (tuples,).
            ready: When the stage is loaded, in steps of that grid, whole, shape (pairs, storage levels).
            stored: When storage is free, likewise.
        """
        latest = (int(others[-1].max()) if others else 0) + after.levels  # what is later is the last, and cut off
        distinct, which = np.unique(np.minimum(ready, latest).astype(np.intp), return_inverse=True)
        which = which.reshape(ready.shape)
        busy = insert(others, distinct[:, None])[: after.kept]
        first = busy[0]
        cell = _rank([np.minimum(axis - first, after.levels - 1) for axis in busy[after.lead :]])
        cells: Levels = np.broadcast_to(cell, first.shape)[which]
        shift: Levels = first[which]
        if self._with_storage:
            later = stored.astype(np.intp)[..., None] - shift
            cells += np.clip(later, 0, after.storage_levels - 1) * after.num_tuples
        shift_s: Seconds = np.multiply(shift, after.step_s, dtype=np.float64)
        return cells, shift_s


def _tuples(levels: int, axes: int) -> list[Levels]:
    """Return the sorted tuples of levels in the order of `_rank`, one array for each axis."""
    flat = itertools.chain.from_iterable(itertools.combinations_with_replacement(range(levels), axes))
    count = _num_tuples(levels, axes)
    tuples = np.fromiter(flat, dtype=np.intp, count=count * axes).reshape(count, axes).T
    order = np.argsort(np.broadcast_to(_rank(list(tuples)), count))
    return [axis[order] for axis in tuples]


def _rank(levels: list[Levels]) -> Levels | int:
    """Return the number of each sorted tuple, in the combinatorial number system: the sum of `C(level + i, i + 1)`."""
    rank: Levels | int = 0
    for axis, level in enumerate(levels):
        term = level
        for factor in range(1, axis + 1):
            term = term * (level + factor) // (factor + 1)
        rank = rank + term
    return rank


def insert(ordered: Sequence[NDArray[_Number]], value: NDArray[_Number]) -> list[NDArray[_Number]]:
    """Return sorted values with one more put in its place.

    Args:
        ordered: Ascending, one array for each place.
        value: Of a shape that goes with theirs.
    """
    put: list[NDArray[_Number]] = []
    for place in ordered:
        put.append(np.minimum(place, value))
        value = np.maximum(place, value)
    put.append(value)
    return put


def _finer(grid: _Grid, after: _Grid) -> int:
    """Return how many steps of the next grid one step is."""
    return round(grid.step_s / after.step_s)


def _num_tuples(levels: int, free: int) -> int:
    return math.comb(levels - 1 + free, free)

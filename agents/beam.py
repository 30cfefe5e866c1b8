"""Beam search over unfinished schedules, which also says how much better what it dropped could have been."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitload.agents.completion import Completion, insert
from splitload.agents.stage_costs import Seconds, StageCosts

# A plan that is better by less than this share is not looked for, and times that differ by less than `_SAME` of the
# record are taken as equal: sums of the same costs in another order differ by rounding.
MARGIN, _SAME = 1e-10, 1e-12
_AT_ONCE = 1 << 18  # places for a next cut that are looked at between two looks at the clock


class BeamResult(NamedTuple):
    """What a beam search came to.

    Attributes:
        split_points: A plan better than the record, or None.
        bound_s: No plan is faster, unless it is the record or `split_points`.
    """

    split_points: tuple[int, ...] | None
    bound_s: float


class _Labels(NamedTuple):
    """Unfinished schedules of the same number of stages, n of them.

    Attributes:
        at: First block that is not in a stage, shape (n,).
        busy: Until when each thread that still matters is busy, sorted, shape (n, m).
        storage: Until when storage is, shape (n,).
        done: When the last stage has inferred, shape (n,); raised to where it begins to matter.
        cuts: The split points, and `at`, shape (n, stages).
        lower: Seconds that no plan with this beginning is faster than, shape (n,).
        guess: About what the best one takes, as far as threads and storage decide; it chooses between equal bounds.
    """

    at: NDArray[np.intp]
    busy: Seconds
    storage: Seconds
    done: Seconds
    cuts: NDArray[np.int32]
    lower: Seconds
    guess: Seconds

    def take(self, rows: NDArray[np.intp] | slice) -> _Labels:
        return _Labels._make(part[rows] for part in self)


class Beam:
    """Extends all unfinished schedules stage by stage, and keeps the most promising of each length.

    A label is dropped without loss if its lower bound reaches the record, or another label has the same blocks and
    busy times left and has inferred no later. The rest is dropped beyond `width`, the largest lower bounds first; the
    smallest lower bound so dropped, or the record, is what no plan beats.

    Args:
        costs: Of the stages.
        completion: Lower bounds for what follows.
        width: Labels kept of each length.
        record_s: Time to first output of the best plan so far: only better ones are looked for.
        bound_s: Seconds known to be no more than any plan's time to first output.
        end_s: When to stop, on the clock of `time.perf_counter`; what is then open counts as dropped.
    """

    def __init__(
        self, costs: StageCosts, completion: Completion, width: int, record_s: float, bound_s: float, end_s: float
    ) -> None:
        self._costs = costs
        self._completion = completion
        self._width = width
        self._record_s = record_s
        self._bound_s = bound_s
        self._end_s = end_s
        self._dropped_s = np.inf

    def run(self) -> BeamResult:
        """Search; return a better plan if there was one, and the bound."""
        costs = self._costs
        nothing = np.zeros(1)
        labels = _Labels(
            np.zeros(1, dtype=np.intp), np.zeros((1, min(costs.num_stages, costs.threads))), nothing, nothing,
            np.zeros((1, 0), dtype=np.int32), nothing, nothing,
        )  # fmt: skip
        for left in range(costs.num_stages - 1, 0, -1):
            labels = self._next(labels, left)
            if not len(labels.at):
                return BeamResult(None, min(self._dropped_s, self._record_s))
            if left == costs.num_stages - 1:  # every plan that could beat the record begins with one of these
                self._bound_s = max(self._bound_s, min(float(labels.lower.min()), self._dropped_s))
        return self._finish(labels)

    def _next(self, labels: _Labels, left: int) -> _Labels:
        """Return the labels with one more stage, when `left` stages are still to come."""
        found: list[_Labels] = []
        size, rows = 0, max(16, _AT_ONCE // (self._costs.num_blocks + 1))
        for start in range(0, len(labels.at), rows):
            if time.perf_counter() > self._end_s:
                self._drop(labels.lower[start:])
                for part in found:
                    self._drop(part.lower)
                return labels.take(slice(0, 0))
            found.append(self._extend(labels.take(slice(start, start + rows)), left))
            size += len(found[-1].at)
            if size > 2 * self._width + _AT_ONCE:
                found = [self._keep(found)]
                size = len(found[0].at)
        return self._keep(found)

    def _extend(self, labels: _Labels, left: int) -> _Labels:
        """Return every label with every next stage that may lead to a better plan."""
        costs, at = self._costs, labels.at
        reads = costs.reads[at]
        begin = labels.busy[:, :1]
        if costs.any_reads:
            begin = np.where(reads, np.maximum(begin, labels.storage[:, None]), begin)
        loaded = begin + costs.load[at]  # infinite where no stage can end
        done = np.maximum(loaded, labels.done[:, None]) + costs.infer[at]
        row, end = np.nonzero(done + costs.infers_left[left] < self._goal_s)
        kept = min(left, costs.threads)
        others = [labels.busy[row, thread] for thread in range(1, labels.busy.shape[1])]
        busy = np.stack(insert(others, loaded[row, end])[:kept], axis=1)
        # The loads to come end on the threads that are free soonest; the last of them ends no sooner than on average.
        average = (busy.sum(axis=1) + costs.loads_left[left][end]) / kept
        done, storage = done[row, end], labels.storage[row]
        lower = np.maximum(done + costs.infers_left[left][end], average + costs.last_infer)
        lower = np.maximum(lower, labels.lower[row])
        if costs.any_reads:
            storage = np.where(reads[row, end], begin[row, end] + costs.read[at[row], end], storage)
            storage = np.maximum(storage, busy[:, 0])  # no load begins before that
            lower = np.maximum(lower, storage + costs.storage_left[left][end])
        else:
            storage = busy[:, 0]
        threads_s, guess = self._completion.between_s(left, end, busy, storage)
        lower = np.maximum(lower, threads_s)
        done = np.maximum(done, self._bound_s - costs.infers_left_most[left][end])
        cuts = np.concatenate((labels.cuts[row], end[:, None].astype(np.int32)), axis=1)
        return _Labels(end, busy, storage, done, cuts, lower, guess).take(np.flatnonzero(lower < self._goal_s))

    def _keep(self, parts: list[_Labels]) -> _Labels:
        """Return the labels worth keeping of all parts: one of those that are alike, and no more than `width`."""
        labels = _Labels._make(np.concatenate(part) for part in zip(*parts, strict=True))
        if len(labels.at) > 1:
            state = np.rint(np.column_stack((labels.busy, labels.storage)) / (_SAME * self._record_s))
            order = np.lexsort((labels.done, *state.T, labels.at))
            state, at = state[order], labels.at[order]
            new = (state[1:] != state[:-1]).any(axis=1) | (at[1:] != at[:-1])
            labels = labels.take(order[np.append(True, new)])
        if len(labels.at) > self._width:
            order = np.lexsort((labels.guess, labels.lower))
            self._drop(labels.lower[order[self._width :]])
            labels = labels.take(order[: self._width])
        return labels

    def _finish(self, labels: _Labels) -> BeamResult:
        """Return the best of the plans that the last stage completes."""
        costs, last = self._costs, labels.at
        begin = labels.busy[:, 0]
        begin = np.where(costs.reads[last, -1], np.maximum(begin, labels.storage), begin)
        done = np.maximum(begin + costs.load[last, -1], labels.done) + costs.infer[last, -1]
        done = np.where(costs.starts_last[last], done, np.inf)
        best = int(np.argmin(done))
        bound_s = min(self._dropped_s, self._record_s, float(done[best]))
        better = done[best] < self._record_s
        return BeamResult(tuple(map(int, labels.cuts[best])) if better else None, bound_s)

    @property
    def _goal_s(self) -> float:
        return self._record_s * (1 - MARGIN)

    def _drop(self, lower: Seconds) -> None:
        self._dropped_s = min(self._dropped_s, float(lower.min(initial=np.inf)))

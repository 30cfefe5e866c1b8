"""The partition that answers first, with a proof, or with a bound on how much sooner any other could answer.

The time to first output under the policy of `splitload.plan.schedule.Clock` follows from a state: until when each
thread is busy, until when storage is, when the last stage has inferred, and which blocks are left. A stage moves the
state by additions, maxima and sorting only. Hence, for the same split points to come,

1. what follows is never sooner from a state with any of these times later, and
2. adding the same time to all of them adds it to the result; so by (1) times that are later by at most that delay it by
   at most that.

The first output comes when, for some stage, it is loaded and it and all after it have inferred one after the other, or
when the stage before has inferred and all others have. So `Completion` bounds from below what follows from a state, by
dynamic programming over the next cut, with the state rounded to a grid (down by 1, or up by 2 less what that adds), its
first busy time taken out (2), and the inferences to come at their least. `Beam` extends unfinished schedules stage by
stage, not rounded, and drops those whose bound reaches the record. Nothing is lost by that, nor, by (1), by keeping of
several that differ only in when the last stage has inferred the soonest; that time counts as no less than what would
lead to a known bound with the most inferences to come, as no result is below the bound. If it drops nothing else, the
record is optimal: the beginnings of any plan that beats it would have lived. Where the beam becomes too wide, it drops
the largest bounds; no plan is faster than the smallest of those, or the record. Grid and beam are then refined, until
the record is proved or the time is over. Each of these searches gives a valid bound, and the largest counts.

With at most as many stages as threads, and nothing to read, every load starts at once: busy times do not differ, one
label for each place of the last cut is left, and the first search is the plain dynamic program in O(N² k) over
`E(i, e) = min over s of max(E(i-1, s), slowdown * load[s, e]) + infer[s, e]`.

Source: label setting with bounds is usual for shortest paths with resources; the policy's list scheduling is that of
R. L. Graham, "Bounds on multiprocessing timing anomalies", 1969. With the order of the stages fixed it has no
anomalies.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from splitload.agents.beam import Beam
from splitload.agents.completion import Completion
from splitload.agents.exact import Allowed, balance, checked_num_blocks
from splitload.agents.stage_costs import StageCosts, stage_costs

__all__ = ["Optimum", "ttfo"]

# Cells of the grid and width of the beam, search by search: the first is enough where threads do not matter, the last
# takes a minute or so and some hundred megabytes.
_SEARCHES = ((1, 256), (256, 2048), (1024, 16384), (4096, 65536), (16384, 131072))
_PROVED = 1e-9  # relative: ten times what the beam's margin and rounding can come to


@dataclass(frozen=True, slots=True)
class Optimum:
    """The best plan found, and what is known about all others.

    Attributes:
        split_points: The k - 1 split points.
        value_s: Their time to first output in seconds.
        bound_s: Seconds that no plan is faster than; equal to `value_s` where that is proved.
    """

    split_points: tuple[int, ...]
    value_s: float
    bound_s: float

    @property
    def proved(self) -> bool:
        """Whether no plan is faster, by more than a billionth."""
        return self.bound_s >= self.value_s

    @property
    def gap(self) -> float:
        """By what share the plan can at most be slower than the optimum: 0 where it is proved."""
        if self.proved:
            return 0.0
        return self.value_s / self.bound_s - 1 if self.bound_s > 0 else float("inf")


def ttfo(
    load: NDArray[np.float64],
    infer: NDArray[np.float64],
    num_stages: int,
    threads: int,
    slowdown: float,
    trainable_from: int | None = None,
    *,
    read: NDArray[np.float64] | None = None,
    limit_s: float = 10.0,
    starts: Sequence[Sequence[int]] = (),
    allowed: Allowed | None = None,
) -> Optimum:
    """Return the split points with the smallest time to first output, and whether that is proved.

    Costs of segments need not add up. What is proved is the same on every machine and in every run up to rounding and
    ties; what the limit cut short depends on how far the search came.

    Args:
        load: Seconds to load each segment alone, shape (N + 1, N + 1): entry `[s, e]` for the blocks `[s, e)`;
            entries with `s >= e` are not looked at, all others finite and not negative.
        infer: Seconds of each segment's first inference, likewise.
        num_stages: k, from 1 to N.
        threads: T, loads that can run at the same time.
        slowdown: How many times longer a load takes beside the others of k stages; its reading does not.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.
        read: Seconds of each load that storage is busy for, likewise; by default none.
        limit_s: Seconds after which to stop and return what is known, kept to about a tenth.
        starts: Plans to begin with, such as a learned one: the result is not worse than any of them.
        allowed: Which segments may be stages, a matrix of truth values; None for all.

    Raises:
        ValueError: If a matrix is not square or differs in shape, a cost is negative or not finite, no such partition
            exists, there is no thread, or a start is no such partition.
    """
    end_s = time.perf_counter() + limit_s
    _check(load, infer, read, num_stages, threads, slowdown, trainable_from)
    costs = stage_costs(load, infer, read, num_stages, threads, slowdown, trainable_from, allowed)
    plans = [tuple(map(int, points)) for points in starts]
    for points in plans:
        _check_start(points, costs)
    balanced, _ = balance(np.where(np.isfinite(costs.load), load, np.inf), num_stages, trainable_from, allowed=allowed)
    record_s, record = min((costs.ttfo_s(points), points) for points in [*plans, balanced])
    bound_s = min(costs.bound_s, record_s)
    for cells, width in _SEARCHES:
        if record_s <= bound_s * (1 + _PROVED) or num_stages == 1:
            return Optimum(record, record_s, record_s)
        if cells > 1:  # the first search is sooner done than this
            record = _improved(costs, record, end_s)
            record_s = costs.ttfo_s(record)
        try:
            completion = Completion(costs, cells, record_s, end_s)
        except TimeoutError:
            break
        found = Beam(costs, completion, width, record_s, bound_s, end_s).run()
        if found.split_points is not None:
            record = found.split_points
            record_s = costs.ttfo_s(record)
        bound_s = min(max(bound_s, found.bound_s), record_s)
    proved = record_s <= bound_s * (1 + _PROVED)
    return Optimum(record, record_s, record_s if proved else bound_s)


def _improved(costs: StageCosts, split_points: tuple[int, ...], end_s: float) -> tuple[int, ...]:
    """Return the plan after moving single split points for as long as that is better, or until `end_s`."""
    points, best_s, before_s = list(split_points), costs.ttfo_s(split_points), float("inf")
    while best_s < before_s and time.perf_counter() < end_s:
        before_s = best_s
        for number, here in enumerate(points):
            low = points[number - 1] + 1 if number else 1
            last = number + 1 == len(points)
            for place in range(low, costs.num_blocks if last else points[number + 1]):
                if last and not costs.starts_last[place]:
                    continue
                points[number] = place
                value_s = costs.ttfo_s(points)
                if value_s < best_s:
                    best_s, here = value_s, place
            points[number] = here
    return tuple(points)


def _check(
    load: NDArray[np.float64],
    infer: NDArray[np.float64],
    read: NDArray[np.float64] | None,
    num_stages: int,
    threads: int,
    slowdown: float,
    trainable_from: int | None,
) -> None:
    """Raise `ValueError` for an argument of `ttfo` that cannot be meant."""
    checked_num_blocks(load, num_stages, trainable_from)
    for name, matrix in (("infer", infer), ("read", read)):
        if matrix is not None and matrix.shape != load.shape:
            raise ValueError(f"load has shape {load.shape} and {name} {matrix.shape}: they must be equal")
    segments = np.triu_indices(len(load), k=1)
    for name, matrix in (("load", load), ("infer", infer), ("read", read)):
        if matrix is not None and not (np.isfinite(matrix[segments]).all() and (matrix[segments] >= 0).all()):
            raise ValueError(f"{name} must hold finite seconds, not negative, for every segment")
    if not (np.isfinite(slowdown) and slowdown >= 0):
        raise ValueError(f"slowdown must be a finite factor, not negative; it is {slowdown}")
    if threads < 1:
        raise ValueError(f"loading needs at least 1 thread, not {threads}")


def _check_start(points: tuple[int, ...], costs: StageCosts) -> None:
    """Raise `ValueError` unless `points` are split points of a partition into as many stages."""
    bounds = (0, *points, costs.num_blocks)
    rising = all(start < end for start, end in pairwise(bounds))
    if len(points) != costs.num_stages - 1 or not rising or not costs.starts_last[bounds[-2]]:
        places = np.flatnonzero(costs.starts_last)
        raise ValueError(
            f"the start {points} does not cut {costs.num_blocks} blocks into {costs.num_stages} stages "
            f"of which the last begins at one of the blocks {places[0]} to {places[-1]}"
        )

"""The partition whose stages cost least in all and are not large: a sum and a maximum made small together, exactly."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np

from splitload.agents.exact import Allowed, Matrix, balance, cheapest, checked_num_blocks
from splitload.agents.exact_ttfo import Optimum

__all__ = ["steady"]


def steady(
    cost: Matrix,
    largest: Matrix,
    num_stages: int,
    trainable_from: int | None = None,
    *,
    allowed: Allowed | None = None,
    limit_s: float = 10.0,
) -> Optimum:
    """Return the split points for which the sum of `cost` and the maximum of `largest` over all stages are least.

    For each value m that a maximum can have, from the least possible one up, `cheapest` finds the least sum of plans
    whose stages are all within m, which costs no more than that sum and m. It ends once m and the least sum of all
    plans reach the record: no plan with a larger maximum can better it. An example: sums of 10 s or so that differ by
    1 ms, and maxima from 20 ms up; only those below 21 ms are looked at.

    Args:
        cost: Seconds that each segment adds, shape (N + 1, N + 1): entry `[s, e]` for the blocks `[s, e)`.
        largest: Seconds of which only the most of any stage counts, likewise.
        num_stages: k, from 1 to N.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.
        allowed: Which segments may be stages, likewise of truth values; None for all.
        limit_s: Seconds after which to stop, with a bound in place of the proof.

    Raises:
        ValueError: If a matrix is not square or differs in shape, or no such partition exists.
    """
    end_s = time.perf_counter() + limit_s
    num_blocks = checked_num_blocks(cost, num_stages, trainable_from)
    if largest.shape != cost.shape:
        raise ValueError(f"cost has shape {cost.shape} and largest {largest.shape}: they must be equal")
    legal = np.triu(np.ones(cost.shape, dtype=bool), k=1) if allowed is None else allowed

    def value_of(points: tuple[int, ...]) -> float:
        stages = list(pairwise((0, *points, num_blocks)))
        return float(sum(cost[stage] for stage in stages) + max(largest[stage] for stage in stages))

    record, least_maximum = balance(largest, num_stages, trainable_from, allowed=legal)
    other, least_sum = cheapest(cost, num_stages, trainable_from, allowed=legal)
    value, record = min((value_of(points), points) for points in (record, other))
    bound = least_sum + least_maximum
    for maximum in np.unique(largest[legal & (largest >= least_maximum)]):
        bound = least_sum + float(maximum)
        if bound >= value or time.perf_counter() > end_s:
            break
        points, _ = cheapest(cost, num_stages, trainable_from, allowed=legal & (largest <= maximum))
        value, record = min((value, record), (value_of(points), points))
    else:
        bound = value
    return Optimum(record, value, min(bound, value))

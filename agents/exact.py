"""The exact best partition by dynamic programming, balanced or of the least sum: what learned plans are measured by."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

__all__ = ["balance", "cheapest"]

Matrix = NDArray[np.float64]
Allowed = NDArray[np.bool_]


def balance(
    load: Matrix, num_stages: int, trainable_from: int | None = None, *, allowed: Allowed | None = None
) -> tuple[tuple[int, ...], float]:
    """Return the split points whose largest stage load is smallest, in O(N² k).

    `L(i, e) = min over s of max(L(i-1, s), load[s, e])` is the smallest largest load of i stages over the blocks
    `[0, e)`. It is exact because max does not decrease in its first argument: of two ways to cut `[0, s)`, the one
    with the smaller largest load is never the worse start. Contention multiplies every stage of the same number
    of stages alike, so that it changes the value and not the plan.

    Args:
        load: Seconds to load each segment, shape (N + 1, N + 1): entry `[s, e]` for the blocks `[s, e)`, infinite
            where `s >= e`.
        num_stages: k, from 1 to N.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.
        allowed: Which segments may be stages, likewise of truth values; None for all.

    Returns:
        The k - 1 split points, and the largest stage load in seconds, without contention.

    Raises:
        ValueError: If the matrix is not square, or no such partition exists.
    """
    return _solved(load, num_stages, trainable_from, allowed, np.maximum)


def cheapest(
    cost: Matrix, num_stages: int, trainable_from: int | None = None, *, allowed: Allowed | None = None
) -> tuple[tuple[int, ...], float]:
    """Return the split points whose stages cost least in all, and that cost; as `balance` with sums for maxima.

    Raises:
        ValueError: If the matrix is not square, or no such partition exists.
    """
    return _solved(cost, num_stages, trainable_from, allowed, np.add)


def _solved(
    cost: Matrix,
    num_stages: int,
    trainable_from: int | None,
    allowed: Allowed | None,
    join: Callable[[Matrix, Matrix], Matrix],
) -> tuple[tuple[int, ...], float]:
    """Return the best split points and their value, where `join` makes one value of two and never decreases."""
    num_blocks = checked_num_blocks(cost, num_stages, trainable_from)
    if allowed is not None:
        cost = np.where(allowed, cost, np.inf)
    best = cost[0].copy()
    choices: list[NDArray[np.intp]] = []
    for stage in range(2, num_stages + 1):
        before = _legal_before(best, stage == num_stages, trainable_from)
        table = join(before[:, None], cost)
        choices.append(np.argmin(table, axis=0))
        best = np.min(table, axis=0)
    value = float(best[num_blocks])
    if allowed is not None and value == np.inf:
        raise ValueError(f"no {num_stages} stages are allowed that make up {num_blocks} blocks")
    return _trace(choices, num_blocks), value


def checked_num_blocks(load: NDArray[np.float64], num_stages: int, trainable_from: int | None) -> int:
    """Return N, or raise `ValueError` unless `num_stages` stages exist."""
    if load.ndim != 2 or load.shape[0] != load.shape[1] or load.shape[0] < 2:
        raise ValueError(f"load must be a square matrix of at least 2 x 2, its shape is {load.shape}")
    num_blocks = len(load) - 1
    check_num_stages(num_blocks, num_stages, trainable_from)
    return num_blocks


def check_num_stages(num_blocks: int, num_stages: int, trainable_from: int | None) -> None:
    """Raise `ValueError` unless blocks make so many stages."""
    least, most = (1, num_blocks) if trainable_from is None else (min(trainable_from, 1) + 1, trainable_from + 1)
    if not least <= num_stages <= min(num_blocks, most):
        raise ValueError(
            f"{num_blocks} blocks with trainable_from={trainable_from} make {least} to {min(num_blocks, most)} stages, "
            f"not {num_stages}"
        )


def _legal_before(best: NDArray[np.float64], last: bool, trainable_from: int | None) -> NDArray[np.float64]:
    """Return `best` with every cut ruled out but the one before the trainable blocks, if the last stage is next."""
    if not last or trainable_from is None:
        return best
    return np.where(np.arange(len(best)) == trainable_from, best, np.inf)


def _trace(choices: list[NDArray[np.intp]], num_blocks: int) -> tuple[int, ...]:
    """Return the split points that led to the optimum, from the last stage back to the first."""
    points: list[int] = []
    end = num_blocks
    for choice in reversed(choices):
        end = int(choice[end])
        points.append(end)
    return tuple(reversed(points))

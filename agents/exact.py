"""The exact best partition by dynamic programming: what every learned plan is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["balance", "ttfo"]


def balance(
    load: NDArray[np.float64], num_stages: int, trainable_from: int | None = None
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
        trainable_from: First trainable block; with two or more stages the last one begins at or before it.

    Returns:
        The k - 1 split points, and the largest stage load in seconds, without contention.

    Raises:
        ValueError: If the matrix is not square, or no such partition exists.
    """
    num_blocks = _num_blocks(load, num_stages, trainable_from)
    best = load[0].copy()
    choices: list[NDArray[np.intp]] = []
    for stage in range(2, num_stages + 1):
        before = _legal_before(best, stage == num_stages, trainable_from)
        table = np.maximum(before[:, None], load)
        choices.append(np.argmin(table, axis=0))
        best = np.min(table, axis=0)
    return _trace(choices, num_blocks), float(best[num_blocks])


def ttfo(
    load: NDArray[np.float64],
    infer: NDArray[np.float64],
    num_stages: int,
    threads: int,
    slowdown: float,
    trainable_from: int | None = None,
) -> tuple[tuple[int, ...], float]:
    """Return the split points with the smallest time to first output, in O(N² k).

    With at most as many stages as threads every load starts at once, so that stage `[s, e)` is loaded at
    `slowdown * load[s, e]` wherever the other cuts are, and infers when the stage before has:
    `E(i, e) = min over s of max(E(i-1, s), slowdown * load[s, e]) + infer[s, e]`.

    It is exact: the finish of stage i is `max(finish of stage i-1, slowdown * load) + infer`, which does not
    decrease in the finish of stage i-1. So by induction over i, replacing the cut of `[0, s)` by the one that
    finishes first never delays what follows, and the minimum over s covers every place of the last cut. With more
    stages than threads a load also waits for a thread; then the finish of stage i-1 no longer says all about the
    past, and the argument fails.

    Args:
        load: Seconds to load each segment alone, shape (N + 1, N + 1), infinite where `s >= e`.
        infer: Seconds of each segment's first inference, of the same shape.
        num_stages: k, from 1 to N.
        threads: Loads that can run at the same time.
        slowdown: How many times longer a load takes beside the others of k stages.
        trainable_from: First trainable block; with two or more stages the last one begins at or before it.

    Returns:
        The k - 1 split points, and the time to first output in seconds.

    Raises:
        ValueError: If there are more stages than threads, the matrices differ in shape, or no such partition exists.
    """
    num_blocks = _num_blocks(load, num_stages, trainable_from)
    if infer.shape != load.shape:
        raise ValueError(f"load has shape {load.shape} and infer {infer.shape}: they must be equal")
    if num_stages > threads:
        raise ValueError(
            f"the exact time to first output is known for at most as many stages as threads, not for {num_stages} "
            f"stages on {threads} threads: ask for fewer stages, or use q-learning"
        )
    legal = np.isfinite(load)
    loaded = np.where(legal, load, 0.0) * slowdown
    infer = np.where(legal, infer, np.inf)
    best = loaded[0] + infer[0]
    choices: list[NDArray[np.intp]] = []
    for stage in range(2, num_stages + 1):
        before = _legal_before(best, stage == num_stages, trainable_from)
        table = np.maximum(before[:, None], loaded) + infer
        choices.append(np.argmin(table, axis=0))
        best = np.min(table, axis=0)
    return _trace(choices, num_blocks), float(best[num_blocks])


def _num_blocks(load: NDArray[np.float64], num_stages: int, trainable_from: int | None) -> int:
    """Return N, or raise `ValueError` unless `num_stages` stages exist."""
    if load.ndim != 2 or load.shape[0] != load.shape[1] or load.shape[0] < 2:
        raise ValueError(f"load must be a square matrix of at least 2 x 2, its shape is {load.shape}")
    num_blocks = len(load) - 1
    most = num_blocks if trainable_from is None else min(num_blocks, trainable_from + 1)
    if not 1 <= num_stages <= most:
        raise ValueError(f"{num_blocks} blocks with trainable_from={trainable_from} make 1 to {most} stages, "
                         f"not {num_stages}")  # fmt: skip
    return num_blocks


def _legal_before(best: NDArray[np.float64], last: bool, trainable_from: int | None) -> NDArray[np.float64]:
    """Return `best` with every cut ruled out that would part the trainable blocks, if the last stage is next."""
    if not last or trainable_from is None:
        return best
    return np.where(np.arange(len(best)) <= trainable_from, best, np.inf)


def _trace(choices: list[NDArray[np.intp]], num_blocks: int) -> tuple[int, ...]:
    """Return the split points that led to the optimum, from the last stage back to the first."""
    points: list[int] = []
    end = num_blocks
    for choice in reversed(choices):
        end = int(choice[end])
        points.append(end)
    return tuple(reversed(points))

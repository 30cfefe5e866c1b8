"""Partitions that cost no search: what a learned plan must beat."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from splitload.agents.exact import Allowed, check_num_stages

__all__ = ["nearest_allowed", "random_partition", "uniform_blocks", "uniform_bytes"]


def uniform_bytes(weights_bytes: ArrayLike, num_stages: int, trainable_from: int | None = None) -> tuple[int, ...]:
    """Return split points whose stages hold about equal weights.

    Each split point is the one nearest to its share of the bytes that leaves every stage a block.

    Args:
        weights_bytes: Bytes of each block's weights, shape (N,).
        num_stages: k, from 1 to N.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.

    Raises:
        ValueError: If no such partition exists.
    """
    weights = np.asarray(weights_bytes, dtype=np.float64)
    return _nearest(np.concatenate(([0.0], np.cumsum(weights))), num_stages, trainable_from)


def uniform_blocks(num_blocks: int, num_stages: int, trainable_from: int | None = None) -> tuple[int, ...]:
    """Return split points whose stages hold about equally many blocks; arguments as for `uniform_bytes`.

    Raises:
        ValueError: If no such partition exists.
    """
    return _nearest(np.arange(num_blocks + 1, dtype=np.float64), num_stages, trainable_from)


def random_partition(
    num_blocks: int, num_stages: int, trainable_from: int | None = None, *, seed: int = 0
) -> tuple[int, ...]:
    """Return one legal partition, drawn uniformly from all of them; one draw for each seed, not the best of several.

    Raises:
        ValueError: If no such partition exists.
    """
    check_num_stages(num_blocks, num_stages, trainable_from)
    fixed = fixed_cuts(trainable_from)
    places: Sequence[int] = range(1, fixed[0] if fixed else num_blocks)
    drawn = random.Random(seed).sample(places, num_stages - 1 - len(fixed))  # noqa: S311 - not for secrets
    return (*sorted(drawn), *fixed)


def nearest_allowed(
    split_points: Sequence[int], allowed: Allowed, trainable_from: int | None = None
) -> tuple[int, ...]:
    """Return the allowed split points that are nearest to some others: the distances in blocks add up to the least.

    Args:
        split_points: k - 1 split points, of a rule that does not ask what is allowed.
        allowed: Which segments may be stages, shape (N + 1, N + 1).
        trainable_from: First trainable block; the last stage begins there. None where none is trained.

    Raises:
        ValueError: If no such partition is allowed.
    """
    num_blocks, places = len(allowed) - 1, np.arange(len(allowed), dtype=np.float64)
    steps = np.where(allowed, 0.0, np.inf)
    apart, choices = np.where(places == 0, 0.0, np.inf), []
    for point in split_points:
        table = apart[:, None] + steps + np.abs(places - point)
        choices.append(np.argmin(table, axis=0))
        apart = np.min(table, axis=0)
    if trainable_from is not None:
        apart = np.where(places == trainable_from, apart, np.inf)
    last = apart + steps[:, num_blocks]
    start = int(np.argmin(last))
    if last[start] == np.inf:
        raise ValueError(f"no {len(split_points) + 1} stages are allowed that make up {num_blocks} blocks")
    points: list[int] = []
    for choice in reversed(choices):
        points.append(start)
        start = int(choice[start])
    return tuple(reversed(points))


def fixed_cuts(trainable_from: int | None) -> tuple[int, ...]:
    """Return the cuts that every plan has: that before the first trainable block, unless that is the first."""
    return () if not trainable_from else (trainable_from,)


def _nearest(amounts: NDArray[np.float64], num_stages: int, trainable_from: int | None) -> tuple[int, ...]:
    """Return split points nearest to equal shares of all amounts, of those before what is trained where some is.

    Args:
        amounts: Entry p is what the first p blocks hold.
        num_stages: k.
        trainable_from: First trainable block.
    """
    check_num_stages(len(amounts) - 1, num_stages, trainable_from)
    fixed = fixed_cuts(trainable_from)
    end = fixed[0] if fixed else len(amounts) - 1
    free = num_stages - len(fixed)
    points: list[int] = []
    for stage in range(1, free):
        low = points[-1] + 1 if points else 1
        high = end - (free - stage)
        distance = np.abs(amounts[low : high + 1] - amounts[end] * stage / free)
        points.append(low + int(np.argmin(distance)))
    return (*points, *fixed)

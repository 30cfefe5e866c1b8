"""The least ceiling on memory that some plan keeps, and what is in the way of a lower one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from splitload.agents import balance
from splitload.base.errors import UsageError
from splitload.base.phrases import count_of
from splitload.base.sizes import megabytes
from splitload.envs.split import fewest_stages
from splitload.plan.ceiling import Ceiling

MOST_STAGES = 32  # of plans under a ceiling
STEP_BYTES = 100_000  # what is advised is rounded up to this


class CeilingTooLowError(UsageError):
    """No plan fits under a ceiling.

    Attributes:
        reason: What is in the way.
        least_bytes: A ceiling that would do, with the weights cut as they are; rounded up as it is printed.
    """

    def __init__(self, reason: str, least_bytes: int) -> None:
        super().__init__(f"{reason}; the least is {megabytes(least_bytes)}: give --residency {least_bytes / 1e6:.1f}MB")
        self.reason = reason
        self.least_bytes = least_bytes


class LeastCeiling(NamedTuple):
    """The least ceiling, see `least_ceiling`.

    Attributes:
        ceiling_bytes: It; one byte less, and no plan fits.
        num_stages: How many stages the plan has that fits.
        split_points: Where that is cut.
        largest: Blocks of its stage with the most weights.
    """

    ceiling_bytes: int
    num_stages: int
    split_points: tuple[int, ...]
    largest: tuple[int, int]


def least_ceiling(ceiling: Ceiling, most: int, trainable_from: int | None) -> LeastCeiling:
    """Return the least ceiling for a model, whatever the given one is.

    For each number of stages `balance` makes the most weights of a stage small; the sessions of as many stages, and the
    working memory, come on top.

    Args:
        ceiling: What the model needs.
        most: The most stages.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.
    """
    num_blocks = ceiling.needs.num_blocks
    weights = np.array(ceiling.weights_bytes, dtype=np.float64)
    weights[np.tril_indices(num_blocks + 1)] = np.inf
    found = []
    for count in range(fewest_stages(trainable_from), most + 1):
        points, largest_bytes = balance(weights, count, trainable_from)
        largest = max(pairwise((0, *points, num_blocks)), key=lambda stage: weights[stage])
        least_bytes = int(largest_bytes) + ceiling.arena_bytes + ceiling.sessions_bytes(count)
        found.append(LeastCeiling(least_bytes, count, points, largest))
    return min(found)


def phrase_of(names: Sequence[str], stage: tuple[int, int]) -> str:
    """Return what messages call a stage: the names of its first and last block, or the one where it is a single block.

    Args:
        names: Of all blocks.
        stage: Its half-open range of them.
    """
    start, end = stage
    return " … ".join(dict.fromkeys((names[start], names[end - 1])))


def check_ceiling(ceiling: Ceiling, names: Sequence[str], most: int, trainable_from: int | None) -> None:
    """Make sure that some plan of up to so many stages fits.

    Args:
        ceiling: What memory allows.
        names: Of the blocks.
        most: The most stages.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.

    Raises:
        CeilingTooLowError: If none does.
    """
    if ceiling.counts(most, trainable_from):
        return
    least = least_ceiling(ceiling, most, trainable_from)
    start, end = least.largest
    name = phrase_of(names, least.largest)
    weights, arena = megabytes(ceiling.needs.stage(start, end).mapped_bytes), megabytes(ceiling.arena_bytes)
    sessions = megabytes(ceiling.sessions_bytes(least.num_stages))
    raise CeilingTooLowError(
        f"no plan of up to {count_of(most, 'stage')} fits {megabytes(ceiling.ceiling_bytes)}: '{name}' alone takes "
        f"{weights} of weights, a run {arena} besides, and sessions {sessions}",
        math.ceil(least.ceiling_bytes / STEP_BYTES) * STEP_BYTES,
    )

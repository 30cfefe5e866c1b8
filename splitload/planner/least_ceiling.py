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
from splitload.plan.ceiling import Ceiling

_STEP_BYTES = 100_000  # what is advised is rounded up to this


class LeastCeiling(NamedTuple):
    """The least ceiling.

    Attributes:
        ceiling_bytes: It; one byte less, and no plan fits.
        num_stages: How many stages the plan has that fits.
        largest: Blocks of its stage that needs the most.
    """

    ceiling_bytes: int
    num_stages: int
    largest: tuple[int, int]


def least_ceiling(ceiling: Ceiling, most: int, trainable_from: int | None) -> LeastCeiling:
    """Return the least ceiling for a model, whatever the given one is.

    For each number of stages `balance` makes the largest need small; the sessions of as many stages come on top.

    Args:
        ceiling: What the model needs.
        most: The most stages.
        trainable_from: First trainable block; it and all after it lie in the last stage.
    """
    num_blocks = ceiling.needs.num_blocks
    running = np.array(ceiling.running_bytes, dtype=np.float64)
    running[np.tril_indices(num_blocks + 1)] = np.inf
    found = []
    for count in range(1, most + 1):
        points, largest_bytes = balance(running, count, trainable_from)
        largest = max(pairwise((0, *points, num_blocks)), key=lambda stage: running[stage])
        found.append(LeastCeiling(int(largest_bytes) + ceiling.sessions_bytes(count), count, largest))
    return min(found)


def check_ceiling(ceiling: Ceiling, names: Sequence[str], most: int, trainable_from: int | None) -> None:
    """Make sure that some plan of up to so many stages fits.

    Args:
        ceiling: What memory allows.
        names: Of the blocks.
        most: The most stages.
        trainable_from: First trainable block; it and all after it lie in the last stage.

    Raises:
        UsageError: If none does; it says what is in the way, and the least that would do.
    """
    if ceiling.counts(most, trainable_from):
        return
    least = least_ceiling(ceiling, most, trainable_from)
    start, end = least.largest
    needs = ceiling.needs.stage(start, end)
    name = " … ".join(dict.fromkeys((names[start], names[end - 1])))
    tensors = megabytes(needs.working_bytes + needs.passing_bytes)
    sessions = megabytes(ceiling.sessions_bytes(least.num_stages))
    advised = math.ceil(least.ceiling_bytes / _STEP_BYTES) * _STEP_BYTES / 1e6
    raise UsageError(
        f"no plan of up to {count_of(most, 'stage')} fits {megabytes(ceiling.ceiling_bytes)}: '{name}' alone takes "
        f"{megabytes(needs.mapped_bytes)} of weights and {tensors} of tensors, and sessions {sessions}; the least is "
        f"{advised:.1f} MB: give --residency {advised:.1f}MB"
    )

"""What a wireless link carries while a robot moves about, in steps of half a second: generated, not measured.

The logarithm of a step is near that of the step before (an autoregressive process of the first order), and now and then
the link carries next to nothing for a while. Means are those that Intra-DP (arXiv 2507.05829) has measured indoors and
outdoors; how much a link varies is chosen here.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

STEP_S = 0.5
LEAST_MEGABITS, MOST_MEGABITS = 0.5, 300.0


class Surroundings(NamedTuple):
    """Where a link is.

    Attributes:
        megabits_per_s: Mean of what it carries outside of its bad moments.
        spread: Standard deviation of its logarithm.
        likeness: Correlation of the logarithm with that of the step before.
        failing: How often a bad moment begins, by step.
        failing_steps: How many steps it lasts, on the average.
    """

    megabits_per_s: float
    spread: float
    likeness: float
    failing: float
    failing_steps: float


SURROUNDINGS = {
    "indoors": Surroundings(93, 0.3, 0.9, 0.0, 1),
    "outdoors": Surroundings(73, 0.7, 0.9, 0.01, 4),
}


def trace(where: str, seconds: float, seed: int) -> list[float]:
    """Return what a link carries in each step, in Mbit/s.

    Args:
        where: A name of `SURROUNDINGS`.
        seconds: How long.
        seed: Of chance.
    """
    around, chance = SURROUNDINGS[where], np.random.default_rng(seed)
    level, left, found = float(chance.normal(0, around.spread)), 0, []
    for _ in range(math.ceil(seconds / STEP_S)):
        if left == 0 and chance.random() < around.failing:
            left = int(chance.geometric(1 / around.failing_steps))
        carried = around.megabits_per_s * math.exp(level - around.spread**2 / 2)
        found.append(LEAST_MEGABITS if left else min(max(carried, LEAST_MEGABITS), MOST_MEGABITS))
        left = max(left - 1, 0)
        own = math.sqrt(1 - around.likeness**2) * around.spread
        level = around.likeness * level + float(chance.normal(0, own))
    return found

"""Simulated annealing over split points: the general-purpose search that a learned plan must stand beside.

Source: S. Kirkpatrick, C. D. Gelatt and M. P. Vecchi, "Optimization by simulated annealing", Science 220, 1983.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

from splitload.agents.baselines import fixed_cuts, random_partition

__all__ = ["anneal"]

_SAMPLES = 64  # moves tried out to set the first temperature


def anneal(
    value: Callable[[tuple[int, ...]], float],
    num_blocks: int,
    num_stages: int,
    trainable_from: int | None = None,
    *,
    seed: int = 0,
    steps: int = 20_000,
    near: float = 0.8,
    coldest: float = 1e-2,
    start: tuple[int, ...] | None = None,
) -> tuple[int, ...]:
    """Return the best split points that simulated annealing came across.

    Each step moves one split point: usually by one block, otherwise to any place where there is none. A worse plan is
    taken with the probability `exp(-difference / temperature)`. The temperature begins at the mean difference between
    neighbours, so that a third to a half of all moves are taken at first, and falls by the same factor each step.

    Args:
        value: What to make small, of the k - 1 split points; not negative, and infinite for plans that are not allowed.
        num_blocks: N.
        num_stages: k, from 1 to N.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.
        seed: Of the first plan and of all moves.
        steps: Plans to value, besides a few to set the temperature.
        near: Share of the moves that go by one block.
        coldest: The last temperature, as a share of the first.
        start: The first plan, which is allowed; None where all plans are, and any will do.

    Raises:
        ValueError: If no such partition exists.
    """
    rng = random.Random(seed)  # noqa: S311 - not for secrets
    plan = random_partition(num_blocks, num_stages, trainable_from, seed=seed) if start is None else start
    if fixed := fixed_cuts(trainable_from):  # the blocks before are cut on their own
        found = anneal(
            lambda points: value((*points, *fixed)),
            fixed[0],
            num_stages - 1,
            seed=seed,
            steps=steps,
            near=near,
            coldest=coldest,
            start=plan[:-1],
        )
        return (*found, *fixed)
    last = num_blocks - 1
    if len(plan) in (0, last):
        return plan  # there is no other
    here = value(plan)
    best, lowest = plan, here
    differences = []
    for _ in range(_SAMPLES):  # a walk over neighbours, whatever they are worth
        other = _moved(plan, last, near, rng)
        there = value(other)
        if there == math.inf:
            continue
        differences.append(abs(there - here))
        plan, here = other, there
        if here < lowest:
            best, lowest = plan, here
    temperature = sum(differences) / max(len(differences), 1)
    plan, here = best, lowest
    cooling = coldest ** (1 / max(steps, 1))
    for _ in range(steps):
        other = _moved(plan, last, near, rng)
        there = value(other)
        if there <= here or (temperature > 0 and rng.random() < math.exp((here - there) / temperature)):
            plan, here = other, there
            if here < lowest:
                best, lowest = plan, here
        temperature *= cooling
    return best


def _moved(plan: tuple[int, ...], last: int, near: float, rng: random.Random) -> tuple[int, ...]:
    """Return the plan with one split point elsewhere, from 1 to `last`; some place there is free."""
    while True:
        number = int(rng.random() * len(plan))
        if rng.random() < near:
            place = plan[number] + (1 if rng.random() < 0.5 else -1)
        else:
            place = 1 + int(rng.random() * last)
        if 1 <= place <= last and place not in plan:
            break
    points = [*plan[:number], *plan[number + 1 :], place]
    points.sort()
    return tuple(points)

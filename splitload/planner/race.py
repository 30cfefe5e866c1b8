"""The last part of a search with few measurements: the plans that promise most are loaded as bundles, in turns.

What stages cost alone does not tell all: a device may have one slow processor for loads and inferences, or storage that
reads in large pieces. So its last word has the device.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from splitload.plan.partition import Partition

if TYPE_CHECKING:
    from splitload.planner.search import Search

SHARE = 0.5  # of a budget that is kept for it
RUNNERS = 6  # plans at the start, the whole model and cuts into equal bytes among them
EQUAL_STAGES = (3, 6)  # of those cuts: where what is predicted is wrong, all plans that promise most are wrong alike
FEWEST_ROUNDS, MOST_ROUNDS = 3, 25  # before a plan is given up, and of all
HALVED = (FEWEST_ROUNDS, 5, 7)  # rounds after which the slower half is given up
LEAST_ROUNDS = 2  # that tell who wins, where the budget ends sooner
BEHIND = 0.16  # a plan that is so much behind the best, after `FEWEST_ROUNDS` or more, is given up at once
FORESEEN = 0.05  # predictions that are no more apart say nothing: those of fewer stages, loaded more often, run first
ALIKE = 0.01  # of plans that are no more apart the one with the fewest stages is taken
_SWEEPS = 20  # of a median polish, which settles in a few
Samples = Mapping[Partition, Sequence[float]]


def runners(search: Search, known: Iterable[Partition], found: Iterable[Partition], loads: float) -> list[Partition]:
    """Return what is to race: the whole model where it may be, the best of several numbers of stages, equal bytes.

    Of plans that promise about as much those of fewer stages come first: they take less of the budget, and longer than
    predicted less often.

    Only so many run that `FEWEST_ROUNDS` of all are within the budget: of a plan with one sample little is known.

    Args:
        search: What values plans.
        known: Plans whose stages were measured.
        found: Further plans.
        loads: Stages that may be loaded.
    """
    best: dict[int, Partition] = {}
    for plan in (*known, *found):
        if search.looks_at(plan) and (
            plan.num_stages not in best or search.deciding_s(plan) < search.deciding_s(best[plan.num_stages])
        ):
            best[plan.num_stages] = plan
    fewest = search.fewest.num_stages
    whole = [best.pop(fewest)] if fewest in best else []
    least_s = min(map(search.deciding_s, best.values()), default=0.0)
    promising = sorted(
        best.values(), key=lambda plan: (max(search.deciding_s(plan), (1 + FORESEEN) * least_s), plan.num_stages)
    )
    cuts = (search.equal_bytes(count) for count in EQUAL_STAGES)
    equal = [each for each in cuts if search.looks_at(each)]
    taking_turns = [plan for pair in zip_longest(promising, equal) for plan in pair if plan is not None]
    running: list[Partition] = []
    for plan in dict.fromkeys((*whole, *taking_turns)):
        left = loads - FEWEST_ROUNDS * sum(each.num_stages for each in running)
        if len(running) < RUNNERS and (not running or FEWEST_ROUNDS * plan.num_stages <= left):
            running.append(plan)
    return running


def race(plans: Sequence[Partition], sample: Callable[[Partition], float | None]) -> dict[Partition, list[float]]:
    """Return what plans took, in rounds; the slower half is given up now and then, down to two.

    Samples of one plan scatter by a tenth or two, so that no few of them tell who is the best. What may still be
    measured goes to those that may be it: sequential halving. Source: Karnin, Koren, Somekh, "Almost optimal
    exploration in multi-armed bandits" (2013). Differs: halves are taken after fixed rounds, as a plan of more stages
    takes more of the budget, and one that is far behind goes at once.

    Args:
        plans: What races, at least one.
        sample: Loads a plan once and returns what that took, in seconds; None where no more may be measured.
    """
    taken_s: dict[Partition, list[float]] = {plan: [] for plan in plans}
    running = list(plans)
    for number in range(1, MOST_ROUNDS + 1):
        for plan in running if number % 2 else reversed(running):
            seconds = sample(plan)
            if seconds is None:
                return taken_s
            taken_s[plan].append(seconds)
        if number >= FEWEST_ROUNDS:
            level_s = levelled(taken_s)
            medians_s = {plan: statistics.median(level_s[plan]) for plan in running}
            most = max(2, math.ceil(len(running) / 2)) if number in HALVED else len(running)
            ahead = sorted(running, key=medians_s.__getitem__)[:most]
            running = [
                plan for plan in running if plan in ahead and medians_s[plan] <= (1 + BEHIND) * medians_s[ahead[0]]
            ]
            if len(running) == 1:
                break
    return taken_s


def levelled(taken_s: Samples) -> dict[Partition, list[float]]:
    """Return the samples of plans without what all those of a round have in common, in seconds.

    A machine that is slow for a moment is so for the whole round, and not for a plan. What a plan and what a round do
    are told apart by the median polish of the logarithms (Tukey, Exploratory Data Analysis, 1977); the median round
    does nothing. A failed sample, infinite, is one of its plan alone.

    Args:
        taken_s: Of each plan, one sample a round, the first of all plans of the same one; a plan may end sooner.
    """
    logs = {plan: [math.log(each) for each in samples] for plan, samples in taken_s.items() if samples}
    rounds = [0.0] * max(map(len, logs.values()), default=0)
    for _ in range(_SWEEPS):
        plans = {plan: statistics.median(map(float.__sub__, each, rounds)) for plan, each in logs.items()}
        rest = [
            [each[number] - plans[plan] for plan, each in logs.items() if number < len(each)]
            for number in range(len(rounds))
        ]
        before, rounds = rounds, [statistics.median(list(filter(math.isfinite, each)) or [0.0]) for each in rest]
        middle = statistics.median(rounds or [0.0])
        rounds = [each - middle for each in rounds]
        if rounds == before:
            break
    return {
        plan: [each / math.exp(common) for each, common in zip(samples, rounds, strict=False)]
        for plan, samples in taken_s.items()
    }


def median_error(samples: Sequence[float]) -> float:
    """Return the standard error of the median of samples, by their median absolute deviation.

    Of normal samples it is 1.253 times that of the mean, and their deviation 1.483 times the median absolute one.
    """
    middle = statistics.median(samples)
    return 1.253 * 1.483 * statistics.median(abs(each - middle) for each in samples) / math.sqrt(len(samples))


def winner(taken_s: Samples) -> Partition | None:
    """Return the plan with the least median, of those that differ by `ALIKE` the one with the fewest stages.

    The medians are those of the samples as `levelled` returns them. None where the budget ended the race before two
    plans, or the only one there is, had `LEAST_ROUNDS` samples.
    """
    medians_s = {plan: statistics.median(each) for plan, each in levelled(taken_s).items() if len(each) >= LEAST_ROUNDS}
    if not medians_s or len(medians_s) < min(2, len(taken_s)):
        return None
    best_s = min(medians_s.values())
    alike = [plan for plan, seconds in medians_s.items() if seconds <= (1 + ALIKE) * best_s]
    return min(alike, key=lambda plan: (plan.num_stages, medians_s[plan]))

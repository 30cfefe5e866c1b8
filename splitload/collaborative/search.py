"""The plan by which a device and a server answer soonest: the best of a grid, differential evolution, and steps.

Source of differential evolution: Storn and Price, "Differential evolution – a simple and efficient heuristic for global
optimization over continuous spaces" (1997), as scipy does it. The baselines and the best plan of the grid are in its
first population, so that no plan found is worse than any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitload.collaborative.costs import Link
from splitload.collaborative.energy import Power, energy_j
from splitload.collaborative.levels import Levels
from splitload.collaborative.optimum import Optimum, grid_optimum
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.simulate import simulate

POPULATION = 40
GENERATIONS = 60
MOST_STRIPS = 8
_STEPS = (1, -1, 2, -2, 4, -4, 8, -8)  # rows that a plan is changed by
_EQUAL = 1e-9
_LATE_J, _LATE_W = 1e6, 1e6  # what a late plan is charged, more than any takes, so that less late ones are better


@dataclass(frozen=True)
class Found:
    """What a search came to.

    Attributes:
        plan: The best plan.
        latency_s: Of it, predicted.
        baselines: The plans without sharing and their predicted latency, by name; see `baselines`.
        optimum: The quickest plan of a grid, see `grid_optimum`.
        energy_j: What it takes of the device, predicted; None where that was not asked for.
    """

    plan: SharedPlan
    latency_s: float
    baselines: dict[str, tuple[SharedPlan, float]]
    optimum: Optimum
    energy_j: float | None = None

    @property
    def baselines_s(self) -> dict[str, float]:
        """Predicted latency of the plans without sharing, by name."""
        return {name: seconds for name, (_, seconds) in self.baselines.items()}


@dataclass(frozen=True)
class Saving:
    """That energy counts, as long as inferences are in time.

    Attributes:
        power: What the device draws.
        deadline_s: How long an inference may take; a plan that takes longer is worse than any that does not.
    """

    power: Power
    deadline_s: float


def baselines(costs: SegmentCosts, link: Link) -> dict[str, SharedPlan]:
    """Return the plans that share nothing: the device alone, the server alone, and the best cut between layers."""
    levels = costs.levels
    cuts = [SharedPlan.layer_cut(levels, level) for level in range(1, levels.num_units)]
    found = {"device": SharedPlan.device_only(levels), "server": SharedPlan.layer_cut(levels, 0)}
    if cuts:
        found["layer cut"] = min(cuts, key=lambda plan: costs.latency_s(plan, link))
    return found


def search(
    costs: SegmentCosts,
    link: Link,
    *,
    seed: int = 0,
    begin: Sequence[SharedPlan] = (),
    generations: int = GENERATIONS,
    saving: Saving | None = None,
) -> Found:
    """Return the best plan that is found for a link.

    Args:
        costs: Of a model's segments on both machines.
        link: Between them.
        seed: Of the search.
        begin: Plans to begin with besides, of a link like this one for instance.
        generations: Of differential evolution.
        saving: How energy counts; None where latency does.
    """
    from scipy.optimize import differential_evolution

    levels, known = costs.levels, baselines(costs, link)
    alone = {name: (plan, costs.latency_s(plan, link)) for name, plan in known.items()}
    known_s = min([*(seconds for _, seconds in alone.values()), *(costs.latency_s(plan, link) for plan in begin)])
    optimum = grid_optimum(costs, link, known_s)
    value = _Values(costs, link, saving)
    seeds = [*known.values(), *begin, *(() if optimum.plan is None else (optimum.plan,))]
    coded = [encoded(levels, plan) for plan in seeds][:POPULATION]
    chance = np.random.default_rng(seed)
    count = len(coded[0])
    while len(coded) < POPULATION:  # half of them near the plans that are known, half anywhere
        near = coded[int(chance.integers(len(seeds)))] + chance.normal(0, 0.15, count)
        coded.append(np.clip(near if len(coded) % 2 else chance.random(count), 0, 1))
    found: Any = differential_evolution(
        lambda code: value(decoded(levels, code)), [(0.0, 1.0)] * count, init=np.array(coded), maxiter=generations,
        polish=False, rng=chance, tol=0, atol=0, mutation=(0.3, 0.9), recombination=0.6,
    )  # fmt: skip
    stepped = [_stepped(levels, plan, value) for plan in (*seeds, decoded(levels, found.x))]
    best = min(stepped, key=value)
    taken_j = None if saving is None else energy_j(simulate(levels, best, costs.costs, link), saving.power)
    return Found(best, costs.latency_s(best, link), alone, optimum, taken_j)


class _Values:
    """What plans are worth, the less the better: seconds, or joules; each is simulated once."""

    def __init__(self, costs: SegmentCosts, link: Link, saving: Saving | None) -> None:
        self._costs, self._link, self._saving = costs, link, saving
        self._known: dict[SharedPlan, float] = {}

    def __call__(self, plan: SharedPlan) -> float:
        if plan not in self._known:
            self._known[plan] = self._worth(plan)
        return self._known[plan]

    def _worth(self, plan: SharedPlan) -> float:
        if self._saving is None:
            return self._costs.latency_s(plan, self._link)
        timeline = simulate(self._costs.levels, plan, self._costs.costs, self._link)
        late_s = max(timeline.latency_s - self._saving.deadline_s, 0.0)
        return energy_j(timeline, self._saving.power) + (_LATE_J + _LATE_W * late_s if late_s else 0.0)


def encoded(levels: Levels, plan: SharedPlan) -> np.ndarray[Any, Any]:
    """Return a plan as numbers from 0 to 1, of which `decoded` makes the plan again.

    For each level but 0: whether rows are exchanged there, from one half on; the device's share of the rows; and the
    server's strips.
    """
    count = levels.num_units
    exchanged, shares, strips = np.full(count, 0.25), np.zeros(count), np.zeros(count)
    for at in range(1, len(plan.exchanges)):
        first, last = plan.exchanges[at - 1], plan.exchanges[at]
        shares[first:last] = plan.device_rows[at] / levels.levels[last].num_rows
        exchanged[last - 1], strips[last - 1] = 0.75, (plan.strips[at - 1] - 0.5) / MOST_STRIPS
    return np.concatenate([exchanged, shares, strips])


def decoded(levels: Levels, code: np.ndarray[Any, Any]) -> SharedPlan:
    """Return the plan that numbers from 0 to 1 stand for; see `encoded`."""
    exchanged, shares, strips = np.split(code, 3)
    last = levels.num_units
    chosen = [level for level in range(1, last + 1) if level == last or exchanged[level - 1] >= 0.5]
    rows = [round(float(shares[level - 1]) * levels.levels[level].num_rows) for level in chosen]
    parts = [min(int(strips[level - 1] * MOST_STRIPS) + 1, MOST_STRIPS) for level in chosen]
    return tidied(levels, (0, *chosen), (levels.levels[0].num_rows, *rows), parts)


def tidied(levels: Levels, exchanges: Sequence[int], device_rows: Sequence[int], strips: Sequence[int]) -> SharedPlan:
    """Return a plan without exchanges where the same machine computes everything before and behind.

    Args:
        levels: Of the model.
        exchanges: See `SharedPlan`.
        device_rows: See `SharedPlan`.
        strips: See `SharedPlan`.
    """
    rows = [levels.levels[level].num_rows for level in exchanges]

    def is_idle(at: int) -> bool:
        own, after = device_rows[at], device_rows[at + 1]
        if (own, after) == (rows[at], rows[at + 1]):
            return True
        return own == after == 0 and strips[at - 1] == strips[at] == 1

    kept = [at for at in range(1, len(exchanges)) if at == len(exchanges) - 1 or not is_idle(at)]
    parts = tuple(1 if device_rows[at] == rows[at] else strips[at - 1] for at in kept)
    return SharedPlan(
        (exchanges[0], *(exchanges[at] for at in kept)), (device_rows[0], *(device_rows[at] for at in kept)), parts
    )


def _stepped(levels: Levels, plan: SharedPlan, value: Callable[[SharedPlan], float]) -> SharedPlan:
    """Return the plan that single changes of rows, strips and exchanges lead to, in turns, until none is better."""
    best, best_s = plan, value(plan)
    changes, at, idle = _changes(levels, best), 0, 0
    while idle < len(changes):
        changed = changes[at % len(changes)]
        at, idle = at + 1, idle + 1
        if (seconds := value(changed)) < best_s - _EQUAL:
            best, best_s, idle = changed, seconds, 0
            changes = _changes(levels, best)
    return best


def _changes(levels: Levels, plan: SharedPlan) -> Sequence[SharedPlan]:
    """Return plans that differ from one by a little."""
    exchanges, rows, strips = plan.exchanges, plan.device_rows, plan.strips
    found = []
    for at in range(1, len(exchanges)):
        most = levels.levels[exchanges[at]].num_rows
        for step in _STEPS:
            if 0 <= (own := rows[at] + step) <= most:
                found.append(tidied(levels, exchanges, (*rows[:at], own, *rows[at + 1 :]), strips))
        for step in (1, -1):
            if 1 <= (parts := strips[at - 1] + step) <= MOST_STRIPS:
                found.append(tidied(levels, exchanges, rows, (*strips[: at - 1], parts, *strips[at:])))
        if at < len(exchanges) - 1:
            left_out = (*exchanges[:at], *exchanges[at + 1 :]), (*rows[:at], *rows[at + 1 :])
            found.append(tidied(levels, *left_out, (*strips[: at - 1], *strips[at:])))
            for level in (exchanges[at] - 1, exchanges[at] + 1):
                if exchanges[at - 1] < level < exchanges[at + 1]:
                    own = round(rows[at] / most * levels.levels[level].num_rows)
                    moved = (*exchanges[:at], level, *exchanges[at + 1 :]), (*rows[:at], own, *rows[at + 1 :])
                    found.append(tidied(levels, *moved, strips))
        middle = (exchanges[at - 1] + exchanges[at]) // 2
        if exchanges[at - 1] < middle:
            share = rows[at] / most
            own = round(share * levels.levels[middle].num_rows)
            added = (*exchanges[:at], middle, *exchanges[at:]), (*rows[:at], own, *rows[at:])
            found.append(tidied(levels, *added, (*strips[: at - 1], 1, *strips[at - 1 :])))
    return found

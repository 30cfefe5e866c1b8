"""Search with few measurements: learn on what is known, measure the plan, learn again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from splitload.commands.search import Found, Search
from splitload.devices.estimate import estimate
from splitload.devices.ledger import Ledger
from splitload.partition import Partition
from splitload.profile import Profile

FIRST_STAGES = 8  # of the plan that is measured first: it tells where in the model the time goes


@dataclass(frozen=True, slots=True)
class Refined:
    """What a search within a budget came to.

    Attributes:
        search: The last search, on the profile of everything that was measured.
        found: The best plan among the measured ones, by what was measured.
        profile: That profile; the stages of all measured plans are in its segments.
        plans: Every measured plan, in order.
        complete: Whether it ended because the search asked for nothing new; otherwise the budget ended it.
    """

    search: Search
    found: Found
    profile: Profile
    plans: tuple[Partition, ...]
    complete: bool


def refine(
    prior: Profile,
    ledger: Ledger,
    make_search: Callable[[Profile], Search],
    *,
    serial_share: Callable[[], float] = lambda: 0.0,
    on_plan: Callable[[int, Partition], None] | None = None,
) -> Refined:
    """Measure the whole model and an even cut, then the plan that a search on the estimate finds, until it is known.

    Args:
        prior: What the blocks cost before anything is measured, for example of a simulator.
        ledger: Measures, remembers and counts; its budget must allow the whole model.
        make_search: Returns the search on a profile.
        serial_share: Called once, after the whole model was measured: how parallel loads slow each other down.
        on_plan: Called as `on_plan(loads, partition)` before a plan is measured.
    """
    start = time.perf_counter()
    num_blocks = prior.num_blocks
    whole = Partition(num_blocks)
    plans: list[Partition] = []

    def measure(plan: Partition) -> bool:
        if on_plan is not None:
            on_plan(ledger.loads, plan)
        enough = ledger.measure(plan)
        if all(stage in ledger.costs() for stage in plan.stages()):  # else the budget did not allow a single sample
            plans.append(plan)
        return enough

    complete = measure(whole)
    share = serial_share() if complete else 0.0
    if complete and num_blocks > 1:
        even = make_search(estimate(prior, plans, ledger.costs(), share)).even(FIRST_STAGES)
        complete = even in plans or measure(even)
    while complete:
        plan = make_search(estimate(prior, plans, ledger.costs(), share)).plan()
        if plan in plans:
            break
        complete = measure(plan)
    known = estimate(prior, plans, ledger.costs(), share)
    known = replace(known, segments={**known.segments, **ledger.costs()})
    search = make_search(known)
    return Refined(search, search.chosen(plans, time.perf_counter() - start), known, tuple(plans), complete)

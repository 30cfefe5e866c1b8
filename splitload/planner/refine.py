"""Search with few measurements: learn on a guess, measure the plan, learn again on what is known then."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from splitload.base.errors import UsageError
from splitload.base.phrases import count_of
from splitload.build.residency import ResidencyScheme
from splitload.devices import Measuring
from splitload.devices.estimate import FirstOutput, estimate, with_first_outputs
from splitload.devices.ledger import SAMPLES, Ledger
from splitload.devices.measuring import CUT_STAGES
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import Cost, Profile, Segment
from splitload.planner.found_plan import FoundPlan
from splitload.planner.race import SHARE, race, runners, winner
from splitload.planner.report import Report
from splitload.planner.search import Search

FIRST_STAGES = 8  # of the plan that is measured first: it tells where in the model the time goes
FARTHEST = 3  # blocks by which a cut of the best plan is moved where the search asks for nothing new
_PAIR_LOADS = 5  # of a sample of two parallel loads: the whole model, each half alone, and both together
PATIENCE = 4  # plans measured in a row without a better one, after which the best is taken


@dataclass(frozen=True, slots=True)
class Refined:
    """What a search within a budget came to.

    Attributes:
        search: The last search, on the profile of everything that was measured.
        found: The best plan among the measured ones, by what was measured.
        profile: That profile; the stages of all measured plans are in its segments.
        plans: Every measured plan, in order.
        complete: Whether it ended because nothing better was in sight; otherwise the budget ended it.
        raced: When plans answered that were loaded as bundles at last, in seconds; empty where none were.
    """

    search: Search
    found: FoundPlan
    profile: Profile
    plans: tuple[Partition, ...]
    complete: bool
    raced: Mapping[Partition, Sequence[FirstOutput]]

    def winner(self, search: Search) -> Partition | None:
        """Return who wins the race of those that another search looks at; None where there is nobody, see `winner`."""
        return _first(search, self.raced)


class _Measured:
    """The plans that were measured, and the profile that follows from them.

    Args:
        prior: What the blocks cost before anything is measured.
        ledger: Measures, remembers and counts.
        on_plan: Called as `on_plan(loads, partition)` before a plan is measured.
    """

    def __init__(self, prior: Profile, ledger: Ledger, on_plan: Callable[[int, Partition], None] | None) -> None:
        self.prior = prior
        self.plans: list[Partition] = []
        self.firsts: tuple[Partition, FirstOutput, FirstOutput] | None = None
        self._ledger = ledger
        self._on_plan = on_plan

    def measure(self, plan: Partition) -> bool:
        """Measure a plan; return whether the budget allowed that. The whole model counts even if sampled too seldom."""
        if self._on_plan is not None:
            self._on_plan(self._ledger.loads, plan)
        enough = self._ledger.measure(plan)
        if enough or (plan.num_stages == 1 and self._ledger.loads > 0):
            self.plans.append(plan)
        return enough

    def estimated(self) -> Profile:
        """Return what blocks cost, as far as the measured stages tell."""
        made = estimate(self.prior, self.plans, self._ledger.costs())
        if self.firsts is None:
            return made
        return replace(made, contention=with_first_outputs(self.known(made), *self.firsts))

    def known(self, profile: Profile) -> Profile:
        """Return a profile with the measured stages as its segments."""
        return replace(profile, segments={**profile.segments, **self._ledger.costs()})


def refine(
    prior: Profile,
    ledger: Ledger,
    make_search: Callable[[Profile], Search],
    *,
    trainable_from: int | None = None,
    serial_share: Callable[[], float] = lambda: 0.0,
    first_outputs: Callable[[Partition], tuple[FirstOutput, FirstOutput] | None] | None = None,
    load: Callable[[Partition], FirstOutput | None] | None = None,
    on_plan: Callable[[int, Partition], None] | None = None,
) -> Refined:
    """Measure the whole model and an even cut; then the plan that a search on the estimate finds, again and again.

    A plan that is known already is not measured again: then a cut of the best plan is moved, to where the estimate
    promises most. It ends with the budget, or after `PATIENCE` plans in a row that were no better. At last the best
    plans of several numbers of stages race, see `race`.

    Args:
        prior: What the blocks cost before anything is measured, for example of a simulator.
        ledger: Measures, remembers and counts.
        make_search: Returns the search on a profile.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.
        serial_share: Called once, after the whole model was measured: how parallel loads slow each other down.
        first_outputs: Called once with an even cut into `CUT_STAGES`, if there can be one: when the whole model and the
            cut, loaded as those of a bundle, were there and answered; it returns None where the budget is over.
        load: Loads a plan once as that of a bundle, and returns when it was there and answered; None where the budget
            is over. Without it the plan is taken by what its stages cost.
        on_plan: Called as `on_plan(loads, partition)` before a plan is measured.

    Raises:
        UsageError: If the budget does not allow to measure the whole model once.
    """
    start = time.perf_counter()
    whole = Partition(prior.num_blocks)
    measured = _Measured(prior, ledger, on_plan)
    more = measured.measure(whole)
    if not measured.plans:
        raise UsageError("the budget does not allow a single load of the whole model; give a larger --budget")
    finest = make_search(measured.estimated()).even(FIRST_STAGES)
    if more and finest != whole:
        measured.prior = replace(prior, contention=prior.contention._replace(serial_share=serial_share()))
        more = measured.measure(finest)
        cut = make_search(measured.estimated()).even(CUT_STAGES)
        if more and first_outputs is not None:
            pair = first_outputs(cut)
            measured.firsts = None if pair is None else (cut, *pair)
            more = pair is not None
        more = more and _improved(measured, make_search, trainable_from)
    profile = measured.known(measured.estimated())
    search = make_search(profile)
    best, raced = search.pick(measured.plans), dict[Partition, list[FirstOutput]]()
    if load is not None:
        search.plan()
        raced = _raced(search, runners(search, measured.plans, search.plans.values(), ledger.left), load)
        best = _first(search, raced) or best
    chosen = search.valued(best, search_s=time.perf_counter() - start, found_by="budget")
    return Refined(search, chosen, profile, tuple(measured.plans), more, raced)


def _raced(
    search: Search, plans: Sequence[Partition], load: Callable[[Partition], FirstOutput | None]
) -> dict[Partition, list[FirstOutput]]:
    """Return what plans took in a race; nothing where what decides is not measured so."""
    raced: dict[Partition, list[FirstOutput]] = {}
    if search.deciding_key not in FirstOutput._fields or not plans:
        return raced

    def sample(plan: Partition) -> float | None:
        taken = load(plan)
        if taken is None:
            return None
        raced.setdefault(plan, []).append(taken)
        return _deciding_s(search, taken)

    race(plans, sample)
    return raced


def _first(search: Search, raced: Mapping[Partition, Sequence[FirstOutput]]) -> Partition | None:
    """Return the winner of a race among the plans that a search looks at, see `winner`."""
    return winner({
        plan: [_deciding_s(search, each) for each in taken] for plan, taken in raced.items() if search.looks_at(plan)
    })  # fmt: skip


def _deciding_s(search: Search, taken: FirstOutput) -> float:
    """Return what decides between plans, in seconds, of a plan that was loaded."""
    return float(getattr(taken, search.deciding_key))


def _improved(measured: _Measured, make_search: Callable[[Profile], Search], trainable_from: int | None) -> bool:
    """Measure what promises most until `PATIENCE` plans were no better; return False where the budget ends that."""
    idle = 0
    while idle < PATIENCE:
        now = measured.estimated()
        search = make_search(now)
        best = make_search(measured.known(now)).pick(measured.plans)
        plan = search.plan()
        if plan in measured.plans:
            near = [
                each
                for each in _neighbours(best, trainable_from)
                if each not in measured.plans and search.looks_at(each)
            ]
            if not near:
                break
            plan = min(near, key=search.value_s)
        if not measured.measure(plan):
            return False
        idle = idle + 1 if make_search(measured.known(now)).pick(measured.plans) == best else 0
    return True


def _neighbours(plan: Partition, trainable_from: int | None) -> Iterator[Partition]:
    """Yield the plans that one cut moved by up to `FARTHEST` blocks makes."""
    for number, point in enumerate(plan.split_points):
        if point == trainable_from:
            continue
        bounds = plan.bounds[number], plan.bounds[number + 2]
        for place in range(max(bounds[0] + 1, point - FARTHEST), min(bounds[1], point + FARTHEST + 1)):
            if place != point:
                points = (*plan.split_points[:number], place, *plan.split_points[number + 1 :])
                yield Partition(plan.num_blocks, points)


def refine_on(
    device: Measuring,
    graph: ModelGraph,
    budget: int,
    make_search: Callable[[Profile], Search],
    report: Report,
    *,
    trainable_from: int | None = None,
    feeds: Mapping[str, Any] | None = None,
    scheme: Callable[[Partition], ResidencyScheme | None] = lambda _: None,
) -> tuple[Refined, int]:
    """Search on a device with at most `budget` stage loads; return what it came to, and the loads it took.

    With `scheme`, how much of a plan may be in memory, plans are loaded under it; stages alone are mapped, and take no
    more at a time than the system has.

    Five loads are one sample of how parallel loads slow each other down: the whole model, and its halves alone and
    together. Five more are one of what a call and a cut cost besides: the whole model and an even cut, as of a bundle.
    Not among the loads are the first of each process that measures stages, which starts the runtime, and what
    `splitload train` measures of the plan that was found.

    Raises:
        ModelError: If the model does not run on the feeds.
        UsageError: If the budget does not allow to measure the whole model once.
    """
    prior = device.guess(graph)
    with device.runs(graph, feeds) as runs, report.progress("measuring within the budget", unit="loads") as show:

        def sample(stages: Sequence[Segment]) -> list[Cost]:
            return [cost for _, cost in runs.sample(stages)[0]]

        ledger = Ledger(sample, budget, reserve=int(SHARE * budget))

        def loaded(plan: Partition) -> FirstOutput:
            return runs.first_output(plan, prior.contention.threads, scheme(plan))

        def serial_share() -> float:
            whole = [(0, prior.num_blocks)]
            shares = []
            for _ in range(SAMPLES):
                if not ledger.spend(_PAIR_LOADS):
                    break
                shares.append(runs.sample(whole, pair=True)[1])
            known = [share for share in shares if share is not None]
            return min(max(statistics.median(known), 0.0), 1.0) if known else 0.0

        def first_outputs(cut: Partition) -> tuple[FirstOutput, FirstOutput] | None:
            pair = (Partition(cut.num_blocks), cut)
            if not ledger.spend(SAMPLES * sum(plan.num_stages for plan in pair)):
                return None
            samples = [[loaded(plan) for plan in pair] for _ in range(SAMPLES)]
            whole, first = (FirstOutput.median(each) for each in zip(*samples, strict=True))
            return whole, first

        def load(plan: Partition) -> FirstOutput | None:
            ledger.release()
            show(ledger.loads, budget, f"racing with {count_of(plan.num_stages, 'stage')}")
            return loaded(plan) if ledger.spend(plan.num_stages) else None

        def before_plan(loads: int, plan: Partition) -> None:
            show(loads, budget, f"now {count_of(plan.num_stages, 'stage')}")

        refined = refine(
            prior,
            ledger,
            make_search,
            trainable_from=trainable_from,
            serial_share=serial_share,
            first_outputs=first_outputs,
            load=load,
            on_plan=before_plan,
        )
    return refined, ledger.loads

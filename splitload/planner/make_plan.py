"""How `splitload train` comes to a plan: given, learned in one search or several, or within a budget of loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from splitload.agents.results import Progress
from splitload.base.atomic import write_text
from splitload.base.errors import UsageError
from splitload.base.phrases import count_of, milliseconds
from splitload.base.sizes import megabytes
from splitload.devices import Device, Measuring
from splitload.plan.ceiling import Ceiling
from splitload.plan.crowd import Crowd
from splitload.plan.crowd_ceiling import CrowdCeiling
from splitload.plan.graph import ModelGraph
from splitload.plan.profile import Profile
from splitload.planner.agents import BASELINES, LEARNERS
from splitload.planner.checkpoint_file import Checkpoint
from splitload.planner.crowd_plan import check_holders, crowd_ceiling, crowd_memory
from splitload.planner.curve import curve_csv
from splitload.planner.found_plan import FoundPlan, fixed_plan
from splitload.planner.read_model import profile_on
from splitload.planner.refine import Refined, refine_on
from splitload.planner.report import Report
from splitload.planner.request import TrainRequest
from splitload.planner.residency import MemoryLimit, PlanMemory
from splitload.planner.resume_hint import resume_hint
from splitload.planner.search import Search
from splitload.planner.seeds import SeedRun, best_of, search_seeds


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and where it comes from.

    Attributes:
        found: The plan.
        search: What found it, or would judge it.
        profile: Costs of the model on the device, as far as they were measured.
        seed: Seed of the search that found it.
        runs: The searches of several seeds, if there were several.
        measured_loads: Stage loads that were measured within a budget; None without one.
        refined: What the search within the budget came to; None without one.
        memory: What it needs of memory, where that is limited.
        crowd: What it was made for, where that is a crowd.
    """

    found: FoundPlan
    search: Search
    profile: Profile
    seed: int
    runs: tuple[SeedRun, ...] = ()
    measured_loads: int | None = None
    refined: Refined | None = None
    memory: PlanMemory | None = None
    crowd: CrowdCeiling | None = None

    def residency(self, request: TrainRequest) -> Literal["stage"] | int | None:
        """Return how much of the bundle may be in memory at a time: of a crowd's what one device takes for it."""
        return request.residency if self.crowd is None or self.memory is None else self.memory.peak_bytes


def make_plan(
    request: TrainRequest,
    report: Report,
    device: Device,
    graph: ModelGraph,
    feeds: Mapping[str, Any],
    first_trainable: int | None,
    crowd: Crowd | None = None,
) -> Planned:
    """Return the plan that a request asks for.

    Args:
        request: What is asked for.
        report: Where to show progress.
        device: Where the plan is for, as the request says.
        graph: The model on it.
        feeds: Inputs to measure with.
        first_trainable: First trainable block.
        crowd: What `--crowd` says.

    Raises:
        CeilingTooLowError: If no plan fits under `--residency`.
        KeyboardInterrupt: With a message that says how to go on.
        SplitloadError: If there is no such plan, or it cannot be found.
    """
    most = request.max_stages
    settings: dict[str, Any] = {
        "agent": request.agent,
        "objective": request.objective,
        "max_stages": most,
        "episodes": request.episodes,
        "trainable_from": first_trainable,
    }
    if request.budget is not None and device.measuring is not None:
        return _within_budget(request, report, device.measuring, graph, feeds, settings)
    if crowd is not None:
        workers = crowd_ceiling(crowd, graph)
        check_holders(workers, [block.name for block in graph.blocks], most)
        profile = profile_on(device, graph, report, feeds)
        planned = _searched(request, report, profile, {**settings, "ceiling": workers})
        return replace(planned, memory=crowd_memory(workers, planned.found.partition), crowd=workers)
    if request.residency is None:
        profile = profile_on(device, graph, report, feeds)
        return _searched(request, report, profile, settings)
    limits = MemoryLimit(request.ceiling_bytes, device.measuring, graph, feeds, report)
    ceiling = limits.ceiling(most)
    profile = profile_on(device, graph, report, feeds)
    planned, memory = limits.plan(
        ceiling,
        lambda limit: _searched(request, report, profile, {**settings, "ceiling": limit}),
        lambda each: each.found.partition,
    )
    return replace(planned, memory=memory)


def _within_budget(
    request: TrainRequest,
    report: Report,
    device: Measuring,
    graph: ModelGraph,
    feeds: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> Planned:
    """Return the plan that is found with as many stage loads as `--budget` allows, under `--residency` where given.

    What a run takes besides weights is measured within it as well. Should the plan that is found take more than was
    thought, the first of those that raced and still fit is taken; where none does, another one is searched.
    """
    assert request.budget is not None  # noqa: S101 - the caller has looked
    budget, seed, trainable_from = request.budget, request.seed, settings["trainable_from"]
    limits = MemoryLimit(request.ceiling_bytes, device, graph, feeds, report)
    ceiling = limits.ceiling(settings["max_stages"]) if request.residency is not None else None
    left = budget - 2 * limits.loads  # that plan's working memory is measured too, and it has no more stages
    if left < 1:
        raise UsageError(
            f"under --residency {limits.loads} stages are loaded twice before a search: give more --budget"
        )
    refined: Refined | None = None
    loads = 0

    def search(limit: Ceiling | None) -> Planned:
        nonlocal refined, loads
        if refined is None:
            refined, loads = refine_on(
                device,
                graph,
                left,
                lambda profile: Search(profile, seed=seed, ceiling=limit, **settings),
                report,
                trainable_from=trainable_from,
                feeds=feeds,
                scheme=lambda plan: limits.scheme(plan, limit),
            )
            return Planned(refined.found, refined.search, refined.profile, seed, refined=refined)
        again = Search(refined.profile, seed=seed, ceiling=limit, **settings)
        first = refined.winner(again)
        if first is None:
            found = again.run()
        else:
            found = again.valued(first, search_s=refined.found.search_s, found_by="budget")
        return Planned(found, again, refined.profile, seed, refined=refined)

    if request.residency is None:
        return replace(search(None), measured_loads=loads)
    planned, memory = limits.plan(ceiling, search, lambda each: each.found.partition)
    return replace(planned, memory=memory, measured_loads=loads + limits.loads)


def _searched(request: TrainRequest, report: Report, profile: Profile, settings: Mapping[str, Any]) -> Planned:
    """Return the plan that is given or searched, by one search or by several.

    Args:
        request: What is asked for.
        report: Where to show progress.
        profile: Costs of the model on the device.
        settings: The arguments of each `Search`, but for its profile and seed.
    """
    search = Search(profile, seed=request.seed, **settings)
    if request.split_points is not None:
        return Planned(_given(request.split_points, profile, settings), search, profile, request.seed)
    if request.seeds == 1:
        return Planned(_learned(request, search, report), search, profile, request.seed)
    runs = list[SeedRun]()
    try:
        best = search_seeds(request, settings, profile, report, runs)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(resume_hint(request, best_of(runs).partition if runs else None)) from None
    search = Search(profile, seed=best.seed, **settings)
    found = search.valued(best.partition, search_s=best.search_s, episodes=best.episodes, learned=best.learned)
    return Planned(found, search, profile, best.seed, tuple(runs))


def _given(points: Sequence[int], profile: Profile, settings: Mapping[str, Any]) -> FoundPlan:
    """Return the plan of `--split-points`."""
    partition, most, ceiling = (
        fixed_plan(profile, points, settings["trainable_from"]),
        settings["max_stages"],
        settings.get("ceiling"),
    )
    if most is not None and partition.num_stages > most:
        count = count_of(partition.num_stages, "stage")
        raise UsageError(f"--split-points make {count}, --max-stages is {most}; leave one of the two out")
    if ceiling is not None and not ceiling.allows(partition):
        needed, allowed = megabytes(ceiling.peak_bytes(list(partition.stages()))), megabytes(ceiling.ceiling_bytes)
        limit = f"{ceiling.limit_phrase} {allowed}"
        raise UsageError(f"--split-points make stages that need {needed}, {limit}; cut elsewhere")
    return FoundPlan(partition, "given", {"learned": None, **dict.fromkeys(BASELINES)}, 0, 0.0, None)


def _learned(request: TrainRequest, search: Search, report: Report) -> FoundPlan:
    """Search once, with a checkpoint."""
    kept = None
    if request.agent in LEARNERS:
        file = None if request.checkpoint is None else Path(request.checkpoint)
        kept = Checkpoint(file, search.identity, request.cache, report.note)
    with report.progress("search", unit="episodes") as show:

        def after_episode(now: Progress) -> None:
            if now.episode % 100 == 0:
                value_s = search.value_s_from(now.best_value_s, now.num_stages)
                best = f"{now.num_stages} stages: best {milliseconds(value_s)}"
                show(now.episode, now.episodes, f"{best}, reward {now.reward:.2g}, ε {now.epsilon:.0%}")

        try:
            found = search.run(after_episode, kept)
        except KeyboardInterrupt:
            resumes = kept is not None and kept.saved
            raise KeyboardInterrupt(resume_hint(request, search.best, resumes=resumes)) from None
    if request.curve is not None and search.learned is not None:
        write_text(Path(request.curve), curve_csv(search.learned, request.objective, search.value_s_from), "curve")
    return found

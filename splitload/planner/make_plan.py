"""How `splitload train` comes to a plan: given, learned in one search or several, or within a budget of loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.agents.results import Progress
from splitload.base.atomic import write_text
from splitload.base.errors import UsageError
from splitload.base.phrases import count_of, milliseconds
from splitload.base.sizes import megabytes
from splitload.devices import Device
from splitload.plan.ceiling import Ceiling
from splitload.plan.graph import ModelGraph
from splitload.plan.memory import MemoryNeeds, memory_needs
from splitload.plan.profile import Profile
from splitload.planner.agents import BASELINES, LEARNERS
from splitload.planner.checkpoint_file import Checkpoint
from splitload.planner.curve import curve_csv
from splitload.planner.least_ceiling import check_ceiling
from splitload.planner.read_model import profile_on
from splitload.planner.refine import Refined, refine_on
from splitload.planner.report import Report
from splitload.planner.request import TrainRequest
from splitload.planner.resume_hint import resume_hint
from splitload.planner.search import MOST_STAGES, FoundPlan, Search, fixed_plan
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
        needs: What its stages need of memory, where `--residency` limits that.
    """

    found: FoundPlan
    search: Search
    profile: Profile
    seed: int
    runs: tuple[SeedRun, ...] = ()
    measured_loads: int | None = None
    refined: Refined | None = None
    needs: MemoryNeeds | None = None


def make_plan(
    request: TrainRequest,
    report: Report,
    device: Device,
    graph: ModelGraph,
    feeds: Mapping[str, Any],
    first_trainable: int | None,
) -> Planned:
    """Return the plan that a request asks for.

    Args:
        request: What is asked for.
        report: Where to show progress.
        device: Where the plan is for, as the request says.
        graph: The model on it.
        feeds: Inputs to measure with.
        first_trainable: First trainable block.

    Raises:
        KeyboardInterrupt: With a message that says how to go on.
        SplitloadError: If there is no such plan, or it cannot be found.
    """
    most = request.max_stages
    if most is not None and first_trainable is not None:
        most -= 1  # what is trained takes one of the stages that are allowed
    settings: dict[str, Any] = {
        "agent": request.agent,
        "objective": request.objective,
        "max_stages": most,
        "episodes": request.episodes,
        "trainable_from": first_trainable,
    }
    seed, needs = request.seed, None
    if request.residency is not None:
        needs = memory_needs(graph)
        settings["ceiling"] = _ceiling(request, graph, needs, first_trainable, most)
    if request.budget is not None and device.measuring is not None:
        refined, loads = refine_on(
            device.measuring,
            graph,
            request.budget,
            lambda profile: Search(profile, seed=seed, **settings),
            report,
            trainable_from=first_trainable,
            feeds=feeds,
        )
        return Planned(refined.found, refined.search, refined.profile, seed, measured_loads=loads, refined=refined)
    profile = profile_on(device, graph, report, feeds)
    search = Search(profile, seed=seed, **settings)
    if request.split_points is not None:
        given = _given(request.split_points, profile, first_trainable, most, settings.get("ceiling"))
        return Planned(given, search, profile, seed, needs=needs)
    if request.seeds > 1:
        runs = list[SeedRun]()
        try:
            best = search_seeds(request, settings, profile, report, runs)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(resume_hint(request, best_of(runs).partition if runs else None)) from None
        search = Search(profile, seed=best.seed, **settings)
        found = search.valued(best.partition, search_s=best.search_s, episodes=best.episodes)
        return Planned(found, search, profile, best.seed, tuple(runs), needs=needs)
    return Planned(_learned(request, search, report), search, profile, seed, needs=needs)


def _ceiling(
    request: TrainRequest, graph: ModelGraph, needs: MemoryNeeds, first_trainable: int | None, most: int | None
) -> Ceiling | None:
    """Return the ceiling that is asked for, once some plan is known to fit; None where no size limits it.

    Raises:
        UsageError: If none fits.
    """
    if request.ceiling_bytes is None:
        return None
    ceiling = Ceiling(needs, request.ceiling_bytes, first_trainable)
    limit = len(graph.blocks) if first_trainable is None else first_trainable + 1
    check_ceiling(ceiling, [block.name for block in graph.blocks], min(most or MOST_STAGES, limit), first_trainable)
    return ceiling


def _given(
    points: Sequence[int],
    profile: Profile,
    first_trainable: int | None,
    most: int | None,
    ceiling: Ceiling | None,
) -> FoundPlan:
    """Return the plan of `--split-points`."""
    partition = fixed_plan(profile, points, first_trainable)
    if most is not None and partition.num_stages > most:
        count = count_of(partition.num_stages, "stage")
        raise UsageError(f"--split-points make {count}, --max-stages is {most}; leave one of the two out")
    if ceiling is not None and not ceiling.allows(partition):
        needed, allowed = megabytes(ceiling.needs.peak_bytes(partition)), megabytes(ceiling.ceiling_bytes)
        raise UsageError(f"--split-points make stages that need {needed}, --residency allows {allowed}; cut elsewhere")
    return FoundPlan(partition, {"learned": None, **dict.fromkeys(BASELINES)}, 0, 0.0, None)


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

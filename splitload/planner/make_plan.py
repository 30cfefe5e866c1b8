"""How `splitload train` comes to a plan: given, learned in one search or several, or within a budget of loads."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.agents.results import Progress
from splitload.base.atomic import write_text
from splitload.base.errors import UsageError
from splitload.base.phrases import count_of, milliseconds
from splitload.bundle.replace import check_output_file
from splitload.devices import Device
from splitload.devices.host import HostDevice
from splitload.plan.graph import DEFAULT_MAX_BLOCKS, ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.checkpoint_file import Checkpoint
from splitload.planner.curve import curve_csv
from splitload.planner.refine import Refined, refine_on_host
from splitload.planner.report import Report
from splitload.planner.request import LEARNERS
from splitload.planner.search import BASELINES, Found, Search, fixed_plan
from splitload.planner.seeds import SeedRun, best_of, check_seeds, search_seeds
from splitload.planner.write_bundle import profile_on


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan and where it comes from.

    Attributes:
        found: The plan.
        search: What found it, or would judge it.
        profile: Costs of the model on the device, as far as they were measured.
        seed: Of the search.
        runs: The searches of several seeds, if there were several.
        measured_loads: Stage loads that were measured within a budget; None without one.
        refined: What the search within the budget came to; None without one.
    """

    found: Found
    search: Search
    profile: Profile
    seed: int
    runs: tuple[SeedRun, ...] = ()
    measured_loads: int | None = None
    refined: Refined | None = None


def make_plan(
    options: argparse.Namespace,
    report: Report,
    cache: Path,
    device: Device,
    graph: ModelGraph,
    feeds: Mapping[str, Any],
    first_trainable: int | None,
) -> Planned:
    """Return the plan that the options of `splitload train` ask for.

    Args:
        options: Of `splitload train`, checked by `check_search`.
        report: Where to show progress.
        cache: The user's cache folder.
        device: Where the plan is for.
        graph: The model on it.
        feeds: Inputs to measure with.
        first_trainable: First trainable block.

    Raises:
        KeyboardInterrupt: With a message that says how to go on.
        SplitloadError: If there is no such plan, or it cannot be found.
    """
    settings = {
        "agent": options.agent,
        "objective": options.objective,
        "max_stages": options.max_stages,
        "episodes": options.episodes,
        "trainable_from": first_trainable,
    }
    seed = options.seed
    if options.budget is not None and isinstance(device, HostDevice):
        refined, loads = refine_on_host(
            device,
            graph,
            options.budget,
            lambda profile: Search(profile, seed=seed, **settings),
            report,
            trainable_from=first_trainable,
            feeds=feeds,
        )
        return Planned(refined.found, refined.search, refined.profile, seed, measured_loads=loads, refined=refined)
    profile = profile_on(device, graph, report, feeds)
    search = Search(profile, seed=seed, **settings)
    if options.split_points is not None:
        return Planned(_given(options, profile, first_trainable), search, profile, seed)
    if options.seeds > 1:
        runs = list[SeedRun]()
        try:
            best = search_seeds(options, settings, profile, report, runs)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(resume_hint(options, best_of(runs).partition if runs else None)) from None
        search = Search(profile, seed=best.seed, **settings)
        found = search.found(best.partition, best.search_s, best.episodes)
        return Planned(found, search, profile, best.seed, tuple(runs))
    return Planned(_learned(options, search, report, cache), search, profile, seed)


def check_search(options: argparse.Namespace, device: Device, target: Path) -> None:
    """Make sure that the options about searching fit each other, and that what they write can be written.

    Args:
        options: Of `splitload train`.
        device: What the search is for.
        target: Where the bundle goes.

    Raises:
        UsageError: If they do not.
        OutputError: If a file cannot be written.
        SplitloadError: If there is no cluster.
    """
    check_seeds(options)
    if options.budget is not None:
        if not isinstance(device, HostDevice):
            raise UsageError(f"--budget counts stage loads that are measured, and on '{options.device}' none are")
        for what, given in (
            ("--split-points", options.split_points is not None),
            ("--seeds", options.seeds > 1),
            ("--checkpoint", options.checkpoint is not None),
            ("--curve", options.curve is not None),
        ):
            if given:
                raise UsageError(f"--budget searches anew after each measurement: leave out {what} or --budget")
    for what, file in (("checkpoint", options.checkpoint), ("curve", options.curve)):
        if file is None:
            continue
        if file == "":
            raise UsageError(f"--{what} needs a name")
        if options.split_points is not None:
            raise UsageError(f"--{what} is of a search, and with --split-points there is none")
        if options.agent not in LEARNERS:
            raise UsageError(f"--{what} is of an agent that learns, {' or '.join(LEARNERS)}; {options.agent} does not")
        if options.seeds > 1:
            raise UsageError(f"--{what} is of one search, and --seeds makes {options.seeds}: leave one of them out")
        path = Path(file)
        if path.absolute() == target.absolute():
            raise UsageError(f"--{what} '{file}' is where the bundle goes; give it another name")
        check_output_file(path, what)
    files = [Path(file).absolute() for file in (options.checkpoint, options.curve) if file is not None]
    if len(set(files)) < len(files):
        raise UsageError(f"--curve and --checkpoint are both '{options.curve}'; give one of them another name")


def _given(options: argparse.Namespace, profile: Profile, first_trainable: int | None) -> Found:
    """Return the plan of `--split-points`."""
    partition = fixed_plan(profile, options.split_points, first_trainable)
    if options.max_stages is not None and partition.num_stages > options.max_stages:
        count = count_of(partition.num_stages, "stage")
        raise UsageError(f"--split-points make {count}, --max-stages is {options.max_stages}; leave one of the two out")
    return Found(partition, {"learned": None, **dict.fromkeys(BASELINES)}, 0, 0.0, None)


def _learned(options: argparse.Namespace, search: Search, report: Report, cache: Path) -> Found:
    """Search once, with a checkpoint."""
    kept = None
    if options.agent in LEARNERS:
        file = None if options.checkpoint is None else Path(options.checkpoint)
        kept = Checkpoint(file, search.identity, cache, report.note)
    with report.progress("search", unit="episodes") as show:

        def after_episode(now: Progress) -> None:
            if now.episode % 100 == 0:
                value_s = search.learned_value_s(now.best_value_s, now.num_stages)
                best = f"{now.num_stages} stages: best {milliseconds(value_s)}"
                show(now.episode, now.episodes, f"{best}, reward {now.reward:.2g}, ε {now.epsilon:.0%}")

        try:
            found = search.run(after_episode, kept)
        except KeyboardInterrupt:
            resumes = kept is not None and kept.saved
            raise KeyboardInterrupt(resume_hint(options, search.best, resumes=resumes)) from None
    if options.curve is not None and search.learned is not None:
        write_text(Path(options.curve), curve_csv(search.learned, options.objective, search.learned_value_s), "curve")
    return found


def resume_hint(options: argparse.Namespace, best: Partition | None, *, resumes: bool = False) -> str:
    """Return what to do with the best plan so far after an interrupt; and that the search resumes, if it does."""
    if best is None:
        return "interrupted before a first plan was found; nothing was written"
    points = ",".join(map(str, best.split_points))
    words = ["splitload", "train", options.model, "--device", options.device, f"--split-points={points}"]
    words.append(f"--objective={options.objective}")
    if options.max_blocks != DEFAULT_MAX_BLOCKS:
        words.append(f"--max-blocks={options.max_blocks}")
    if options.trainable:
        words.append(f"--trainable={options.trainable}")
    if options.new_head is not None:
        words.append(f"--new-head={options.new_head}")
    words += [f"--input={pair}" for pair in options.input]
    if options.output:
        words += ["-o", options.output]
    plan = f"The best plan so far has {count_of(best.num_stages, 'stage')}"
    what = "the same command goes on with the search" if resumes else "nothing was written"
    return f"interrupted; {what}. {plan}; to build it: {shlex.join(words)}"

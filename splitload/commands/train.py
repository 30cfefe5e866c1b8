"""`splitload train`: search a partition on a device, then write the bundle."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitload.base.errors import SplitloadError, UsageError
from splitload.build.agreement import Agreement
from splitload.build.assemble import Plan
from splitload.bundle.manifest import Training
from splitload.bundle.write import check_target
from splitload.commands.console import Console
from splitload.commands.plan_report import show_plan, show_search
from splitload.devices import Device, open_device
from splitload.devices.host import HostDevice
from splitload.frontends.onnx import Source
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.gain import RUNS, Gain, measure_gain
from splitload.planner.make_plan import check_search, make_plan, resume_hint
from splitload.planner.trial import Trial, choose_measured, try_cut
from splitload.planner.write_bundle import native_left_out, notes_of, read_divided, write_bundle
from splitload.runtime.inputs import read_feeds
from splitload.training.division import Division


def train(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Search, write the bundle, show both; return what `--json` prints.

    Raises:
        SplitloadError: Whatever went wrong; nothing half-written is left.
    """
    if options.output == "":
        raise UsageError("-o needs a name, for example -o model.splitload")
    target = Path(options.output or f"{_stem(options.model)}.splitload")
    check_target(target, "give another place with -o")
    if options.new_head is not None and options.trainable is None:
        options.trainable = "1"  # a fresh layer is to be trained
    if options.trainable is not None and options.max_stages == 1:
        raise UsageError("--trainable needs two stages, one frozen and one trained; give --max-stages 2 or more")
    feeds = read_feeds(options.input)
    device = open_device(options.device, cache)
    check_search(options, device, target)
    source, graph, division = read_divided(options, console, cache, device, feeds)
    feeds = {**source.examples, **feeds}
    left_out = native_left_out(device, graph)
    if left_out is not None:
        console.note(left_out)
    first_trainable = None if graph.tail_start is None else len(graph.blocks) - 1
    if len(graph.blocks) == 1:
        console.note(f"{graph.name} cannot be cut anywhere: it becomes one stage")
    elif options.max_stages is not None and options.max_stages > len(graph.blocks):
        console.note(f"{graph.name} has {len(graph.blocks)} blocks, and so at most as many stages")
    searched = options if first_trainable is None else _without_tail(options)
    planned = make_plan(searched, console, cache, device, graph, feeds, first_trainable)
    search, found, profile = planned.search, planned.found, planned.profile
    show_search(console, planned)
    if division is not None:
        console.print(f"to be trained on the device: {division}")
    trial = None
    if isinstance(device, HostDevice) and options.split_points is None:
        try:
            threads = profile.contention.threads
            found, trial = choose_measured(search, found, source, graph, threads, console, cache, feeds=feeds)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(resume_hint(options, found.partition)) from None
    if first_trainable is not None:
        found = search.apart(found, first_trainable)
    stages = profile
    notes = notes_of(
        profile,
        found.partition,
        trial,
        search.plans if first_trainable is None else search.plans_apart(first_trainable),
        agent=options.agent if options.split_points is None else "given",
        objective=options.objective,
        trainable=options.trainable,
        new_head=options.new_head,
        seed=planned.seed,
        episodes=found.episodes,
        native_left_out=left_out,
    )
    try:
        plan = Plan(graph, found.partition, profile.contention.threads, first_trainable)
        agreements: list[Agreement] = []
        replaced = target.exists()
        manifest = write_bundle(
            target,
            source,
            plan,
            console,
            cache,
            device=device.name,
            notes=notes,
            feeds=feeds,
            trainable=options.trainable,
            on_compared=agreements.append,
        )
    except KeyboardInterrupt as interrupt:  # which tells if the bundle is there
        raise KeyboardInterrupt(str(interrupt) or resume_hint(options, found.partition)) from None
    if note := agreements[0].note():
        console.note(note)
    gain = None
    try:
        with console.status("measuring the stages and the time to first output in fresh processes"):
            if isinstance(device, HostDevice) and planned.measured_loads is None:  # else they are in the profile
                stages = device.measure(graph, found.partition.stages(), feeds=feeds)
        gain = _gain(device, source, plan, profile, target, trial, console, cache, feeds)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted while measuring; the bundle '{target}' is complete") from None
    except (SplitloadError, OSError) as error:
        console.note(f"the bundle '{target}' is complete, but could not be measured: {error}")
    measured = gain.here["ttfo_s"] if gain is not None and gain.source == "measured" else None
    result = {
        "model": options.model,
        "device": options.device,
        "objective": options.objective,
        "plan": {
            "num_stages": found.partition.num_stages,
            "split_points": list(found.partition.split_points),
            "num_blocks": profile.num_blocks,
        },
        "value": {**found.values_s, "exact_bound": found.exact_bound_s},
        "ttfo_s": {"predicted": notes["predicted_ttfo_s"], "measured": measured},
        "gain": None if gain is None else gain.to_json(),
        "trial": notes["trial"],
        "trained": None if division is None else _trained(division, manifest.training),
        "episodes": found.episodes,
        "search_s": found.search_s,
        "agreement": agreements[0].to_json(),
        "bundle": str(target),
        "replaced": replaced,
    }
    if planned.runs:
        result["seeds"] = [run.to_json() for run in planned.runs]
    if planned.measured_loads is not None:
        result["measured_loads"] = planned.measured_loads
    show_plan(console, graph, profile, stages, found, gain, result)
    return result


def _gain(
    device: Device,
    source: Source,
    plan: Plan,
    profile: Profile,
    target: Path,
    trial: Trial | None,
    console: Console,
    cache: Path,
    feeds: Mapping[str, Any],
) -> Gain:
    """Return what the bundle gains: measured on this machine, otherwise by the profile.

    A trial that chose the plan says what the cut makes of it; a plan that was given, or is cut where training begins
    besides, is tried for that alone.
    """
    num_stages = plan.partition.num_stages
    if not isinstance(device, HostDevice):
        here, one = (profile.schedule(each) for each in (plan.partition, Partition(profile.num_blocks)))
        ratio = one.ttfo_s / here.ttfo_s if num_stages > 1 and here.ttfo_s > 0 else None
        return Gain(here.source, num_stages, {"ttfo_s": here.ttfo_s}, {"ttfo_s": one.ttfo_s}, cut_ratio=ratio)
    if num_stages > 1 and (trial is None or plan.trainable_from is not None):
        trial = try_cut(source, replace(plan, trainable_from=None), console, cache, feeds=feeds, runs=RUNS)
    cut_ratio = None if num_stages == 1 or trial is None else trial.ratio
    return measure_gain(source, plan.graph, target, num_stages, feeds, cut_ratio)


def _without_tail(options: argparse.Namespace) -> argparse.Namespace:
    """Return the options of the search: what is trained takes one of the stages that are allowed."""
    if options.max_stages is None:
        return options
    return argparse.Namespace(**{**vars(options), "max_stages": options.max_stages - 1})


def _trained(division: Division, training: Training | None) -> dict[str, Any]:
    """Return what `--json` prints of what is trained; without steps or output where it cannot be."""
    layers = [
        {"name": each.name, "weights": list(each.weights), "num_weights": each.num_weights} for each in division.layers
    ]
    return {
        "layers": layers,
        "num_weights": sum(each.num_weights for each in division.layers),
        "output": None if training is None else training.output,
        "output_kind": None if training is None else training.output_kind,
        "output_doubt": None if training is None else training.output_doubt,
        "steps": [] if training is None else [[each.loss, each.optimizer] for each in training.steps],
    }


def _stem(model: str) -> str:
    """Return a file name for a MODEL word."""
    if model.startswith("zoo:"):
        return model.removeprefix("zoo:")
    path = Path(model)
    return path.stem if path.suffix == ".onnx" else re.sub(r"[^A-Za-z0-9._-]", "-", model.rpartition(":")[2])

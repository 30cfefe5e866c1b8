"""`splitload train`: search a partition on a device, then write the bundle."""

from __future__ import annotations

import argparse
import re
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitload.bench import Arm, run_arms
from splitload.commands.console import Console, count_of, milliseconds, shortened
from splitload.commands.planning import check_search, make_plan, resume_hint
from splitload.commands.plans import notes_of, read_divided, write_bundle
from splitload.commands.search import Found
from splitload.commands.trial import choose_measured
from splitload.deploy.agreement import Agreement
from splitload.deploy.build import Plan
from splitload.deploy.write import check_target
from splitload.devices import open_device
from splitload.devices.host import HostDevice
from splitload.errors import SplitloadError, UsageError
from splitload.frontends.division import Division
from splitload.graph import ModelGraph
from splitload.inputs import read_feeds
from splitload.manifest import Training
from splitload.profile import Profile

TTFO_RUNS = 5


def train(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Search, write the bundle, show both; return what `--json` prints.

    Raises:
        SplitloadError: Whatever went wrong; nothing half-written is left.
    """
    if options.output == "":
        raise UsageError("-o needs a name, for example -o model.splitload")
    target = Path(options.output or f"{_stem(options.model)}.splitload")
    check_target(target)
    if options.new_head is not None and options.trainable is None:
        options.trainable = "1"  # a fresh layer is to be trained
    if options.trainable is not None and options.max_stages == 1:
        raise UsageError("--trainable needs two stages, one frozen and one trained; give --max-stages 2 or more")
    feeds = read_feeds(options.input)
    device = open_device(options.device, cache)
    check_search(options, device)
    source, graph, division = read_divided(options, console, cache, device, feeds)
    feeds = {**source.examples, **feeds}
    first_trainable = None if graph.tail_start is None else len(graph.blocks) - 1
    if len(graph.blocks) == 1:
        console.note(f"{graph.name} cannot be cut anywhere: it becomes one stage")
    elif options.max_stages is not None and options.max_stages > len(graph.blocks):
        console.note(f"{graph.name} has {len(graph.blocks)} blocks, and so at most as many stages")
    searched = options if first_trainable is None else _without_tail(options)
    planned = make_plan(searched, console, cache, device, graph, feeds, first_trainable)
    search, found, profile = planned.search, planned.found, planned.profile
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
        agent=options.agent if options.split_points is None else "given",
        objective=options.objective,
        trainable=options.trainable,
        new_head=options.new_head,
        seed=planned.seed,
        episodes=found.episodes,
    )
    try:
        plan = Plan(graph, found.partition, profile.contention.threads, first_trainable)
        agreements: list[Agreement] = []
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
    measured = None
    if isinstance(device, HostDevice):
        try:
            with console.status("measuring the stages and the time to first output in fresh processes"):
                if planned.measured_loads is None:  # else they are in the profile
                    stages = device.measure(graph, found.partition.stages(), feeds=feeds)
                measured = _measured_ttfo_s(target, graph, feeds)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted while measuring; the bundle '{target}' is complete") from None
        except (SplitloadError, OSError) as error:
            console.note(f"the bundle '{target}' is complete, but could not be measured: {error}")
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
        "trial": notes["trial"],
        "trained": None if division is None else _trained(division, manifest.training),
        "episodes": found.episodes,
        "search_s": found.search_s,
        "agreement": agreements[0].to_json(),
        "bundle": str(target),
    }
    if planned.runs:
        result["seeds"] = [run.to_json() for run in planned.runs]
    if planned.measured_loads is not None:
        result["measured_loads"] = planned.measured_loads
    _show(console, graph, profile, stages, found, result)
    return result


def _measured_ttfo_s(target: Path, graph: ModelGraph, feeds: Mapping[str, Any]) -> float:
    """Return the median time to first output of the bundle over fresh processes, in seconds."""
    samples = run_arms([Arm("splitload", target)], graph.input_tensors(), feeds, TTFO_RUNS)["splitload"]
    return statistics.median(sample["ttfo_s"] for sample in samples)


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


def _show(
    console: Console,
    graph: ModelGraph,
    profile: Profile,
    stages: Profile,
    found: Found,
    result: Mapping[str, Any],
) -> None:
    """Print the plan with the costs in `stages`, what other agents would have found, and the schedule."""
    predicted = "simulated" if profile.source == "simulated" else "predicted"
    rows = []
    for number, (start, end) in enumerate(found.partition.stages()):
        cost = stages.cost(start, end)
        nodes = graph.node_range(start, end)
        rows.append(
            (
                str(number + 1),
                f"{start}-{end - 1}" if end - start > 1 else str(start),
                shortened(graph.segment_name(*nodes)),
                f"{graph.segment_weights_bytes(*nodes) / 1e6:.1f}",
                f"{cost.load_s * 1e3:.2f}",
                f"{cost.first_inference_s * 1e3:.2f}",
            )
        )
    count = count_of(found.partition.num_stages, "stage")
    console.table(
        f"{graph.name} on {profile.device}: {profile.num_blocks} blocks in {count}; each alone, {profile.source}",
        ("stage", "blocks", "part of the model", "MB", "load ms", "infer ms"),
        rows,
    )
    what = "largest stage load" if result["objective"] == "balance" else "time to first output"
    values = {name.replace("_", " "): value for name, value in found.values_s.items() if value is not None}
    if values:
        exact, bound = found.values_s.get("exact"), found.exact_bound_s
        if exact and bound is not None and bound < exact:
            over = f"at most {(exact / bound - 1):.1%} above the optimum" if bound > 0 else "optimum unknown"
            values = {f"best known, {over}" if name == "exact" else name: value for name, value in values.items()}
        proved = exact is None or bound is None or bound >= exact
        console.table(
            f"{what}, {count} loading in parallel, {predicted}",
            ("plan", "ms", "÷ exact" if proved else "÷ best known"),
            [(name, f"{value * 1e3:.2f}", f"{value / exact:.3f}" if exact else "") for name, value in values.items()],
        )
    if trial := result["trial"]:
        split, whole = (milliseconds(trial[f"{name}_ttfo_s"]) for name in ("split", "whole"))
        console.print(
            f"{count_of(trial['num_stages'], 'stage')} answered after {split}, the whole model after {whole} "
            f"(measured, medians of {trial['runs']} fresh processes)"
        )
        if found.partition.num_stages == 1:
            console.print("one stage, as splitting did not pay")
    elif found.two_stages_s is not None:
        what = "have loaded" if result["objective"] == "balance" else "answer"
        two = milliseconds(found.two_stages_s)
        console.print(f"one stage, as splitting would not pay: the best two would {what} after {two} ({predicted})")
    console.drawing(profile.schedule(found.partition))
    measured = result["ttfo_s"]["measured"]
    line = f"time to first output: {milliseconds(result['ttfo_s']['predicted'])} {predicted}"
    if measured is not None:
        line += f", {milliseconds(measured)} measured (median of {TTFO_RUNS} fresh processes, warm page cache)"
    console.print(line)
    trained = result["trained"]
    if trained is not None and trained["output_kind"] is not None:
        console.print(f"the output '{trained['output']}' gives {trained['output_kind']}, by which its loss is taken")
    console.print(f"bundle: {result['bundle']}")

"""What commands share: a model profiled on a device, and a plan written as a bundle."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitload.bundle import Manifest, TensorSpec, Variant
from splitload.commands.console import Console
from splitload.deploy.build import Plan, build_bundle
from splitload.deploy.tune import tune
from splitload.devices import Device
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.graph import ModelGraph
from splitload.partition import Partition
from splitload.profile import Profile


def prepare(
    options: argparse.Namespace, console: Console, cache: Path, device: Device, feeds: Mapping[str, Any]
) -> tuple[Source, ModelGraph, Profile]:
    """Return the model, its graph and its profile on the device, with progress shown.

    Raises:
        SplitloadError: If the model cannot be read or measured.
    """
    source, graph = read_model(options, console, cache, device, feeds)
    return source, graph, profile_on(device, graph, console, feeds)


def read_model(
    options: argparse.Namespace, console: Console, cache: Path, device: Device, feeds: Mapping[str, Any]
) -> tuple[Source, ModelGraph]:
    """Return the model and its graph for the device.

    Raises:
        SplitloadError: If it cannot be read.
    """
    with console.status(f"reading {options.model}"):
        source = open_source(options.model, cache)
    with console.status(f"optimising {source.name}"):
        graph = load_graph(source, device.graph_kind, cache, max_blocks=options.max_blocks, feeds=feeds)
    return source, graph


def profile_on(device: Device, graph: ModelGraph, console: Console, feeds: Mapping[str, Any]) -> Profile:
    """Return the profile of a graph on the device.

    Raises:
        SplitloadError: If it cannot be measured.
    """
    with console.progress(f"profiling on {device.name}", unit="passes") as show:
        return device.profile(graph, feeds=feeds, on_progress=show)


def with_portable(plan: Plan, source: Source, console: Console, cache: Path) -> list[Plan]:
    """Return what a bundle is made of: the plan, and where its graph is native a one-stage plan that runs anywhere."""
    if plan.graph.kind == "portable":
        return [plan]
    with console.status("adding the portable graph for other machines"):
        portable = load_graph(source, "portable", cache, max_blocks=plan.graph.max_blocks)
    trainable_from = None if plan.trainable_from is None else 0
    return [plan, Plan(portable, Partition(len(portable.blocks)), 1, trainable_from)]


def write_bundle(
    target: Path,
    source: Source,
    plan: Plan,
    console: Console,
    cache: Path,
    *,
    device: str,
    notes: Mapping[str, Any],
    feeds: Mapping[str, Any] | None = None,
    specialized_from: Manifest | None = None,
) -> None:
    """Write the bundle: the plan, and where its graph is native a portable one-stage plan that runs anywhere.

    A native plan runs on this machine, so how its stages are loaded is chosen by measuring them on `feeds`.
    With `specialized_from` the source is that bundle, and the new one names the same model.

    Raises:
        SplitloadError: If it cannot be written.
    """
    plans = with_portable(plan, source, console, cache)
    if specialized_from is not None:
        sha256, size_bytes = specialized_from.model_sha256, specialized_from.model_bytes
        plans = [
            replace(each, graph=replace(each.graph, source_sha256=sha256, source_bytes=size_bytes)) for each in plans
        ]
    with console.progress("writing the bundle", unit="stages") as show:

        def choose(folder: Path, variant: Variant) -> Variant:
            inputs = [TensorSpec(each.name, each.type, each.shape) for each in plan.graph.input_tensors()]
            return tune(
                folder,
                variant,
                inputs,
                feeds or {},
                lambda done, total: show(done, total, "measuring how to load them"),
            )

        build_bundle(
            target,
            plans,
            device=device,
            notes=notes,
            on_progress=show,
            choose=choose if plan.graph.kind == "native" else None,
        )

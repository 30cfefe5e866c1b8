"""A model word becomes a graph for a device, and that graph a profile."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitload.devices import Device
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.graph import DEFAULT_MAX_BLOCKS, ModelGraph
from splitload.plan.profile import Profile
from splitload.planner.report import Report
from splitload.training.division import Division
from splitload.training.head import with_new_head
from splitload.training.opened import load_opened


def read_and_profile(
    model: str, device: Device, report: Report, cache: Path, feeds: Mapping[str, Any], *, max_blocks: int
) -> tuple[Source, ModelGraph, Profile]:
    """Return the model, its graph and its profile on the device; arguments as of `read_model`.

    Raises:
        SplitloadError: If the model cannot be read or measured.
    """
    source, graph, _ = read_model(model, device, report, cache, feeds, max_blocks=max_blocks)
    return source, graph, profile_on(device, graph, report, {**source.examples, **feeds})


def read_model(
    model: str,
    device: Device,
    report: Report,
    cache: Path,
    feeds: Mapping[str, Any],
    *,
    max_blocks: int = DEFAULT_MAX_BLOCKS,
    max_weight_bytes: int | None = None,
    trainable: str | None = None,
    new_head: int | None = None,
) -> tuple[Source, ModelGraph, Division | None]:
    """Return the model, its graph for the device, and where it is divided for training.

    Args:
        model: An .onnx file, zoo:NAME or package.module:factory.
        device: What it is optimised for.
        report: Where to tell what is done.
        cache: The user's cache folder.
        feeds: Values of inputs, by their names; what is missing is made up.
        max_blocks: Most blocks that it is divided into.
        max_weight_bytes: The most bytes of one weight; larger ones are cut where they can be. None to leave them whole.
        trainable: Layers that stay together in the last stage, a count or a pattern; None where none is trained.
        new_head: Classes of a fresh layer in the place of the last linear one; None for the one that is there.

    Raises:
        SplitloadError: If it cannot be read.
    """
    with report.status(f"reading {model}"):
        source = open_source(model, cache)
        feeds = {**source.examples, **feeds}
        if new_head is not None:
            source = with_new_head(source, new_head, cache, feeds=feeds)
    if source.defaults:
        report.note(
            f"the default value of {', '.join(source.defaults)} is built in, the bundle has no such input; to give "
            "another one, make it an input without a default"
        )
    where = "" if device.runtime.is_here else f" on {device.runtime.words}"
    with report.status(f"optimising {source.name}{where}"):
        if trainable is None:
            graph = load_graph(
                source,
                device.graph_kind,
                cache,
                max_blocks=max_blocks,
                max_weight_bytes=max_weight_bytes,
                feeds=feeds,
                runtime=device.runtime,
            )
            return source, graph, None
        opened = load_opened(
            source,
            device.graph_kind,
            cache,
            trainable,
            max_blocks=max_blocks,
            max_weight_bytes=max_weight_bytes,
            feeds=feeds,
            runtime=device.runtime,
        )
    return source, opened.graph, opened.division


def profile_on(device: Device, graph: ModelGraph, report: Report, feeds: Mapping[str, Any]) -> Profile:
    """Return the profile of a graph on the device.

    Raises:
        SplitloadError: If it cannot be measured.
    """
    with report.progress(f"profiling on {device.name}", unit="passes") as show:
        return device.profile(graph, feeds=feeds, on_progress=show)


def native_left_out(device: Device, graph: ModelGraph) -> str | None:
    """Return why a bundle gets no native part on a device that runs one, for people; None where it gets one."""
    if graph.kind == device.graph_kind:
        return None
    return (
        f"{graph.name} gets no native part, which would take about as much room as the model once more: its weights "
        "differ too much from the portable graph's. onnxruntime optimises the portable graph when it loads it"
    )

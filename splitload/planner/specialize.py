"""`splitload specialize`: derive the architecture-specific part of a bundle anew, on the device it landed on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from splitload.base.errors import BundleError, UsageError
from splitload.base.phrases import count_of
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import VariantPlan
from splitload.bundle.manifest import FORMAT, Manifest
from splitload.bundle.read import read_manifest
from splitload.bundle.replace import check_place
from splitload.bundle.write import check_target
from splitload.devices import Device, Measuring, open_device
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.joined import join_portable
from splitload.graphs.runtime import GraphRuntime
from splitload.graphs.stage_store import StageStore
from splitload.plan.ceiling import Ceiling, most_of_a_weight
from splitload.plan.graph import ModelGraph
from splitload.plan.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from splitload.plan.partition import Partition
from splitload.planner.agents import DEFAULT_AGENT
from splitload.planner.found_plan import FoundPlan
from splitload.planner.read_model import native_left_out, profile_on
from splitload.planner.report import Report
from splitload.planner.residency import MemoryLimit
from splitload.planner.search import Search
from splitload.planner.trial import choose_measured
from splitload.planner.write_bundle import notes_of, write_bundle
from splitload.training.opened import load_opened


@dataclass(frozen=True, slots=True)
class Specialized:
    """A bundle whose part for this machine was made anew.

    Attributes:
        partition: Its plan here.
        files_bytes: Bytes of all its files.
        model_bytes: Those of the model it was made of.
        cpu: The kind of processor that the part is for.
    """

    partition: Partition
    files_bytes: int
    model_bytes: int
    cpu: str

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints of it."""
        return {
            "num_stages": self.partition.num_stages,
            "split_points": list(self.partition.split_points),
            "files_bytes": self.files_bytes,
            "model_bytes": self.model_bytes,
            "cpu": self.cpu,
        }


def specialize(
    target: Path, feeds: Mapping[str, Any], report: Report, cache: Path, *, add: bool, device: str = "host"
) -> Specialized:
    """Optimise, cut and measure the bundle's portable graph on this machine, or on another one.

    The bundle is replaced as a whole or not at all; its last stage stays if it is trained, with all personalized tails.
    Native parts for other machines are dropped, or with `add` kept; the portable graph is kept, cut as it was, with
    its weights in the new native files, so that the bundle still loads elsewhere, and is for the device it was made
    for. The search is the one of `train` with its defaults, by the objective the bundle was made with. A model that
    gets no native part has its portable graph cut for this machine. What the bundle says of memory holds for the new
    plan as well, and for the portable one beside it.

    Args:
        target: The bundle.
        feeds: Inputs to measure with; made up where they are missing.
        report: Where to tell what is done.
        cache: The user's cache folder.
        add: Whether native parts for other machines are kept.
        device: The DEVICE word of what it is for.

    Raises:
        UsageError: If nothing is measured on the device.
        SplitloadError: If the bundle is damaged, cannot be run there, or not be written; with `add` also if the model
            gets no native part that could be added.
    """
    manifest = read_manifest(target, "hashes")
    if manifest.training is None:
        check_target(target)
    else:  # personalized tails are carried over
        check_place(target, FORMAT)
    known = {spec.name for spec in manifest.inputs}
    if unknown := sorted(feeds.keys() - known):
        raise UsageError(f"the model has no input {unknown}; it has {sorted(known)}")
    made_for = open_device(device, cache)
    if made_for.measuring is None:
        raise UsageError(
            f"times of '{made_for.name}' are computed, and a part is made by measuring; name a served device"
        )
    trained = _trained(target, manifest)
    with scratch_folder(target.absolute().parent, f".{target.name}.") as folder, StageStore(cache) as store:
        source = Source(manifest.model, *join_portable(target, manifest, folder), manifest.model_bytes)
        most_bytes = most_of_a_weight(_residency(manifest))
        graph = _graph(target, source, trained, report, cache, feeds, most_bytes, made_for.runtime)
        left_out = native_left_out(made_for, graph)
        if left_out is not None:
            if add:
                raise BundleError(f"{left_out}; nothing was added to '{target}'")
            report.note(left_out)
            if manifest.device != made_for.name:
                stages = count_of(len(manifest.variants[-1].stages), "stage")
                report.note(f"its plan for {manifest.device}, {stages}, is replaced by one for {made_for.name}")
        plan, notes = _planned(
            made_for, made_for.measuring, manifest, source, graph, left_out, report, cache, feeds, store
        )
        write_bundle(
            target,
            source,
            plan,
            report,
            cache,
            device=made_for.name if left_out else manifest.device,
            tuner=made_for.measuring,
            notes=notes,
            feeds=feeds,
            trainable=trained,
            specialized_from=manifest,
            keep_other_natives=add,
            store=store,
        )
    files_bytes = sum(file.bytes for file in read_manifest(target).files())
    return Specialized(plan.partition, files_bytes, manifest.model_bytes, made_for.measuring.environment["cpu"])


def _trained(target: Path, manifest: Manifest) -> str | list[str] | None:
    """Return what of a bundle is trained: a pattern of layers, or the names of weights; None where nothing is."""
    spec = manifest.plan.get("trainable")
    if spec is not None and not isinstance(spec, str):
        raise BundleError(f"'{target}': plan.trainable must be a pattern or null, it is {spec!r}")
    return spec if manifest.training is None else [weight.name for weight in manifest.training.weights]


def _graph(
    target: Path,
    source: Source,
    trained: str | list[str] | None,
    report: Report,
    cache: Path,
    feeds: Mapping[str, Any],
    max_weight_bytes: int | None,
    runtime: GraphRuntime,
) -> ModelGraph:
    """Return the bundle's graph for a runtime."""
    where = "" if runtime.is_here else f" on {runtime.words}"
    with report.status(f"optimising {source.name}{where}"):
        if trained is None:
            return load_graph(source, "native", cache, feeds=feeds, max_weight_bytes=max_weight_bytes, runtime=runtime)
        try:
            return load_opened(
                source, "native", cache, trained, feeds=feeds, max_weight_bytes=max_weight_bytes, runtime=runtime
            ).graph
        except UsageError as error:  # which nobody asked for on this command line
            raise BundleError(f"'{target}': its training does not fit the model: {error}") from error


def _residency(manifest: Manifest) -> Literal["stage"] | int | None:
    """Return how much of a bundle may be in memory, as the variant that is preferred says; None for all of it."""
    return manifest.variants[0].residency


def _planned(
    device: Device,
    measuring: Measuring,
    manifest: Manifest,
    source: Source,
    graph: ModelGraph,
    left_out: str | None,
    report: Report,
    cache: Path,
    feeds: Mapping[str, Any],
    store: StageStore,
) -> tuple[VariantPlan, dict[str, Any]]:
    """Return the plan for a device, and what the manifest says of how it was found."""
    first_trainable = graph.first_trainable
    profile = profile_on(device, graph, report, feeds)
    named = manifest.plan.get("objective")
    objective = named if named in tuple(OBJECTIVES) else DEFAULT_OBJECTIVE

    def searched(ceiling: Ceiling | None) -> tuple[Search, FoundPlan]:
        with report.status("searching a plan"):
            search = Search(profile, objective=objective, trainable_from=first_trainable, ceiling=ceiling)
            return search, search.run()

    threads, trial, scheme = profile.contention.threads, None, None
    if (residency := _residency(manifest)) is None:
        search, found = searched(None)
        found, trial = choose_measured(
            measuring, search, found, source, graph, threads, report, cache, feeds=feeds, store=store
        )
    else:
        limits = MemoryLimit(residency if isinstance(residency, int) else None, measuring, graph, feeds, report)
        (search, found), memory = limits.plan(limits.ceiling(None), searched, lambda each: each[1].partition)
        scheme = memory.scheme(residency)
    notes = notes_of(
        profile,
        found.partition,
        trial,
        search.plans,
        agent=DEFAULT_AGENT,
        found_by=found.found_by,
        values_s=dict(found.values_s),
        objective=objective,
        native_left_out=left_out,
        **{name: manifest.plan.get(name) for name in ("trainable", "new_head")},
    )
    return VariantPlan(graph, found.partition, threads, first_trainable, scheme), notes

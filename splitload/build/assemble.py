"""Builds a bundle: a partition of a graph becomes stage files and a manifest."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.base.errors import ModelError, OutputError, PartitionError
from splitload.base.machine import cpu_architecture
from splitload.base.regular import copy_checked
from splitload.build.residency import ResidencyScheme
from splitload.bundle.delivery import CarriedTails
from splitload.bundle.manifest import File, Manifest, Metadata, Needs, StageEntry, Training, Variant
from splitload.bundle.write import write_manifest, writing
from splitload.graphs.canaries import needs_of
from splitload.graphs.describe import describe
from splitload.graphs.here import HERE
from splitload.graphs.layout import channel_block
from splitload.graphs.observe import one_line
from splitload.graphs.runtime import GraphRuntime, Refusal
from splitload.graphs.shared import StoredWeights
from splitload.graphs.stage_store import StageStore
from splitload.graphs.stages import StageWriter
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition

MAX_METADATA_BYTES = 4 << 20  # the manifest is read at every start


@dataclass(frozen=True, slots=True)
class VariantPlan:
    """What one variant of a bundle is made of.

    Attributes:
        graph: The graph that is cut.
        partition: Where, in its blocks.
        threads: Loading threads of the execution scheme.
        trainable_from: First trainable block, or None; the last stage starts with it.
        scheme: How much of it may be in memory; None for all. With it the variant has weights of its own: those of
            another one would have to be put into order in every run, and come and go with files that others map.
    """

    graph: ModelGraph
    partition: Partition
    threads: int
    trainable_from: int | None = None
    scheme: ResidencyScheme | None = None


@dataclass(frozen=True, slots=True)
class Steps:
    """What is done beside writing stages, in this order; what is None is left out.

    Attributes:
        on_progress: Called as `on_progress(stages_written, num_stages)`.
        on_note: Called with what the user should know: why a native variant has no canary.
        choose: Given the folder and the first variant in it, returns that variant with its execution scheme.
        with_others: Given the folder and the variants in it, puts the files of others there and returns all.
        add_training: Given the folder and the trainable last stage, writes what trains it there, if that can be, and
            says what it wrote.
        check: Called with the folder and the manifest when all is written; what it raises leaves the target as it was.
        canary: Whether native variants get one; a bundle that is measured where it was made for, and gone, needs none.
    """

    on_progress: Callable[[int, int], None] | None = None
    on_note: Callable[[str], None] | None = None
    choose: Callable[[Path, Variant], Variant] | None = None
    with_others: Callable[[Path, Sequence[Variant]], Sequence[Variant]] | None = None
    add_training: Callable[[Path, StageEntry], Training | None] | None = None
    check: Callable[[Path, Manifest], None] | None = None
    canary: bool = True


def build_bundle(
    target: Path,
    plans: Sequence[VariantPlan],
    *,
    device: str,
    notes: Mapping[str, Any] | None = None,
    metadata: Metadata | None = None,
    model_data: Sequence[str] = (),
    steps: Steps | None = None,
    keep_tail: StageEntry | None = None,
    store: StageStore | None = None,
    runtime: GraphRuntime = HERE,
) -> Manifest:
    """Write the bundle `target`, whole or not at all, and return its manifest.

    Args:
        target: The bundle's folder; a bundle that stands there is replaced.
        plans: A variant each, in order of preference; the last must be of a portable graph.
        device: Name of the device the partition was found for.
        notes: How it was found, kept in the manifest's `plan`.
        metadata: What the source model says of itself, where that is known.
        model_data: External data files of the source model, relative to its folder.
        steps: What is done besides.
        keep_tail: Trainable last stage of the bundle at `target`, which the new one ends with byte for byte, so that
            its personalized tails are carried over.
        store: Where stage files that were made before are taken from, and new ones kept.
        runtime: What a native graph was made for; its stages are opened there, and the manifest names it.

    Raises:
        ModelError: If a stage cannot be loaded, or the metadata is more than a manifest holds.
        OutputError: If it cannot be written.
        PartitionError: If a partition does not fit its graph, or cuts trainable blocks off the last stage.
    """
    steps = steps or Steps()
    for plan in plans:
        _check(plan)
    _check_metadata(metadata)
    tails = None if keep_tail is None else CarriedTails(target, "specialize the bundle")
    with tails or contextlib.nullcontext(), writing(target, tails) as folder:
        holding = [
            plans[0],
            *(plan for plan in plans[1:] if plan.scheme is not None),
        ]  # others share most of the weights
        _check_room(target, sum(map(_size_bytes, holding)), shutil.disk_usage(folder).free)
        if keep_tail is not None:
            for file in filter(None, (keep_tail.graph, keep_tail.weights)):
                copy_checked(target / file.name, folder / file.name, file)
        variants = _write_variants(plans, folder, keep_tail, store, steps, runtime)
        if steps.choose is not None:
            variants[0] = steps.choose(folder, variants[0])
        if steps.with_others is not None:
            variants = list(steps.with_others(folder, variants))
        tail = variants[0].stages[-1]
        training = steps.add_training(folder, tail) if steps.add_training is not None and tail.trainable else None
        described = _described(plans[0].graph, device, notes, metadata, model_data)
        manifest = described._replace(variants=tuple(variants), training=training)
        write_manifest(folder, manifest)
        if tails is not None:
            tails.take(folder, tail)
        if steps.check is not None:
            steps.check(folder, manifest)
    return manifest


def _check_metadata(metadata: Metadata | None) -> None:
    described_bytes = 0 if metadata is None else len(repr(metadata).encode())
    if described_bytes > MAX_METADATA_BYTES:
        raise ModelError(
            f"the model's metadata has {described_bytes >> 20} MiB, a bundle keeps at most {MAX_METADATA_BYTES >> 20}; "
            "take entries out of its metadata_props and ship them as a file"
        )


def _check_room(target: Path, needed_bytes: int, free_bytes: int) -> None:
    if needed_bytes > free_bytes:
        raise OutputError(
            f"'{target.name}' needs {needed_bytes >> 20} MiB and {free_bytes >> 20} MiB are free in '{target.parent}'; "
            "make room or choose another -o"
        )


def _described(
    graph: ModelGraph,
    device: str,
    notes: Mapping[str, Any] | None,
    metadata: Metadata | None,
    model_data: Sequence[str],
) -> Manifest:
    """Return what a manifest says of the model and of what made the bundle, without variants."""
    import onnxruntime as ort

    import splitload

    manifest = describe(
        graph,
        cpu=cpu_architecture(),
        device=device,
        created_with={"splitload": splitload.__version__, "onnxruntime": ort.__version__},
        plan=notes or {},
    )
    return manifest._replace(metadata=metadata, model_data=tuple(model_data) or None)


def _write_variants(
    plans: Sequence[VariantPlan],
    folder: Path,
    tail: StageEntry | None,
    store: StageStore | None,
    steps: Steps,
    runtime: GraphRuntime,
) -> list[Variant]:
    """Write the stages of every plan; return the variants.

    Args:
        plans: A variant each; those behind a native one read weights out of its files, unless they have a scheme.
        folder: Where the files go.
        tail: The last stage of all variants, where it is there already.
        store: See `build_bundle`.
        steps: Who is told.
        runtime: See `build_bundle`.
    """
    variants: list[Variant] = []
    done, total = 0, sum(plan.partition.num_stages for plan in plans)
    for plan in plans:
        stored = None
        if variants and plans[0].graph.kind == "native" and plan.scheme is None:
            files = [file.name for file in _files(variants[0])]
            stored = StoredWeights(plans[0].graph, folder, files, channel_block(runtime))
        maker = runtime if plan.graph.kind == "native" else HERE
        writer = StageWriter(plan.graph, stored=stored, store=store, runtime=maker)
        stages = []
        makers = set[int]()  # a stage that makes weights would do so in every run, were it not made anew
        for number, (start, end) in enumerate(plan.partition.stages()):
            if tail is not None and plan.trainable_from == start:  # all variants end with one and the same tail
                stages.append(_same_stage(tail, plan.graph, start, end))
            else:
                stage, makes = _write_stage(writer, plan, number, start, end, folder, maker)
                stages.append(stage)
                if makes:
                    makers.add(number)
            done += 1
            if steps.on_progress is not None:
                steps.on_progress(done, total)
        if plan.trainable_from is not None:
            tail = stages[-1]
        variant = _variant(plan, stages, makers, folder, steps, maker)
        variants.append(variant if plan.scheme is None else plan.scheme.of(variant))
    return variants


def _variant(
    plan: VariantPlan,
    stages: list[StageEntry],
    makers: set[int],
    folder: Path,
    steps: Steps,
    runtime: GraphRuntime,
) -> Variant:
    """Return the variant of some stages; those that share weights and make none are not made anew when they run."""
    native = plan.graph.kind == "native"
    variant = Variant(
        kind=plan.graph.kind,
        cpu=runtime.cpu if native else None,
        runtime=runtime.version if native else None,
        threads=plan.threads,
        overlap=True,
        stages=tuple(stages),
        needs=_needs(plan.graph, folder, steps.on_note, runtime) if native and steps.canary else None,
    )
    for number in variant.sharing() - makers:
        stages[number] = stages[number]._replace(upgrade=False)
    return variant._replace(stages=tuple(stages))


def _needs(graph: ModelGraph, folder: Path, on_note: Callable[[str], None] | None, runtime: GraphRuntime) -> Needs:
    """Return what a native graph needs, and write its canary."""
    needs, reason = needs_of(graph, folder, runtime)
    if reason is not None and on_note is not None:
        on_note(
            f"the native graph needs onnxruntime {runtime.version} and {runtime.cpu} exactly, as it has no "
            f"canary that could show that others run it alike: {reason}"
        )
    return needs


def _check(plan: VariantPlan) -> None:
    """Raise unless the partition fits its graph and keeps trainable blocks in the last stage."""
    if plan.partition.num_blocks != len(plan.graph.blocks):
        raise PartitionError(
            f"the partition is of {plan.partition.num_blocks} blocks, the model has {len(plan.graph.blocks)}"
        )
    last_start = plan.partition.bounds[-2]
    if plan.trainable_from is not None and plan.trainable_from != last_start:
        raise PartitionError(
            f"block {plan.trainable_from} is trainable, but the last stage starts at block {last_start}; "
            "it must hold all trainable blocks and nothing else"
        )


def _write_stage(
    writer: StageWriter, plan: VariantPlan, number: int, start: int, end: int, folder: Path, runtime: GraphRuntime
) -> tuple[StageEntry, bool]:
    """Write a stage and see that it loads; return its entry, and whether it makes weights when it runs."""
    nodes = plan.graph.node_range(start, end)
    files = writer.write(*nodes, folder, f"{plan.graph.kind}-{number:02}")
    try:
        runtime.open(folder / files.graph.name, optimize=files.optimize_first, prepack=files.prepack)
    except Refusal as error:
        raise ModelError(
            f"stage {number + 1} of '{plan.graph.name}' does not load ({one_line(error)}); cut elsewhere, for example "
            "with --split-points"
        ) from error
    trainable = plan.trainable_from is not None and end == plan.partition.num_blocks
    return files.entry(plan.graph.segment_name(*nodes), (start, end), trainable=trainable), files.makes


def _same_stage(last: StageEntry, graph: ModelGraph, start: int, end: int) -> StageEntry:
    """Return a last stage as that of another graph of the model, whose blocks `[start, end)` it stands for.

    Raises:
        ModelError: If that hands it something else.
    """
    given = {*graph.boundary(graph.blocks[start].start), *graph.inputs}
    if missing := set(last.inputs) - given:
        raise ModelError(f"the last stage reads {sorted(missing)}, which the {graph.kind} graph does not give it")
    return last._replace(blocks=(start, end))


def _files(variant: Variant) -> Iterator[File]:
    """Yield the files that hold the weights of a variant."""
    for stage in variant.stages:
        yield stage.weights or stage.graph


def _size_bytes(plan: VariantPlan) -> int:
    """Estimate what a variant takes on disk: weights with their padding, and a little for each node."""
    weights = sum(
        plan.graph.segment_weights_bytes(*plan.graph.node_range(start, end)) for start, end in plan.partition.stages()
    )
    return weights + 4096 * len(plan.graph.weights_bytes) + 1024 * len(plan.graph.nodes)

"""Keeps what a bundle has for other machines when it is made anew for this one: native variants, and portable cuts."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from splitload.base.errors import BundleError
from splitload.base.pieces import copy_file
from splitload.bundle.manifest import Manifest, StageEntry, Variant
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition


def keep_natives(source: Path, manifest: Manifest, folder: Path, made: Sequence[Variant]) -> tuple[Variant, ...]:
    """Return the variants of a new bundle with the native ones of the old one between, whose files are put there.

    A native variant of which there is a new one, for the same processor and runtime, goes; all others stay. With them a
    bundle holds their weights once more each: their layouts differ.

    Args:
        source: The old bundle.
        manifest: What it says.
        folder: The new bundle, in the making.
        made: Its variants: the native one of this machine, if there is one, and the portable one last.

    Raises:
        BundleError: If a variant cannot be kept.
        OSError: If a file cannot be read or written.
    """
    *natives, portable = made
    replaced = {(variant.cpu, variant.runtime) for variant in natives}
    kept = []
    for variant in manifest.variants:
        if variant.kind == "native" and (variant.cpu, variant.runtime) not in replaced:
            stages = variant.stages
            if stages[-1].trainable:  # all variants end with one and the same tail
                stages = (*stages[:-1], _same_tail(stages[-1], made[0].stages[-1]))
            kept.append(variant._replace(stages=stages))
    files = {file.name for file in manifest._replace(variants=tuple(kept), training=None).files()} if kept else set()
    there = {path.name for path in folder.iterdir()}
    for variant in kept:
        if missing := {name for stage in variant.stages for name in stage.shares} - files - there:
            raise BundleError(f"the native variant for {variant.cpu} reads weights of {sorted(missing)}, which goes")
    for name in files - there:
        place = (source / name).resolve()
        try:
            (folder / name).hardlink_to(place)
        except OSError:  # a file system without links
            copy_file(place, folder / name)
    return (*natives, *kept, portable)


def same_cuts(graph: ModelGraph, variant: Variant) -> Partition | None:
    """Return the partition of a graph whose stages exchange what those of a variant of the same model do.

    Args:
        graph: The graph, divided into blocks.
        variant: What was cut before.

    Returns:
        None where the graph has no such cuts between its blocks.
    """
    starts = {frozenset(graph.boundary(block.start)): number for number, block in enumerate(graph.blocks)}
    points = []
    for number in range(1, len(variant.stages)):
        made = {spec.name for stage in variant.stages[:number] for spec in stage.outputs}
        read = {name for stage in variant.stages[number:] for name in stage.inputs}
        points.append(starts.get(frozenset(made & read), 0))
    if any(point >= later for point, later in pairwise((0, *points))):
        return None
    return Partition(len(graph.blocks), tuple(points))


def _same_tail(old: StageEntry, new: StageEntry) -> StageEntry:
    """Return the new last stage in the place of the old one.

    Raises:
        BundleError: If it reads something else.
    """
    if set(old.inputs) != set(new.inputs):
        raise BundleError(
            f"the last stage reads {list(new.inputs)} here and {list(old.inputs)} in a variant for another machine; "
            "specialize without --add"
        )
    return new._replace(blocks=old.blocks)

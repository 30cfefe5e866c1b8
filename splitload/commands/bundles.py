"""`splitload inspect` and `splitload verify`: what a bundle holds, and whether it is whole."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitload.bundle import read_manifest
from splitload.commands.console import Console, count_of, shortened
from splitload.verification import verify as check


def inspect(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the manifest; return what `--json` prints.

    Raises:
        BundleError: If it is no bundle.
    """
    manifest = read_manifest(Path(options.bundle), "sizes")
    versions = ", ".join(f"{name} {version}" for name, version in manifest.created_with.items())
    console.print(f"{manifest.model} ({manifest.model_bytes / 1e6:.1f} MB, SHA-256 {manifest.model_sha256[:16]}…)")
    console.print(f"made for {manifest.device} on {manifest.cpu} with {versions}")
    for what, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            console.print(f"{what} {spec.name}: {spec.type} {_shape(spec.shape)}")
    for variant in manifest.variants:
        where = "any machine" if variant.cpu is None else f"{variant.cpu}, onnxruntime {variant.runtime}"
        console.table(
            f"{variant.kind} graph for {where}; {count_of(variant.threads, 'loading thread')}",
            ("stage", "blocks", "part of the model", "MB", "trainable"),
            [
                (
                    str(number),
                    f"{stage.blocks[0]}-{stage.blocks[1] - 1}",
                    shortened(stage.name),
                    f"{(stage.graph.bytes + (stage.weights.bytes if stage.weights else 0)) / 1e6:.2f}",
                    "yes" if stage.trainable else "",
                )
                for number, stage in enumerate(variant.stages, start=1)
            ],
        )
    return manifest.to_json()


def verify(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Check every byte of a bundle, and that nothing else lies in it; return what `--json` prints.

    Raises:
        BundleError: For the first thing that is wrong.
    """
    found = check(Path(options.bundle))
    console.print(
        f"{options.bundle}: {count_of(found.files, 'file')}, {found.files_bytes / 1e6:.1f} MB, every hash is right and "
        "nothing else is there"
    )
    for tail in found.tails:
        counts = f"version {tail.current} counts" if tail.current else "none counts"
        console.print(f"tail '{tail.name}': {count_of(len(tail.versions), 'version')}, {counts}")
    if not found.manifest_hash:
        console.print("the manifest itself has no hash in version 1: its format is right")
    if found.links:
        console.note(f"{count_of(found.links, 'file')} of them are links: what they point to is right now")
    if found.unfinished:
        console.note(
            f"{count_of(found.unfinished, 'tail')} being written, or left by a killed process: nothing reads that"
        )
    tails = [tail._asdict() for tail in found.tails]
    return {"bundle": options.bundle, **found._asdict(), "tails": tails, "verified": True}


def _shape(shape: Any) -> str:
    return "" if shape is None else "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"

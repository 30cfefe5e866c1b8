"""`splitload inspect` and `splitload verify`: what a bundle holds, and whether it is whole."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitload.bundle import read_manifest
from splitload.commands.console import Console, count_of, shortened
from splitload.machine import cpu_architecture
from splitload.manifest import Variant
from splitload.variants import choose


def inspect(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the manifest, and what of it runs here; return what `--json` prints.

    Raises:
        BundleError: If it is no bundle.
        MissingPackageError: If onnxruntime is older than splitload needs.
    """
    import onnxruntime as ort

    bundle = Path(options.bundle)
    manifest = read_manifest(bundle, "sizes")
    chosen, why_portable = choose(bundle, manifest, ort.__version__)
    versions = ", ".join(f"{name} {version}" for name, version in manifest.created_with.items())
    console.print(f"{manifest.model} ({manifest.model_bytes / 1e6:.1f} MB, SHA-256 {manifest.model_sha256[:16]}…)")
    console.print(f"made for {manifest.device} on {manifest.cpu} with {versions}")
    for what, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            console.print(f"{what} {spec.name}: {spec.type} {_shape(spec.shape)}")
    for variant in manifest.variants:
        runs = "; runs here" if variant is chosen else ""
        console.table(
            f"{variant.kind} graph for {_where(variant)}; {count_of(variant.threads, 'loading thread')}{runs}",
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
    if why_portable is not None:
        console.note(why_portable)
    here = {"cpu": cpu_architecture(), "onnxruntime": ort.__version__}
    return manifest.to_json() | {
        "here": {**here, "variant": manifest.variants.index(chosen), "why_portable": why_portable}
    }


def _where(variant: Variant) -> str:
    """Return what a variant was made for, and who else may run it, for people."""
    if variant.cpu is None:
        return "any machine"
    made = f"{variant.cpu}, onnxruntime {variant.runtime}"
    if variant.needs is None or variant.needs.canary is None:
        return f"{made} exactly"
    block = "" if variant.needs.block is None else f", layout in blocks of {variant.needs.block} channels"
    return f"{made} or another that passes its canary{block}"


def verify(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Check every file's size and hash; return what `--json` prints.

    Raises:
        BundleError: For the first thing that is wrong.
    """
    manifest = read_manifest(Path(options.bundle), "hashes")
    files = list(manifest.files())
    total = sum(file.bytes for file in files)
    console.print(f"{options.bundle}: {len(files)} files, {total / 1e6:.1f} MB, every hash is right")
    return {"bundle": options.bundle, "files": len(files), "files_bytes": total, "verified": True}


def _shape(shape: Any) -> str:
    return "" if shape is None else "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"

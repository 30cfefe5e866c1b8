"""`splitload inspect`, `verify` and `install`: what a bundle holds, whether it is whole, and how it takes its place."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.errors import UsageError
from splitload.base.machine import cpu_architecture
from splitload.base.phrases import count_of
from splitload.bundle import delivery, verification
from splitload.bundle.manifest import MANIFEST, Variant
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console, shortened
from splitload.commands.show_memory import show_residency
from splitload.commands.why import show_why
from splitload.runtime.available import Available, available
from splitload.runtime.capi.find import VARIABLE
from splitload.runtime.engine import ENGINES, chosen
from splitload.runtime.options import CallerOptions
from splitload.runtime.variants import choose


def inspect(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the manifest, what of it runs here, and with `--why` how its plan was found; return what `--json` prints.

    `--runtime` shows what it is loaded by, too, or without a bundle that alone.

    Raises:
        BundleError: If it is no bundle.
        MissingPackageError: If onnxruntime is not installed, or older than splitload needs.
        UsageError: If a bundle is needed and none is given.
    """
    if options.bundle is None:
        if not options.runtime or options.why:
            raise UsageError("the following arguments are required: BUNDLE (see 'splitload inspect --help')")
        return {"runtime": _show_runtime(available(*chosen("auto", None, CallerOptions(), None)), console)}
    bundle = Path(options.bundle)
    manifest = read_manifest(bundle, "sizes")
    engine, why_engine = chosen("auto", manifest, CallerOptions(), None)
    here, why_portable = choose(bundle, manifest, engine.version, engine.canary)
    versions = ", ".join(f"{name} {version}" for name, version in manifest.created_with.items())
    console.print(f"{manifest.model} ({manifest.model_bytes / 1e6:.1f} MB, SHA-256 {manifest.model_sha256[:16]}…)")
    console.print(f"made for {manifest.device} on {manifest.cpu} with {versions}")
    for what, specs in (("input", manifest.inputs), ("output", manifest.outputs)):
        for spec in specs:
            console.print(f"{what} {spec.name}: {spec.type} {_shape(spec.shape)}")
    for variant in manifest.variants:
        runs = "; runs here" if variant is here else ""
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
        show_residency(variant, console)
    shown = manifest.to_json()
    if manifest.training is not None:
        training = manifest.training
        taken = "" if training.output_kind is None else f"; a loss of classes takes it as {training.output_kind}"
        console.print(f"trained on the device: the output '{training.output}'{taken}")
        if training.output_doubt is not None:
            console.note(training.output_doubt)
        shown["training"] |= {"output_kind": training.output_kind, "output_doubt": training.output_doubt}
    if options.why:
        trained = manifest.training is not None
        show_why(
            manifest.plan,
            len(manifest.variants[0].stages),
            console,
            trained=trained,
            where=f"'{bundle / MANIFEST}': plan",
        )
    if why_portable is not None:
        console.note(why_portable)
    shown["here"] = {
        "cpu": cpu_architecture(),
        "onnxruntime": engine.version,
        "variant": manifest.variants.index(here),
        "why_portable": why_portable,
    }
    if options.runtime:
        shown["runtime"] = _show_runtime(available(engine, why_engine), console)
    return shown


def _show_runtime(found: Available, console: Console) -> dict[str, Any]:
    """Show what bundles are loaded by; return it as JSON values."""
    opened = "" if found.library_version is None else f", onnxruntime {found.library_version}"
    has = "" if found.api_version is None else f" with version {found.api_version} of the C API"
    console.print(f"loaded by onnxruntime's {ENGINES[found.engine]}: {found.why}")
    console.print(f"C library: {found.library or 'none'}{opened}{has}; version {found.needed_api_version} is needed")
    console.print(f"Python module: {found.module_version or 'not installed'}")
    console.print(f"{VARIABLE}: {found.variable or 'not set'}")
    return found.to_json()


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
    """Check every byte of a bundle, and that nothing else lies in it; return what `--json` prints.

    Raises:
        BundleError: For the first thing that is wrong.
    """
    return _told(console, options.bundle, verification.verify(options.bundle))


def install(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Copy a bundle beside its target, check the copy, and exchange both; return what `--json` prints.

    Raises:
        SplitloadError: If the source is damaged, or the target cannot be written or holds something else.
    """
    stayed: list[str] = []
    with console.status(f"copying {options.source}"):
        found = delivery.install(options.source, options.target, on_stayed=stayed.append)
    told = _told(console, options.target, found, stayed)
    return {"source": options.source, **told, "tails_stayed": stayed}


def _told(console: Console, bundle: str, found: verification.Verified, stayed: Sequence[str] = ()) -> dict[str, Any]:
    """Say what was checked and found right, and which tails stayed in the place of the source's; return the first."""
    console.print(
        f"{bundle}: {count_of(found.files, 'file')}, {found.files_bytes / 1e6:.1f} MB, every hash is right and nothing "
        "else is there"
    )
    for tail in found.tails:
        counts = f"version {tail.current} counts" if tail.current else "none counts"
        stays = "; it was here and stays, that of the source was left behind" if tail.name in stayed else ""
        console.print(f"tail '{tail.name}': {count_of(len(tail.versions), 'version')}, {counts}{stays}")
    if not found.manifest_hash:
        console.print("the manifest itself has no hash in version 1: its format is right")
    if found.links:
        console.note(f"links among them: {found.links}; what they point to is right now")
    if found.unfinished:
        what = count_of(found.unfinished, "tail")
        console.note(f"{what} being written, or left by a killed process: nothing reads that")
    return {"bundle": bundle, **found._asdict(), "tails": [tail._asdict() for tail in found.tails], "verified": True}


def _shape(shape: Any) -> str:
    return "" if shape is None else "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"

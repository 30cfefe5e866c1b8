"""`splitload specialize`: with what is installed, a search on this machine or the stages as they are."""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import Any

from splitload.base.errors import BundleError
from splitload.base.machine import cpu_architecture
from splitload.base.packages import has, install, missing
from splitload.base.phrases import count_of
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.devices.pairing import paired
from splitload.runtime.background import cached
from splitload.runtime.inputs import example_inputs, read_feeds
from splitload.runtime.loader import ParallelLoader
from splitload.runtime.variants import choose


def specialize(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Make the part for this machine anew: by a search, or on a device without the package onnx stage by stage.

    Raises:
        SplitloadError: If the bundle is damaged, cannot be run here, or not be written.
    """
    word = paired(options.device, cache)
    if not has("onnx"):
        if word != "host":
            raise missing("'splitload specialize --device'", "onnx")
        return _as_it_is_cut(options, console)
    from splitload.planner.specialize import specialize as search_and_build

    bundle = Path(options.bundle)
    made = search_and_build(bundle, read_feeds(options.input), console, cache, add=options.add, device=word)
    console.print(
        f"{bundle}: {count_of(made.partition.num_stages, 'stage')} for {made.cpu}, "
        f"{made.files_bytes / 1e6:.1f} MB ({made.files_bytes / max(made.model_bytes, 1):.2f} of the model)"
    )
    return {"bundle": options.bundle, **made.to_json()}


def _as_it_is_cut(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Have onnxruntime alone optimise the portable stages where they are cut; whatever the bundle has, it keeps."""
    import onnxruntime as ort

    bundle = Path(options.bundle)
    manifest = read_manifest(bundle, "hashes")
    feeds = example_inputs(manifest.inputs, read_feeds(options.input))
    heard = _Heard()
    chosen, _ = choose(bundle, manifest, ort.__version__)
    there = chosen.kind == "native" or cached(manifest, ort.__version__) is not None
    if not there:
        log = logging.getLogger("splitload")
        log.addHandler(heard)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that it runs the portable graph, which is about to change
                with ParallelLoader(bundle, upgrade=False, specialize="background") as model:
                    model.run(None, feeds)
                    model.wait("specialized")
        finally:
            log.removeHandler(heard)
        manifest = read_manifest(bundle)
        chosen, _ = choose(bundle, manifest, ort.__version__)
    kept = cached(manifest, ort.__version__)
    if chosen.kind != "native" and kept is None:
        raise BundleError("; ".join(heard.texts) or f"'{bundle}' gets no native variant on this machine")
    where = bundle if chosen.kind == "native" or kept is None else kept[0]
    variant = chosen if chosen.kind == "native" or kept is None else kept[1]
    files_bytes = sum({file.name: file.bytes for file in manifest.files()}.values())
    stages, hint = count_of(len(variant.stages), "stage"), f"With {install('desk')} a plan is searched on this machine"
    if there:
        console.print(f"{where}: a part for {cpu_architecture()} is there already, {stages}. {hint}")
    else:
        console.print(
            f"{where}: {stages} for {cpu_architecture()}, without a search: the stages are as they were cut. {hint}"
        )
    return {
        "bundle": options.bundle,
        "num_stages": len(variant.stages),
        "split_points": [stage.blocks[1] for stage in variant.stages[:-1]],
        "files_bytes": files_bytes,
        "model_bytes": manifest.model_bytes,
        "searched": False,
        "kept_in": str(where),
    }


class _Heard(logging.Handler):
    """Keeps what is said of why no variant was made."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

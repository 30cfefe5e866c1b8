"""`splitload run`: load a bundle in parallel, infer once, show the timeline; without torch, onnx or gymnasium."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitload.base.errors import ModelError, PortableWarning, SplitloadError, StageError, UsageError
from splitload.base.phrases import count_of, milliseconds
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.commands.outputs import INDEX, plan_outputs, save_outputs
from splitload.runtime.inputs import cure, example_inputs, made_up, read_feeds
from splitload.runtime.loader import ParallelLoader


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Load and infer; return what `--json` prints.

    Raises:
        SplitloadError: If the bundle is damaged or the inputs do not fit.
    """
    import onnxruntime  # noqa: F401 - imported before the clock starts, as in every arm of the benchmark

    if options.output == "":
        raise UsageError("-o needs a name, for example -o outputs")
    manifest = read_manifest(Path(options.bundle))
    folder = Path(options.output) if options.output else None
    files = {} if folder is None else plan_outputs(folder, manifest.outputs)
    given = read_feeds(options.input)
    ready = example_inputs(manifest.inputs, given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PortableWarning)  # it is printed below
        loader = ParallelLoader(options.bundle, threads=options.threads, tail=options.tail, upgrade=False)
    with loader as model:
        outputs = _answer(
            model, ready, UsageError if options.input else ModelError, cure(made_up(manifest.inputs, given))
        )
        model.wait()
        timeline = model.timeline
        names = [spec.name for spec in model.get_outputs()]
        variant = model.variant
        num_threads = model.threads
        tail = model.tail
    if model.why_portable is not None:
        console.note(model.why_portable)
    console.print(
        f"{model.manifest.model}: {count_of(len(variant.stages), 'stage')} ({variant.kind} graph) "
        f"on {count_of(num_threads, 'loading thread')}"
    )
    if tail is not None:
        console.print(f"the last stage is version {tail.version} of the tail '{tail.name}'")
    console.drawing(timeline)
    console.print(f"time to first output: {milliseconds(timeline.ttfo_s)} measured, one run")
    described = {name: _described(value) for name, value in zip(names, outputs, strict=True)}
    for name in names:
        console.print(f"output {name}: {described[name]['type']} {described[name]['shape'] or ''}")
    if folder is not None:
        save_outputs(folder, files, dict(zip(names, outputs, strict=True)))
        console.print(f"outputs: {folder}, in files that {folder / INDEX} names")
    result = {
        "bundle": options.bundle,
        "variant": variant.kind,
        "why_portable": model.why_portable,
        "tail": None if tail is None else {"name": tail.name, "version": tail.version},
        "num_stages": len(variant.stages),
        "threads": num_threads,
        "ttfo_s": timeline.ttfo_s,
        "load_s": timeline.load_makespan_s,
        "all_loaded_s": timeline.load_makespan_s,
        "timeline": timeline.to_json(),
        "outputs": described,
    }
    return result if folder is None else {**result, "saved": files}


def _answer(model: ParallelLoader, feeds: Mapping[str, Any], kind: type[SplitloadError], cure: str) -> list[Any]:
    """Return the model's outputs, or raise what says that it does not run on the feeds."""
    try:
        return model.run(None, feeds)
    except StageError:
        raise
    except Exception as error:  # onnxruntime has no common root for its errors
        raise kind(f"the model does not run on these inputs{cure}: {' '.join(str(error).split())}") from error


def _described(value: Any) -> dict[str, Any]:
    """Return the type and shape of an output, as JSON values."""
    import numpy as np

    if isinstance(value, np.ndarray):
        return {"type": str(value.dtype), "shape": list(value.shape)}
    return {"type": type(value).__name__, "shape": None}

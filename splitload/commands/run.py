"""`splitload run`: load a bundle in parallel, infer once, show the timeline.

Neither numpy nor onnxruntime's Python module is imported where the C library runs the bundle: inputs and outputs are
tensors, and numpy writes what `-o` saves.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from splitload import ParallelLoader  # which has the runtime begin, beside the imports below
from splitload.base.errors import ModelError, PortableWarning, SplitloadError, StageError, UsageError
from splitload.base.packages import has, missing
from splitload.base.phrases import count_of, milliseconds
from splitload.base.sizes import megabytes
from splitload.bundle.manifest import TensorSpec
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.runtime.engine import ENGINES, chosen
from splitload.runtime.inputs import Arrays, cure, example_inputs, made_up, read_feeds
from splitload.runtime.options import CallerOptions


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Load and infer, here or on a device; return what `--json` prints.

    Raises:
        SplitloadError: If the bundle is damaged or the inputs do not fit.
    """
    if options.device is not None:
        from splitload.commands.run_on import run_on

        return run_on(options, console)
    manifest = read_manifest(Path(options.bundle))
    folder = Path(options.output) if options.output else None
    files = {} if folder is None else planned_files(folder, manifest.outputs)
    # opened or imported before the clock starts, as in every arm of the benchmark
    engine, _ = chosen("auto", manifest, CallerOptions(), None)
    arrays: Arrays = "buffers" if engine.name == "library" else "numpy"
    given = read_feeds(options.input, arrays)
    ready = example_inputs(manifest.inputs, given, arrays=arrays)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PortableWarning)  # it is printed below
        loader = ParallelLoader(
            options.bundle, threads=options.threads, tail=options.tail, upgrade=False, arrays=arrays,
            residency=options.residency,
        )  # fmt: skip
    with loader as model:
        outputs = _answer(
            model, ready, UsageError if options.input else ModelError, cure(made_up(manifest.inputs, given))
        )
        model.wait()
        timeline = model.timeline
        names = [spec.name for spec in model.get_outputs()]
        variant = model.variant
        num_threads = model.threads
        used = model.engine
        tail = model.tail
        residency = model.residency
    if model.why_portable is not None:
        console.note(model.why_portable)
    console.print(
        f"{model.manifest.model}: {count_of(len(variant.stages), 'stage')} ({variant.kind} graph) "
        f"on {count_of(num_threads, 'loading thread')}, by onnxruntime's {ENGINES[used]}"
    )
    if tail is not None:
        console.print(f"the last stage is version {tail.version} of the tail '{tail.name}'")
    if residency != "all":
        kept = "the weights of one stage" if isinstance(residency, str) else megabytes(residency)
        console.print(f"no more than {kept} in memory at a time")
    console.drawing(timeline)
    console.print(f"time to first output: {milliseconds(timeline.ttfo_s)} measured, one run")
    described = show_outputs(console, dict(zip(names, outputs, strict=True)), folder, files)
    result = {
        "bundle": options.bundle,
        "engine": used,
        "variant": variant.kind,
        "why_portable": model.why_portable,
        "tail": None if tail is None else {"name": tail.name, "version": tail.version},
        "num_stages": len(variant.stages),
        "threads": num_threads,
        "residency": residency,
        "ttfo_s": timeline.ttfo_s,
        "load_s": timeline.load_makespan_s,
        "all_loaded_s": timeline.load_makespan_s,
        "timeline": timeline.to_json(),
        "outputs": described,
    }
    return result if folder is None else {**result, "saved": files}


def planned_files(folder: Path, outputs: Iterable[TensorSpec]) -> dict[str, str]:
    """Return the files of outputs, see `plan_outputs`.

    Raises:
        MissingPackageError: If what writes them is not installed.
    """
    if not has("numpy"):
        raise missing("'splitload run -o'", "numpy")
    from splitload.commands.outputs import plan_outputs

    return plan_outputs(folder, outputs)


def _answer(model: ParallelLoader, feeds: Mapping[str, Any], kind: type[SplitloadError], cure: str) -> list[Any]:
    """Return the model's outputs, or raise what says that it does not run on the feeds."""
    try:
        return model.run(None, feeds)
    except StageError:
        raise
    except Exception as error:  # onnxruntime has no common root for its errors
        if model.engine == "python":
            from splitload.runtime.answers import unreturned

            if reason := unreturned(model.get_outputs()):
                raise ModelError(reason) from error
        raise kind(f"the model does not run on these inputs{cure}: {' '.join(str(error).split())}") from error


def show_outputs(
    console: Console, outputs: Mapping[str, Any], folder: Path | None, files: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Print what outputs are, and save them where that is asked for; return what was printed, as JSON values.

    Args:
        console: Where to print.
        outputs: They, by name.
        folder: Where they are saved; None for nowhere.
        files: What their files are called there, see `planned_files`.

    Raises:
        OutputError: If they cannot be saved.
    """
    described = {name: _described(value) for name, value in outputs.items()}
    for name, row in described.items():
        console.print(f"output {name}: {row['type']} {row['shape'] or ''}")
    if folder is not None:
        from splitload.commands.outputs import INDEX, save_outputs

        save_outputs(folder, files, outputs)
        console.print(f"outputs: {folder}, in files that {folder / INDEX} names")
    return described


def _described(value: Any) -> dict[str, Any]:
    """Return the type and shape of an output, as JSON values."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return {"type": str(value.dtype), "shape": list(value.shape)}
    return {"type": type(value).__name__, "shape": None}

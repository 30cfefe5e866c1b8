"""Whole processes, from exec to the first answer, beside an earlier build of splitload and a program in C, in turns.

Every sample is a fresh process that runs the program of its arm, see `whole_programs.py`, and others for the time to
first output. Both builds are to be installed ordinarily: one that is installed for editing finds its modules more
slowly, and the record says so. Telemetry of onnxruntime is off in all arms, as in splitload's own processes.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.cache import user_cache
from splitload.base.errors import UsageError
from splitload.base.machine import inference_threads
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import Manifest
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.measure import pagecache
from splitload.measure.arms import Subject, make_arm
from splitload.measure.process import PACKAGE, interpreter, python
from splitload.measure.sampling import PAUSE_S, compare
from splitload.runtime.inputs import example_inputs, save_feeds
from splitload.runtime.reading import read_ahead
from splitload.runtime.variants import choose
from splitload.studies.study import at_least, errors_in_one_line, growing_record, study_parser
from splitload.studies.whole_baseline import HEADER, compiled, model_header
from splitload.studies.whole_processes import (
    Build,
    Sample,
    build_of,
    first_output,
    run,
    settled_first_output,
    timed,
    whole,
)
from splitload.studies.whole_programs import START, WAYS, Input
from splitload.studies.whole_targets import targets

MODELS = tuple(
    f"zoo:{name}"
    for name in (
        "squeezenet1_1", "mobilenet_v1", "densenet201", "inception_v3", "convnext_tiny", "resnet152", "distilbert",
        "vgg19",
    )
)  # fmt: skip
_MEASURES = (whole, first_output, settled_first_output)  # of the programs of an arm, which may have fewer
_BUILDS = {"splitload": "after", "splitload-buffers": "after", "before": "before"}


def model_row(
    model: str, bundle: Path, builds: Mapping[str, Build], runs: int, folder: Path, cache: Path, header: Path | None
) -> dict[str, Any]:
    """Measure every arm on a model, in turns; return a row of the record.

    All files are warm, and were read from end to end before the first turn, as a copy or a download leaves them: how
    the first to load them would have read them does not tell. The first turn does not count; its outputs are compared.

    Args:
        model: A MODEL word.
        bundle: A bundle of it, which both builds load.
        builds: "after", which is this one, and "before".
        runs: Samples of each arm.
        folder: For programs and inputs.
        cache: The user's cache.
        header: Header of the C API to compile with, or None.

    Raises:
        UsageError: If the bundle is of another model, or an arm cannot be made.
        StageError: If a process fails, or computes something else.
    """
    source, manifest = open_source(model, cache), read_manifest(bundle)
    if manifest.model_sha256 != source.sha256:
        raise UsageError(f"'{bundle}' is a bundle of '{manifest.model}', not of {model}")
    inputs = _saved(manifest, source.examples, folder)
    subject = Subject(model, source, load_graph(source, "native", cache), bundle, {}, cache)
    arms = {name: make_arm(name, subject) for name in ("stock", "tuned", "splitload")}
    paths = {name: arms[name].path.resolve() for name in ("stock", "tuned")}
    commands = {
        name: _programs(name, builds[_BUILDS.get(name, "after")], paths.get(name, bundle.resolve()), inputs, folder)
        for name in WAYS
    }
    variant, why_portable = choose(bundle, manifest, builds["after"].packages["onnxruntime"])
    given = {name: (each.raw, each.shape) for name, each in inputs.items()}
    program = compiled(folder, model_header(bundle.resolve(), manifest, variant, given), header)
    commands["c"] = [[str(program)]]
    for arm in arms.values():
        pagecache.evict(arm.all_files())
        for file in arm.all_files():
            read_ahead(file)
    samples = _in_turns(commands, runs)
    return {
        "of": "model",
        "model": model.removeprefix("zoo:"),
        "model_sha256": source.sha256,
        "model_bytes": source.size_bytes,
        "num_stages": len(variant.stages),
        "variant": variant.kind,
        "why_portable": why_portable,
        "inference_threads": inference_threads(),
        "page_cache": "warm",
        "runs": runs,
        "builds": {name: build.to_json() for name, build in builds.items()},
        "arms": _summary(samples),
        "samples": samples,
    }


def start_rows(builds: Mapping[str, Build], runs: int, folder: Path) -> list[dict[str, Any]]:
    """Measure what both builds start without a model, in turns; return a row of the record for each.

    Raises:
        StageError: If a process fails.
    """
    program = folder / "start.py"
    program.write_text(START, encoding="utf-8")
    samples: dict[str, list[Sample]] = {name: [] for name in builds}
    imported: dict[str, list[str]] = {}
    for turn in range(runs + 1):
        for name, build in builds.items():
            time.sleep(PAUSE_S)
            import_s, loader_import_s, *imported[name] = run([str(build.python), str(program)]).split()
            sample = {"import_s": float(import_s), "loader_import_s": float(loader_import_s)}
            sample["version_s"] = timed([str(build.command), "--version"])
            sample["pass_s"] = timed([str(build.python), "-c", "pass"])
            if turn:
                samples[name].append(sample)
    figures = _summary(samples)
    return [
        {
            "of": "start",
            "build": name,
            "imported": imported[name],
            "runs": runs,
            "builds": {name: build.to_json()},
            "figures": figures[name],
            "samples": samples[name],
        }
        for name, build in builds.items()
    ]


def _saved(manifest: Manifest, examples: Mapping[str, Any], folder: Path) -> dict[str, Input]:
    """Write the inputs of a model, each as numpy does and as bytes alone."""
    given = {name: value for name, value in examples.items() if name in {spec.name for spec in manifest.inputs}}
    values = example_inputs(manifest.inputs, given)
    files = save_feeds(values, folder)
    types = {spec.name: spec.type for spec in manifest.inputs}
    inputs = {}
    for name, value in values.items():
        raw = Path(files[name]).with_suffix(".bin")
        raw.write_bytes(np.ascontiguousarray(value).tobytes())
        inputs[name] = Input(types[name], value.shape, Path(files[name]), raw)
    return inputs


def _programs(name: str, build: Build, path: Path, inputs: Mapping[str, Input], folder: Path) -> list[list[str]]:
    """Write the programs of an arm; return their command lines, in the order of `_MEASURES`."""
    way, commands = WAYS[name], []
    for number, make in enumerate((way.whole, way.first_output, way.settled_first_output)):
        text = make(path, inputs)
        if text is not None:
            program = folder / f"{name}-{number}.py"
            program.write_text(text, encoding="utf-8")
            commands.append([str(build.python), str(program)])
    return commands


def _in_turns(commands: Mapping[str, Sequence[list[str]]], runs: int) -> dict[str, list[Sample]]:
    """Return the samples of each arm, which come one after the other and begin with another one each time."""
    names = list(commands)
    samples: dict[str, list[Sample]] = {name: [] for name in names}
    expected = None
    for turn in range(runs + 1):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            sample: Sample = {}
            for command, measure in zip(commands[name], _MEASURES, strict=False):
                time.sleep(PAUSE_S)
                found, output = measure(command)
                sample |= found
                expected = output if expected is None else expected  # stock's, which is the first of all
                compare(name, [expected], [output])
            if turn:
                samples[name].append(sample)
    return samples


def _summary(samples: Mapping[str, Sequence[Sample]]) -> dict[str, dict[str, dict[str, float]]]:
    """Return the median and the quartiles of each figure of each arm."""
    return {
        name: {key: _spread([sample[key] for sample in taken]) for key in taken[0]} for name, taken in samples.items()
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": middle, "q1": low, "q3": high}


def _bundle(model: str, folder: Path) -> Path:
    """Return a bundle of a model that this build makes, unless an earlier run has kept it there."""
    bundle = folder / f"{model.rpartition(':')[2].replace('/', '-')}.splitload"
    if not bundle.exists():
        folder.mkdir(parents=True, exist_ok=True)
        run(python("splitload.cli", "train", model, "--device", "host", "-o", str(bundle), "--json"))
    return bundle


def _builds(before: Path, folder: Path, console: Console) -> dict[str, Build]:
    """Return both builds.

    Raises:
        UsageError: If this system does not tell memory, or a build cannot be measured.
    """
    if platform.system() != "Linux":
        raise UsageError("whole processes are measured on Linux, whose /proc tells their memory")
    if not before.is_file():
        raise UsageError(f"'{before}' is no Python executable")
    builds = {"after": build_of(interpreter(), folder), "before": build_of(before.absolute(), folder)}
    if builds["after"].package.resolve() != PACKAGE:
        raise UsageError(f"'{interpreter()}' imports another splitload than this one; start it with -P")
    for name, build in builds.items():
        if not build.ordinary:
            console.note(f"the build '{name}' is no ordinary installation, and finds its modules more slowly")
    return builds


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("whole", __doc__)
    parser.add_argument("--before", type=Path, required=True, metavar="PYTHON", help="a Python with an earlier build")
    parser.add_argument("--runs", type=at_least(1), default=9, metavar="N", help="samples (default: %(default)s)")
    text = "samples of what starts without a model (default: %(default)s)"
    parser.add_argument("--starts", type=at_least(1), default=15, metavar="N", help=text)
    text = "default: the eight that targets are set for"
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="MODEL", help=text)
    parser.add_argument("--bundles", type=Path, metavar="FOLDER", help="take bundles from here, and keep them here")
    text = f"onnxruntime's {HEADER} for the program in C (default: what it needs of it)"
    parser.add_argument("--header", type=Path, metavar="HEADER", help=text)
    return parser


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure whole processes, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    options = _parser().parse_args(words)
    if options.header is not None and not (options.header.is_file() and options.header.name == HEADER):
        raise UsageError(f"'{options.header}' is no file named {HEADER}")
    console, cache = Console(json=False), user_cache()
    cache.mkdir(parents=True, exist_ok=True)
    places = {str(options.before): "PYTHON", str(options.bundles): "FOLDER", str(options.header): "HEADER"}
    shown = [places.get(word, word) for word in words]  # without places on this machine
    rows: list[dict[str, Any]] = []
    with (
        growing_record(options.output, "whole", "splitload.studies.whole", shown) as keep,
        scratch_folder(cache, ".whole-") as scratch,
    ):
        builds = _builds(options.before, scratch, console)
        for number, model in enumerate(options.models):
            folder = scratch / str(number)
            folder.mkdir()
            bundle = _bundle(model, options.bundles or folder)
            rows.append(model_row(model, bundle, builds, options.runs, folder, cache, options.header))
            keep(rows[-1:])
            medians = (f"{arm} {each['process_s']['median'] * 1e3:.0f}" for arm, each in rows[-1]["arms"].items())
            console.print(f"{rows[-1]['model']}: whole process ms: {', '.join(medians)}")
        starts = start_rows(builds, options.starts, scratch)
        made = targets([*rows, *starts])
        keep([*starts, {"of": "targets", "targets": made}])
    for target in made:
        if target["value"] is not None:
            sign = "at least" if target["at_least"] else "at most"
            told = f"{target['what']}: {target['figure']} {target['value']:.2f}, {sign} {target['target']:g}"
            console.print(f"{told}: {'met' if target['met'] else 'missed'}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""The portable variant beside a stock session, as on another processor: `python -m splitload.studies.portable`.

A bundle of both variants, one stage each, whose manifest then says that the native one was made on another processor:
the loader so takes the portable one here, as it would there. What it reads lies in the native variant's files.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import StageError
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.bundle.manifest import Manifest
from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest
from splitload.commands.console import Console
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.measure.arms import Subject, make_arm
from splitload.measure.sampling import Arm, compare, outputs_of, run_arms
from splitload.plan.partition import Partition
from splitload.runtime.variants import fitting
from splitload.studies.study import at_least, errors_in_one_line, growing_record, study_parser

MODELS = ("zoo:resnet152", "zoo:distilbert", "zoo:convnext_tiny", "zoo:vgg19")
FIGURES = ("ttfo_s", "steady_inference_s", "process_s")
ELSEWHERE = "another"  # a processor that no machine says it has


def row(model: str, runs: int, cache: Path, console: Console) -> dict[str, Any]:
    """Measure a model's portable variant and a stock session in turns, files in memory; return a row of the record.

    Args:
        model: A MODEL word.
        runs: Samples of each, every one of fresh processes; one before them does not count.
        cache: The user's cache folder.
        console: Where to tell what is done.

    Raises:
        SplitloadError: If the bundle cannot be made, its native variant runs all the same, or it answers otherwise than
            stock.
    """
    source = open_source(model, cache)
    native, portable = (load_graph(source, kind, cache, feeds=source.examples) for kind in ("native", "portable"))
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache, ".portable-") as folder:
        bundle = folder / "model.splitload"
        plans = [VariantPlan(graph, Partition(len(graph.blocks)), 1) for graph in (native, portable)]
        manifest = build_bundle(bundle, plans, device="host")
        turn_native_off(bundle)
        stock = make_arm("stock", Subject(model, source, native, bundle, source.examples, cache))
        arms = (stock, Arm("splitload", bundle))
        inputs = native.input_tensors()
        expected, answers = (outputs_of(arm, inputs, source.examples) for arm in arms)
        difference = compare("splitload", expected, answers)
        with console.progress(source.name, unit="processes") as show:
            samples = run_arms(arms, inputs, source.examples, runs, show)
    taken = {
        name: [{key: sample[key] for key in FIGURES} for sample in samples[arm.name]]
        for name, arm in zip(("stock", "portable"), arms, strict=True)
    }
    medians = {
        name: {key: statistics.median(sample[key] for sample in each) for key in FIGURES}
        for name, each in taken.items()
    }
    return {
        "model": source.name,
        "model_bytes": source.size_bytes,
        "bundle_bytes": sum(file.bytes for file in manifest.files()),
        "portable_bytes": _added_bytes(manifest),
        "largest_difference": difference,
        "ratio": {key: medians["portable"][key] / medians["stock"][key] for key in FIGURES},
        "samples": taken,
    }


def turn_native_off(bundle: Path) -> None:
    """Have a bundle say that its native variants were made on another processor.

    Raises:
        StageError: If another variant than the portable one runs here then.
    """
    import onnxruntime as ort

    manifest = read_manifest(bundle)
    elsewhere = [
        variant if variant.kind == "portable" else variant._replace(cpu=ELSEWHERE) for variant in manifest.variants
    ]
    changed = manifest._replace(variants=tuple(elsewhere))
    write_manifest(bundle, changed)
    if [variant.kind for variant in fitting(bundle, changed, ort.__version__)] != ["portable"]:
        raise StageError(f"a native variant of '{bundle.name}' runs here although it is for another processor")


def _added_bytes(manifest: Manifest) -> int:
    """Return the bytes of the files that no native variant has."""
    others = {
        file.name
        for variant in manifest.variants[:-1]
        for stage in variant.stages
        for file in (stage.graph, stage.weights)
        if file is not None
    }
    own = {file for stage in manifest.variants[-1].stages for file in (stage.graph, stage.weights) if file is not None}
    return sum(file.bytes for file in own if file.name not in others)


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure models, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("portable", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=MODELS, help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--runs", type=at_least(1), default=9, metavar="N", help="samples (default: %(default)s)")
    options = parser.parse_args(words)
    console, cache = Console(json=False), user_cache()
    with growing_record(options.output, "portable", "splitload.studies.portable", words) as keep:
        for model in options.models:
            made = row(model, options.runs, cache, console)
            ratios = ", ".join(f"{key} {made['ratio'][key]:.3f}" for key in FIGURES)
            console.print(f"{made['model']}: portable ÷ stock {ratios}")
            keep([made])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

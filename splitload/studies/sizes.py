"""Bundles beside their models, in bytes and in time to first output: the zoo in four forms, and weights used twice."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import SplitloadError, StageError, UsageError
from splitload.base.machine import available_threads
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import VariantPlan
from splitload.build.equality import even_splits
from splitload.commands.console import Console
from splitload.devices.host import HostDevice
from splitload.frontends.onnx import load_graph, model_files
from splitload.frontends.zoo import names
from splitload.measure.sampling import Arm, compare, outputs_of, run_arms, summarize
from splitload.plan.partition import Partition
from splitload.planner.write_bundle import write_bundle
from splitload.studies.forms import FORMS, SHARING, open_form
from splitload.studies.study import at_least, errors_in_one_line, growing_record, study_parser


def row(model: str, form: str, num_stages: int, runs: int, console: Console, cache: Path) -> dict[str, Any]:
    """Build a bundle for this machine, measure it and a stock session in turns, and return a row of the record.

    Args:
        model: A MODEL word, or one of `forms.SHARING`.
        form: One of `forms.FORMS`.
        num_stages: Stages of the native graph, cut evenly; fewer where there are fewer blocks.
        runs: Samples of each, in fresh processes.
        console: Where to tell what is done.
        cache: The user's cache folder.

    Raises:
        SplitloadError: If the model cannot be made, built or run.
    """
    source = open_form(model, form, cache)
    feeds = dict(source.examples)
    graph = load_graph(source, "native", cache, feeds=feeds)
    count = len(graph.blocks)
    cuts = next(iter(even_splits(range(1, count), [num_stages])), ())
    plan = VariantPlan(graph, Partition(count, cuts), available_threads())
    with scratch_folder(cache, ".sizes-") as folder:
        bundle = folder / "model.splitload"
        write_bundle(
            bundle, source, plan, console, cache, device="host", tuner=HostDevice(cache), notes={}, feeds=feeds
        )
        arms = [Arm("stock", source.path, files=model_files(source.path)), Arm("splitload", bundle)]
        inputs = graph.input_tensors()
        expected, outputs = (outputs_of(arm, inputs, feeds) for arm in arms)
        difference, why = None, None
        try:
            difference = compare("splitload", expected, outputs)
        except StageError as error:
            why = str(error)
        samples = run_arms(arms, inputs, feeds, runs)
        bundle_bytes = sum(file.stat().st_size for file in arms[1].all_files())
    figures = {arm: summarize(taken) for arm, taken in samples.items()}
    return {
        "model": source.name,
        "model_sha256": source.sha256,
        "form": form,
        "graph": graph.kind,
        "num_stages": plan.partition.num_stages,
        "model_bytes": source.size_bytes,
        "bundle_bytes": bundle_bytes,
        "ratio": bundle_bytes / source.size_bytes,
        "difference": difference,
        "differs": why,
        "ttfo_s": {arm: each["ttfo_s"] for arm, each in figures.items()},
        "steady_inference_s": {arm: each["steady_inference_s"] for arm, each in figures.items()},
        "samples": samples,
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Build and measure bundles of models in several forms, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("sizes", __doc__)
    parser.add_argument(
        "models", nargs="*", metavar="MODEL", help=f"or one of {' '.join(SHARING)} (default: these and the whole zoo)"
    )
    parser.add_argument("--form", action="append", choices=FORMS, help="of the others (default: each)")
    parser.add_argument("--stages", type=at_least(1), default=1, metavar="K", help="default: %(default)s")
    parser.add_argument("--runs", type=at_least(1), default=5, metavar="N", help="samples (default: %(default)s)")
    options = parser.parse_args(words)
    console, cache = Console(json=False), user_cache()
    models = options.models or [*(f"zoo:{name}" for name in names()), *SHARING]
    with growing_record(options.output, "sizes", "splitload.studies.sizes", words) as keep:
        for model in models:
            for form in ["float32"] if model in SHARING else options.form or FORMS:
                try:
                    made = row(model, form, options.stages, options.runs, console, cache)
                except UsageError:
                    raise
                except SplitloadError as error:  # the others still count, and the record says what is missing
                    console.note(f"{model}, {form}: {error}")
                    keep([{"model": model.removeprefix("zoo:"), "form": form, "failed": str(error)}])
                    continue
                times = [made["ttfo_s"][arm]["median"] for arm in ("splitload", "stock")]
                console.print(
                    f"{made['model']:<16} {form:<12} {made['model_bytes'] / 1e6:7.1f} MB, bundle ÷ it "
                    f"{made['ratio']:.3f}; first output after {times[0] * 1e3:.0f} ms, stock {times[1] * 1e3:.0f} "
                    f"({times[0] / times[1]:.2f})"
                )
                keep([made])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

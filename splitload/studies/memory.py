"""What building and serving hold in memory, and on disk: `python -m splitload.studies.memory --help`.

Each figure is of fresh processes. The peak of building is that of `splitload train` for a simulated device, with an
empty cache, beside the peak of a process that opens the model with a stock session and runs it. Serving is measured on
even cuts of the native graph, after the upgrade and some runs. Resident memory counts a page once for every place where
it is mapped; proportional memory counts it once in all.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import StageError, UsageError
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.commands.console import Console
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.measure.fresh import run_job
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.studies import memory_models, memory_table
from splitload.studies.memory_child import TakeMemory
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

STAGES = (1, 4, 8)
MODELS = ("pictures", "splitload.studies.memory_models:albert", "splitload.studies.memory_models:gpt2")


def even_work_cut(graph: ModelGraph, num_stages: int) -> Partition:
    """Return a cut into stages of about equal work, or one of all blocks where there are fewer.

    A block belongs to the stage in which the middle of its work lies; none is left empty.
    """
    flops = [block.flops + 1 for block in graph.blocks]
    count = min(num_stages, len(flops))
    points: list[int] = []
    for part in range(1, count):
        wanted = sum(flops) * part / count
        least, most = (points[-1] if points else 0) + 1, len(flops) - (count - part)
        points.append(min(range(least, most + 1), key=lambda point: abs(sum(flops[:point]) - wanted)))
    return Partition.of(len(flops), points)


def ask(job: TakeMemory, cache: Path) -> dict[str, int]:
    """Have a fresh process do a job; return bytes.

    Raises:
        StageError: If it fails.
    """

    def failed(line: str) -> StageError:
        return StageError(f"'{job.what}' of '{Path(job.path).name}' failed: {line}")

    return run_job(job, Path(job.path).absolute().parent, failed, environment={"SPLITLOAD_CACHE": str(cache)})


def study(model: str, source: Source, runs: int, cache: Path, console: Console) -> dict[str, Any]:
    """Return what one model takes.

    Args:
        model: Its word on the command line.
        source: The model.
        runs: Fresh processes for each figure.
        cache: The user's cache folder.
        console: Where to tell what is done.

    Raises:
        SplitloadError: If a bundle cannot be made or run.
    """
    with scratch_folder(cache, ".memory-") as folder:
        with console.status(f"{source.name}: writing bundles"):
            native, portable = (load_graph(source, kind, folder) for kind in ("native", "portable"))
            bundles = {}
            for wanted in STAGES:
                cut = even_work_cut(native, wanted)
                bundles[cut.num_stages] = folder / f"{cut.num_stages}.splitload"
                whole = VariantPlan(portable, Partition(len(portable.blocks)), 1)
                build_bundle(bundles[cut.num_stages], [VariantPlan(native, cut, 2), whole], device="host")
        built, stock = list[int](), list[dict[str, int]]()
        served: dict[int, list[dict[str, int]]] = {count: [] for count in bundles}
        with console.progress(source.name, unit="rounds") as show:
            for turn in range(runs):
                show(turn, runs)
                words = ("--device", "s20", "--json", "-o", str(folder / "made.splitload"))
                with scratch_folder(folder, ".cache-") as empty:
                    built.append(ask(TakeMemory("train", str(source.path), words), empty)["peak_bytes"])
                stock.append(ask(TakeMemory("stock", str(source.path)), folder))
                for count, bundle in bundles.items():
                    served[count].append(ask(TakeMemory("splitload", str(bundle)), folder))
        sizes = {count: sum(file.stat().st_size for file in bundle.iterdir()) for count, bundle in bundles.items()}
    return {
        "model": Path(model).name if model.endswith(".onnx") else model,
        "model_bytes": source.size_bytes,
        "source": "measured",
        "build_peak_bytes": built,
        "stock_peak_bytes": [each["peak_bytes"] for each in stock],
        "stock_rss_bytes": [each["rss_bytes"] for each in stock],
        "stages": [
            {
                "num_stages": count,
                "bundle_bytes": sizes[count],
                **{key: [each[key] for each in found] for key in ("rss_bytes", "pss_bytes", "peak_bytes")},
            }
            for count, found in served.items()
        ],
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure every model; print and perhaps record what they take."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("memory", __doc__)
    parser.add_argument("models", nargs="*", default=MODELS, metavar="MODEL", help="(default: %(default)s)")
    parser.add_argument("--runs", type=at_least(1), default=3, metavar="N", help="rounds (default: %(default)s)")
    options = parser.parse_args(words)
    if not Path("/proc/self/smaps_rollup").exists():
        raise UsageError("this system does not tell what memory a process holds in proportion; Linux does")
    console, cache = Console(json=False), user_cache()
    cache.mkdir(parents=True, exist_ok=True)
    rows = []
    for model in options.models:
        word = str(memory_models.pictures(cache)) if model == "pictures" else model
        rows.append(study(model, open_source(word, cache), options.runs, cache, console))
    console.table("medians of fresh processes", *memory_table.memory([("", {"rows": rows})]))
    if options.output:
        write_record(options.output, "memory", "splitload.studies.memory", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""What a model takes in memory and time under a ceiling, beside other engines: `python -m splitload.studies.residency`.

Every sample is of a fresh process, arms in turns, on a warm page cache: all files are read from end to end before the
first turn, as a copy or a download leaves them, whoever loads them first. The peak is the highest resident memory from
the load call on, less that of the same process before it, with everything imported and the inputs there. The last row
is of a small machine, as root: a model in a group with less memory than it has weights, on slow storage, its files
evicted.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.cache import user_cache
from splitload.base.errors import MissingPackageError, ModelError, StageError, UsageError
from splitload.base.sizes import read_bytes
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.measure import pagecache
from splitload.measure.arms import Subject, make_arm
from splitload.measure.fresh import run_job
from splitload.measure.sampling import Arm, compare, load_job, outputs_of, saved_inputs
from splitload.measure.storage import Controller, reader
from splitload.planner.least_ceiling import CeilingTooLowError
from splitload.planner.request import TrainRequest
from splitload.planner.train import train
from splitload.runtime.answers import relative_error
from splitload.runtime.reading import fetch
from splitload.studies import residency_tables
from splitload.studies.control_groups import small_machine
from splitload.studies.records import write_record
from splitload.studies.residency_child import HoldModel
from splitload.studies.study import at_least, errors_in_one_line, study_parser

RIVALS = ("stock", "tuned", "ncnn", "openvino")
# The ceilings that targets name, and a third of each model's weights; where that is refused, the least that is not
CEILINGS = (
    "zoo:distilbert=40MB", "zoo:distilbert=third", "zoo:vgg19=64MB", "zoo:vgg19=third", "zoo:resnet152=third",
    "zoo:convnext_tiny=third", "zoo:inception_v3=third", "zoo:densenet201=third", "zoo:mobilenet_v1=third",
    "zoo:squeezenet1_1=third",
)  # fmt: skip
SMALL = ("zoo:resnet152", 160_000_000, 250_000_000)  # memory for everything, and bytes a second of storage
SMALL_MADE, SMALL_RESIDENCY = "24MB", "100MB"  # stages are small beside the ceiling, so that they are read ahead
RUNS, STEADY_RUNS = 9, 9
Samples = list[dict[str, Any] | None]


class Study:
    """Measures models, each with its ceilings.

    Args:
        runs: Fresh processes of each arm.
        bundles: Where bundles are, or are put.
        cache: The user's cache folder.
        console: Where to tell what is done.
    """

    def __init__(self, runs: int, bundles: Path, cache: Path, console: Console) -> None:
        self._runs, self._bundles, self._cache, self._console = runs, bundles, cache, console

    def row(self, model: str, ceilings: Sequence[str]) -> dict[str, Any]:
        """Return what a model takes in every arm.

        Raises:
            SplitloadError: If a bundle cannot be made or run, or answers otherwise than stock.
        """
        source = open_source(model, self._cache)
        graph = load_graph(source, "native", self._cache, feeds=source.examples)
        subject = Subject(model, source, graph, None, {}, self._cache)
        arms: dict[str, tuple[Arm, str]] = {}
        missing: dict[str, str] = {}
        for name in RIVALS:
            try:
                arms[name] = make_arm(name, subject), "all"
            except (MissingPackageError, ModelError, UsageError) as error:
                missing[name] = str(error)
        made = {}
        for word in ceilings:
            path, ceiling = self._bundle(model, source.size_bytes, word)
            made[word] = {"ceiling_bytes": ceiling, "num_stages": len(read_manifest(path).variants[0].stages)}
            arms[f"splitload, all ({word})"] = Arm("splitload", path), "all"
            arms[f"splitload, {word}"] = Arm("splitload", path), str(ceiling)
        inputs = graph.input_tensors()
        expected = outputs_of(arms["stock"][0], inputs, {})
        differ = {}
        for name, (arm, _) in list(arms.items()):
            try:
                differ[name] = compare(arm.name, expected, outputs_of(arm, inputs, {}))
            except StageError as error:
                if arm.name == "splitload":
                    raise
                missing[name] = str(error)  # another engine cannot take the model, or computes something else
                del arms[name]
        samples: dict[str, Samples] = {name: [] for name in arms}
        for file in {file for arm, _ in arms.values() for file in arm.all_files()}:
            pagecache.evict([file])
            fetch([(file, (0, file.stat().st_size))], lambda: False)
        with saved_inputs(inputs, {}) as (folder, given), self._console.progress(source.name, unit="rounds") as show:
            for turn in range(self._runs):
                show(turn, self._runs)
                for place in range(len(arms)):
                    name = list(arms)[(turn + place) % len(arms)]
                    arm, residency = arms[name]
                    job = HoldModel(load_job(arm, folder, given), residency, STEADY_RUNS)
                    samples[name].append(run_job(job, folder, _failed(name)))
        return {
            "of": "model",
            "model": source.name,
            "model_bytes": source.size_bytes,
            "weights_bytes": sum(graph.weights_bytes.values()),
            "ceilings": made,
            "missing": missing,
            "largest_difference": differ,
            "arms": {name: _taken(each) for name, each in samples.items()},
        }

    def small(self, model: str, memory_bytes: int, storage_bytes_per_s: int) -> dict[str, Any]:
        """Return what a model does where memory is smaller than its weights; what is killed is None.

        Raises:
            SplitloadError: If there is no such group, or a bundle answers otherwise than stock outside it.
        """
        source = open_source(model, self._cache)
        graph = load_graph(source, "native", self._cache, feeds=source.examples)
        path, _ = self._bundle(model, source.size_bytes, SMALL_MADE)
        subject = Subject(model, source, graph, None, {}, self._cache)
        arms = {
            "stock": (make_arm("stock", subject), "all"),
            "tuned": (make_arm("tuned", subject), "all"),
            "splitload, all": (Arm("splitload", path), "all"),
            f"splitload, {SMALL_RESIDENCY}": (Arm("splitload", path), SMALL_RESIDENCY),
        }
        inputs = graph.input_tensors()
        expected = outputs_of(arms["stock"][0], inputs, {})
        samples: dict[str, Samples] = {name: [] for name in arms}
        bandwidth, errors = [], dict[str, float]()
        with (
            saved_inputs(inputs, {}) as (folder, given),
            small_machine(memory_bytes, storage_bytes_per_s, path) as within,
            self._console.progress(f"{source.name}, small", unit="rounds") as show,
        ):
            for turn in range(self._runs):
                show(turn, self._runs)
                for place in range(len(arms)):
                    name = list(arms)[(turn + place) % len(arms)]
                    arm, residency = arms[name]
                    pagecache.evict(arm.all_files())
                    job = HoldModel(load_job(arm, folder, given, outputs=True), residency, STEADY_RUNS // 3)
                    try:
                        found = run_job(job, folder, _failed(name), within=within)
                    except StageError as error:
                        self._console.note(str(error))
                        samples[name].append(None)
                        continue
                    output = np.load(folder / found["output"], allow_pickle=False)
                    errors[name] = max(errors.get(name, 0.0), relative_error(output, expected[0]))
                    samples[name].append(found)
                bandwidth.append(_bandwidth(path, memory_bytes, storage_bytes_per_s))
        variant = read_manifest(path).variants[0]
        return {
            "of": "small",
            "model": source.name,
            "memory_bytes": memory_bytes,
            "storage_bytes_per_s": storage_bytes_per_s,
            "measured_bytes_per_s": bandwidth,
            "stage_bytes": sum(stage.graph.bytes for stage in variant.stages),
            "largest_error": errors,
            "arms": {name: _taken(each) for name, each in samples.items()},
        }

    def _bundle(self, model: str, size_bytes: int, word: str) -> tuple[Path, int]:
        """Return a bundle that was made under a ceiling, and that ceiling; it is made unless it is there."""
        target = self._bundles / f"{model.rpartition(':')[2]}-{word}.splitload"
        if not target.exists():
            ceiling = size_bytes // 3 if word == "third" else read_bytes(word)
            try:
                self._train(model, target, ceiling)
            except CeilingTooLowError as error:
                if word != "third":
                    raise
                self._console.note(f"{model}: a third is refused, {error}")
                self._train(model, target, error.least_bytes)
        ceiling_made = read_manifest(target).variants[0].residency
        assert isinstance(ceiling_made, int)  # noqa: S101
        return target, ceiling_made

    def _train(self, model: str, target: Path, ceiling: int) -> None:
        request = TrainRequest(
            model=model,
            device="host",
            output=str(target),
            objective="steady",
            residency=ceiling,
            cache=self._cache,
        )
        train(request, self._console)


def _bandwidth(files: Path, memory_bytes: int, storage_bytes_per_s: int) -> float:
    """Return what a plain reader of another file gets of the capped storage, in bytes a second."""
    size = 1 << 28
    with Controller.find().capped([files], storage_bytes_per_s), reader(files.parent, size) as read_s:
        return size / read_s(size)


def _failed(name: str) -> Any:
    return lambda line: StageError(f"arm '{name}' failed: {line}")


def _taken(samples: Samples) -> dict[str, Any]:
    """Return what was measured, by its name; None for a process that was killed."""
    return {
        "peak_bytes": [each and each["peak_bytes"] - each["idle_bytes"] for each in samples],
        "idle_bytes": [each and each["idle_bytes"] for each in samples],
        "ttfo_s": [each and each["ttfo_s"] for each in samples],
        "steady_s": [each and statistics.median(each["steady_runs_s"]) for each in samples],
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure every model; print and perhaps record what they take."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("residency", __doc__)
    parser.add_argument(
        "ceilings", nargs="*", default=CEILINGS, metavar="MODEL=CEILING", help="(default: those that targets name)"
    )
    parser.add_argument("--runs", type=at_least(1), default=RUNS, metavar="N", help="rounds (default: %(default)s)")
    parser.add_argument(
        "--bundles", type=Path, metavar="FOLDER", help="bundles, made where missing (default: the cache)"
    )
    parser.add_argument("--without-small", action="store_true", help="leave out the small machine, which needs root")
    options = parser.parse_args(words)
    console, cache = Console(json=False), user_cache()
    bundles = options.bundles or cache / "residency"
    bundles.mkdir(parents=True, exist_ok=True)
    study = Study(options.runs, bundles, cache, console)
    asked: dict[str, list[str]] = {}
    for word in options.ceilings:
        model, _, ceiling = word.rpartition("=")
        asked.setdefault(model, []).append(ceiling)
    rows = [study.row(model, ceilings) for model, ceilings in asked.items()]
    if not options.without_small:
        rows.append(study.small(*SMALL))
    console.table("medians of fresh processes", *residency_tables.residency([("", {"rows": rows})]))
    if options.output:
        write_record(options.output, "residency", "splitload.studies.residency", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

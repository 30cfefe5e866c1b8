"""Measures stages in a fresh process, which reads a job as JSON and answers as JSON.

The job names a folder, the model's inputs and those that are given. A profile's job names also the chain of block
stages, further segments to measure, and a pair of segments to load in parallel; a scheme's job the stages of a bundle
and the way to load them. All are opened by the same call that the loader uses. A plan's job has the loader itself load
the folder, which is a bundle then, on so many threads.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.bundle.manifest import TensorSpec
from splitload.runtime.answers import identical, relative_error
from splitload.runtime.boundaries import Boundaries
from splitload.runtime.inputs import example_inputs, load_feeds
from splitload.runtime.session import open_session, read_ahead, run_stage, still_read, to_python

STEADY_RUNS = 5
ROUNDING = {
    2: 2e-2,
    4: 1e-3,
    8: 1e-3,
}  # by bytes of a float: what two ways to compute the same differ by, of the largest


@dataclass(frozen=True, slots=True)
class Segment:
    """A stage file to measure: its block range, and what it reads and gives."""

    start: int
    end: int
    graph: Path
    inputs: tuple[str, ...]
    outputs: tuple[TensorSpec, ...]
    options: dict[str, bool]  # of `open_session`

    def open(self) -> Any:
        """Return a session as the loader makes it."""
        return open_session(self.graph, **self.options)


def measure(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Load and run each segment twice; return the seconds of each part."""
    import onnxruntime as ort

    def segment(row: dict[str, Any]) -> Segment:
        outputs = tuple(TensorSpec(name, kind, None) for name, kind in row["outputs"])
        return Segment(row["start"], row["end"], folder / row["graph"], tuple(row["inputs"]), outputs, row["options"])

    specs = [TensorSpec(row["name"], row["type"], row["shape"]) for row in job["inputs"]]
    values = example_inputs(specs, load_feeds(job["feeds"]))
    chain = [segment(row) for row in job["chain"]]
    others = [segment(row) for row in job["segments"]]
    pair = [segment(row) for row in job["pair"]]
    chain[0].open()  # the runtime's own start is not a stage's
    rows = []
    for number, block in enumerate(chain, start=1):
        for each in [other for other in others if other.start == block.start] + [block]:
            names = [spec.name for spec in each.outputs]
            start = time.perf_counter()
            session = each.open()
            loaded = time.perf_counter()
            results = run_stage(ort, session, each, names, values, None, boundaries=Boundaries())
            first = time.perf_counter()
            run_stage(ort, session, each, names, values, None, boundaries=Boundaries())
            second = time.perf_counter()
            rows.append(
                {
                    "start": each.start,
                    "end": each.end,
                    "load_s": loaded - start,
                    "first_inference_s": first - loaded,
                    "inference_s": second - first,
                }
            )
        values.update(zip(names, results, strict=True))
        values = still_read(values, chain[number:])
    return {"rows": rows, "serial_share": _serial_share(pair)}


def measure_scheme(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Load and run stage after stage in one way; return seconds to the first result, and of a run in the long run."""
    import onnxruntime as ort

    specs = [TensorSpec(row["name"], row["type"], row["shape"]) for row in job["inputs"]]
    values = example_inputs(specs, load_feeds(job["feeds"]))
    scheme = job["scheme"]
    rows = []
    for row in job["stages"]:
        outputs = tuple(TensorSpec(each["name"], each["type"], each["shape"]) for each in row["outputs"])
        stage = _staged(folder, row, outputs, scheme, share_memory=len(job["stages"]) > 1)
        names = [spec.name for spec in outputs]
        start = time.perf_counter()
        reading = threading.Thread(target=read_ahead, args=(stage.graph,))
        if scheme["prefetch"]:
            reading.start()
        session = stage.open()
        results = run_stage(ort, session, stage, names, values, None, boundaries=Boundaries())
        first_s = time.perf_counter() - start
        if scheme["prefetch"]:
            reading.join()
        steady = []
        for _ in range(STEADY_RUNS):
            start = time.perf_counter()
            run_stage(ort, session, stage, names, values, None, boundaries=Boundaries())
            steady.append(time.perf_counter() - start)
        rows.append({"first_s": first_s, "steady_s": min(steady)})
        values.update(zip(names, results, strict=True))
    return {"rows": rows}


def compare_packed(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Run stage after stage as it is and with rearranged weights; return which answer otherwise beyond rounding."""
    import onnxruntime as ort

    specs = [TensorSpec(row["name"], row["type"], row["shape"]) for row in job["inputs"]]
    values = example_inputs(specs, load_feeds(job["feeds"]))
    differ = []
    for row in job["stages"]:
        outputs = tuple(TensorSpec(each["name"], each["type"], each["shape"]) for each in row["outputs"])
        names = [spec.name for spec in outputs]
        answers = []
        for prepack in (False, True):
            stage = _staged(folder, row, outputs, {"prepack": prepack, "mapped": True})
            answers.append(run_stage(ort, stage.open(), stage, names, values, None))
        pairs = [[to_python(ort, value) for value in pair] for pair in zip(*answers, strict=True)]
        differ.append(not all(_alike(*pair) for pair in pairs))
        values.update(zip(names, answers[1], strict=True))
    return {"differ": differ}


def _staged(
    folder: Path, row: dict[str, Any], outputs: tuple[TensorSpec, ...], scheme: dict[str, bool], **options: bool
) -> Segment:
    """Return a stage of a bundle, to be opened in one way."""
    options |= {
        "prepack": scheme["prepack"],
        "mapped": scheme["mapped"],
        "optimize": not row["optimized"] or (scheme["prepack"] and row["reoptimize"]),
    }
    return Segment(0, 0, folder / row["graph"], tuple(row["inputs"]), outputs, options)


def _alike(left: Any, right: Any) -> bool:
    """Return whether two outputs have the same type, shape and values, floats within the rounding of their type."""
    import numpy as np

    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_alike, left, right))
    if not (isinstance(left, np.ndarray) and isinstance(right, np.ndarray)):
        return relative_error(left, right) <= ROUNDING[4]  # maps hold float32
    if left.dtype.kind != "f":
        return identical(left, right)
    return left.dtype == right.dtype and relative_error(left, right) <= ROUNDING[left.dtype.itemsize]


def measure_plan(folder: Path, job: dict[str, Any]) -> dict[str, float]:
    """Load a bundle and run it once; return seconds from the load call until all is loaded, and to the output."""
    import onnxruntime  # noqa: F401 - its import is not the load's

    from splitload.runtime.loader import ParallelLoader
    from splitload.runtime.warmup import warm_up

    warm_up()  # as the import of splitload does where onnxruntime is there before
    specs = [TensorSpec(row["name"], row["type"], row["shape"]) for row in job["inputs"]]
    values = example_inputs(specs, load_feeds(job["feeds"]))
    start = time.perf_counter()
    with ParallelLoader(folder, threads=job["threads"], upgrade=False) as loader:
        loader.run(None, values)
        ttfo_s = time.perf_counter() - start
        return {"load_s": loader.timeline.load_makespan_s, "ttfo_s": ttfo_s}


def _serial_share(pair: list[Segment]) -> float | None:
    """Return the share of the shorter of two loads that the longer one waits for when they run in parallel.

    With σ of `Contention`, loads of a ≥ b seconds take `a + σ b` together.
    """
    if not pair:
        return None
    alone = []
    for each in pair:
        start = time.perf_counter()
        session = each.open()
        alone.append(time.perf_counter() - start)
        del session
    kept: list[Any] = []
    threads = [threading.Thread(target=lambda each=each: kept.append(each.open())) for each in pair]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - start - max(alone)) / min(alone)


def main() -> None:
    """Answer one job."""
    job = json.load(sys.stdin)
    kinds: dict[str, Callable[[Path, dict[str, Any]], dict[str, Any]]] = {
        "scheme": measure_scheme,
        "compare": compare_packed,
        "threads": measure_plan,
    }
    answer = next((kind for word, kind in kinds.items() if word in job), measure)
    json.dump(answer(Path(job["folder"]), job), sys.stdout)


if __name__ == "__main__":
    main()

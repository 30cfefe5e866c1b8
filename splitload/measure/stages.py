"""Measures stages in a fresh process: what each costs in turn, what a way to load makes of it, and what two compute.

All are opened by the same call that the loader uses.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitload.measure.job import Input, Job
from splitload.measure.stage_jobs import ComparePacked, SampleStages, StageFile, TryScheme
from splitload.runtime.answers import LACKING, identical, relative_error
from splitload.runtime.boundaries import in_arrays
from splitload.runtime.inputs import example_inputs, load_feeds
from splitload.runtime.reading import read_ahead
from splitload.runtime.session import open_session, run_stage, still_read, to_python

STEADY_RUNS = 5
ROUNDING = {
    2: 2e-2,
    4: 1e-3,
    8: 1e-3,
}  # by bytes of a float: what two ways to compute the same differ by, of the largest


@dataclass(frozen=True, slots=True)
class Opener:
    """A stage file, and how a session on it is made.

    Attributes:
        stage: The file.
        folder: Where it lies.
        options: Of `open_session`.
    """

    stage: StageFile
    folder: Path
    options: dict[str, bool] = field(default_factory=dict)

    def open(self) -> Any:
        """Return a session as the loader makes it."""
        return open_session(self.folder / self.stage.graph, **self.options)


def sample(job: SampleStages, folder: Path) -> dict[str, Any]:
    """Load and run each segment twice; return the seconds of each part."""
    import onnxruntime as ort

    def opener(stage: StageFile) -> Opener:
        prepack = stage.prepack
        return Opener(stage, folder, {"prepack": prepack, "optimize": stage.optimize(prepack)})

    values = _values(job.inputs, folder)
    opener(job.chain[0]).open()  # the runtime's own start is not a stage's
    rows = []
    for number, block in enumerate(job.chain, start=1):
        for each in [other for other in job.segments if other.blocks[0] == block.blocks[0]] + [block]:
            names, opened = [spec.name for spec in each.outputs], opener(each)
            start = time.perf_counter()
            session = opened.open()
            loaded = time.perf_counter()
            results = run_stage(ort, session, each, names, values, None, boundaries=in_arrays())
            first = time.perf_counter()
            run_stage(ort, session, each, names, values, None, boundaries=in_arrays())
            second = time.perf_counter()
            rows.append(
                {
                    "start": each.blocks[0],
                    "end": each.blocks[1],
                    "load_s": loaded - start,
                    "first_inference_s": first - loaded,
                    "inference_s": second - first,
                }
            )
        values.update(zip(names, results, strict=True))
        values = still_read(values, job.chain[number:])
    return {"rows": rows, "serial_share": serial_share([opener(stage) for stage in job.pair])}


def try_scheme(job: TryScheme, folder: Path) -> dict[str, Any]:
    """Load and run stage after stage in one way; return seconds to the first result, and of a run in the long run."""
    import onnxruntime as ort

    values = _values(job.inputs, folder)
    rows = []
    for stage in job.stages:
        opener = _staged(stage, folder, mapped=job.mapped, prepack=job.prepack, share_memory=len(job.stages) > 1)
        names = [spec.name for spec in stage.outputs]
        start = time.perf_counter()
        reading = threading.Thread(target=read_ahead, args=(folder / stage.graph,))
        if job.prefetch:
            reading.start()
        session = opener.open()
        results = run_stage(ort, session, stage, names, values, None, boundaries=in_arrays())
        first_s = time.perf_counter() - start
        if job.prefetch:
            reading.join()
        row = {"first_s": first_s}
        steady = []
        for _ in range(STEADY_RUNS if job.steady else 0):
            start = time.perf_counter()
            run_stage(ort, session, stage, names, values, None, boundaries=in_arrays())
            steady.append(time.perf_counter() - start)
        if steady:
            row["steady_s"] = min(steady)
        rows.append(row)
        values.update(zip(names, results, strict=True))
    return {"rows": rows}


def compare_packed(job: ComparePacked, folder: Path) -> dict[str, Any]:
    """Run stage after stage as it is and with rearranged weights; return which answer otherwise beyond rounding."""
    import onnxruntime as ort

    values = _values(job.inputs, folder)
    differ = []
    for stage in job.stages:
        names = [spec.name for spec in stage.outputs]
        answers = []
        for prepack in (False, True):
            session = _staged(stage, folder, mapped=True, prepack=prepack).open()
            answers.append(run_stage(ort, session, stage, names, values, None))
        differ.append(not all(_same(ort, *pair) for pair in zip(*answers, strict=True)))
        values.update(zip(names, answers[1], strict=True))
    return {"differ": differ}


_MEASUREMENTS: dict[type[Job], Callable[[Any, Path], dict[str, Any]]] = {
    SampleStages: sample,
    TryScheme: try_scheme,
    ComparePacked: compare_packed,
}


def answer(job: Job, folder: Path) -> dict[str, Any]:
    """Do one of the jobs on stages; return its answer."""
    return _MEASUREMENTS[type(job)](job, folder)


def _values(inputs: Sequence[Input], folder: Path) -> dict[str, Any]:
    """Return a value for each input, from its file where it has one."""
    files = {each.name: str(folder / each.file) for each in inputs if each.file is not None}
    return example_inputs(inputs, load_feeds(files))


def _staged(stage: StageFile, folder: Path, *, mapped: bool, prepack: bool, **others: bool) -> Opener:
    """Return a stage of a bundle, to be opened in one way."""
    optimize = stage.optimize(prepack)
    return Opener(stage, folder, {"mapped": mapped, "prepack": prepack, "optimize": optimize, **others})


def _same(ort: Any, left: Any, right: Any) -> bool:
    """Return whether two outputs are alike, as onnxruntime gives them; numpy lacks some of their types."""
    import numpy as np

    kind = left.data_type() if isinstance(left, ort.OrtValue) else ""
    if kind not in LACKING:
        return _alike(to_python(ort, left), to_python(ort, right))
    if left.shape() != right.shape():
        return False
    count = math.prod(left.shape())
    is_bfloat16 = kind == "tensor(bfloat16)"
    size = 2 * count if is_bfloat16 else (count + 1) // 2  # two numbers of 4 bits a byte
    contents = [ctypes.string_at(each.data_ptr(), size) if size else b"" for each in (left, right)]
    if not is_bfloat16:
        return contents[0] == contents[1]
    # a bfloat16 is the upper half of a float32
    wide = [(np.array(memoryview(each).cast("H"), np.uint32) << 16).view(np.float32) for each in contents]
    return relative_error(*wide) <= ROUNDING[2]


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


def serial_share(pair: Sequence[Opener]) -> float | None:
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

"""Measures stages in a fresh process: what each costs in turn, what a way to load makes of it, and what two compute.

All are opened and run by the engine that the loader would choose here, and by the same calls.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.measure.job import Job
from splitload.measure.likeness import alike
from splitload.measure.running import engine_for, given_values, in_form, opener, run, start_runtime
from splitload.measure.stage_jobs import ComparePacked, SampleStages, StageFile, TryScheme
from splitload.measure.waiting import Waits
from splitload.runtime.reading import fetch, is_cached, read_ahead
from splitload.runtime.session import still_read

if TYPE_CHECKING:
    from splitload.runtime.engine import Engine

STEADY_RUNS = 5
LEAST_LOAD_S = 1e-6  # below which no clock tells


def sample(job: SampleStages, folder: Path, engine: Engine) -> dict[str, Any]:
    """Load and run each segment twice; return the seconds of each part."""
    values = in_form(engine, job.inputs, given_values(engine, job.inputs, folder))
    _start(engine, folder, job.chain[0])
    rows = []
    for number, block in enumerate(job.chain, start=1):
        for each in [other for other in job.segments if other.blocks[0] == block.blocks[0]] + [block]:
            opened = opener(engine, folder, each, prepack=each.prepack)
            waits = Waits()
            start = time.perf_counter()
            session = opened()
            loaded = time.perf_counter()
            load_wait_s = waits.lap_s()
            begun = time.perf_counter()
            results = run(engine, session, each, values)
            first = time.perf_counter()
            first_wait_s = waits.lap_s()
            again = time.perf_counter()
            run(engine, session, each, values)
            second = time.perf_counter()
            rows.append(
                {
                    "start": each.blocks[0],
                    "end": each.blocks[1],
                    "load_s": loaded - start,
                    "first_inference_s": first - begun,
                    "inference_s": second - again,
                    "load_wait_s": load_wait_s,
                    "first_wait_s": max(first_wait_s - waits.lap_s(), 0.0),  # for threads a later one waits as well
                }
            )
        values.update(zip((spec.name for spec in block.outputs), results, strict=True))
        values = still_read(values, job.chain[number:])
    pair = [opener(engine, folder, stage, prepack=stage.prepack) for stage in job.pair]
    are_cold = not all(_is_cached(folder, stage) for stage in job.pair)
    return {"rows": rows, "serial_share": serial_share(pair, are_cold=are_cold)}


def _start(engine: Engine, folder: Path, stage: StageFile) -> None:
    """Have the runtime start, which is no stage's: on a stage, or where its file is cold on a model that is none."""
    if _is_cached(folder, stage):
        opener(engine, folder, stage, prepack=stage.prepack)()
    else:
        start_runtime(engine, folder)


def _is_cached(folder: Path, stage: StageFile) -> bool:
    graph = folder / stage.graph
    return is_cached(graph, (graph.stat().st_size,))


def try_scheme(job: TryScheme, folder: Path, engine: Engine) -> dict[str, Any]:
    """Load and run stage after stage in one way; return seconds to the first result, and of a run in the long run."""
    values = in_form(engine, job.inputs, given_values(engine, job.inputs, folder))
    fetching = _fetching(job, folder)
    rows = []
    for stage in job.stages:
        opened = opener(engine, folder, stage, prepack=job.prepack, mapped=job.mapped, share_memory=len(job.stages) > 1)
        start = time.perf_counter()
        reading = threading.Thread(target=read_ahead, args=(folder / stage.graph,))
        reads_ahead = job.prefetch and (fetching is None or stage.reading is None)
        if reads_ahead:
            reading.start()
        session = opened()
        results = run(engine, session, stage, values)
        first_s = time.perf_counter() - start
        if reads_ahead:
            reading.join()
        row = {"first_s": first_s}
        steady = []
        for _ in range(STEADY_RUNS if job.steady else 0):
            start = time.perf_counter()
            run(engine, session, stage, values)
            steady.append(time.perf_counter() - start)
        if steady:
            row["steady_s"] = min(steady)
        rows.append(row)
        values.update(zip((spec.name for spec in stage.outputs), results, strict=True))
    if fetching is not None:
        fetching.join()
    return {"rows": rows}


def _fetching(job: TryScheme, folder: Path) -> threading.Thread | None:
    """Begin to read files that are cold, as a loader does; None where nothing has to be read."""
    files = [(folder / stage.graph, stage.reading) for stage in job.stages if stage.reading is not None]
    if all(is_cached(*file) for file in files):
        return None
    thread = threading.Thread(target=fetch, args=(files, lambda: False))
    thread.start()
    return thread


def compare_packed(job: ComparePacked, folder: Path, engine: Engine) -> dict[str, Any]:
    """Run stage after stage as it is and with rearranged weights; return which answer otherwise beyond rounding."""
    values = in_form(engine, job.inputs, given_values(engine, job.inputs, folder))
    differ = []
    for stage in job.stages:
        plain, packed = (
            run(engine, opener(engine, folder, stage, prepack=prepack)(), stage, values) for prepack in (False, True)
        )
        differ.append(not all(map(alike, plain, packed)))
        values.update(zip((spec.name for spec in stage.outputs), packed, strict=True))
    return {"differ": differ}


_MEASUREMENTS: dict[type[Job], Callable[[Any, Path, Engine], dict[str, Any]]] = {
    SampleStages: sample,
    TryScheme: try_scheme,
    ComparePacked: compare_packed,
}


def answer(job: SampleStages | TryScheme | ComparePacked, folder: Path) -> dict[str, Any]:
    """Do one of the jobs on stages; return its answer."""
    stages = (*job.chain, *job.segments, *job.pair) if isinstance(job, SampleStages) else job.stages
    engine = engine_for(job.inputs, stages)
    return {**_MEASUREMENTS[type(job)](job, folder, engine), "engine": engine.name, "runtime": engine.version}


def serial_share(pair: Sequence[Callable[[], Any]], *, are_cold: bool = False) -> float | None:
    """Return the share of the shorter of two loads that the longer one waits for when they run in parallel.

    With σ of `Contention`, loads of a ≥ b seconds take `a + σ b` together.

    Args:
        pair: What loads the one and the other; or none.
        are_cold: Whether their files are not in memory yet. What one alone waits for storage does not count then:
            together they find them there.
    """
    if not pair:
        return None
    alone = []
    for load in pair:
        waits, start = Waits(), time.perf_counter()
        session = load()
        taken_s = time.perf_counter() - start
        alone.append(max(taken_s - waits.lap_s(), LEAST_LOAD_S) if are_cold else taken_s)
        del session
    kept: list[Any] = []
    threads = [threading.Thread(target=lambda load=load: kept.append(load())) for load in pair]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - start - max(alone)) / min(alone)

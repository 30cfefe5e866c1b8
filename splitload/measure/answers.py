"""What a job on another machine may answer: whatever is missing, absurd or of another job is refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from splitload.base.errors import BundleError, DeviceError
from splitload.base.fields import Reader
from splitload.measure.graph_answers import graph_answer
from splitload.measure.graph_jobs import GRAPH_JOBS
from splitload.measure.job import Job, LoadModel
from splitload.measure.piece_jobs import TimeMessages, TimePieces
from splitload.measure.stage_jobs import ComparePacked, MeasureArena, SampleStages, StageFile, TryScheme

MOST_S = 86400.0
MOST_BYTES = 1 << 50
_MOST_RUNS, _MOST_TASKS = 1000, 4096
_WORD_CHARS = 500
_INFERENCES = ("first_inference_s", "inference_s")
_WAITS = ("load_wait_s", "first_wait_s")
_TIMES = ("ttfo_s", "load_s", "first_inference_s")
_OPTIONAL_S = ("process_s", "exit_s", "import_s")
_OPTIONAL_COUNTS = (
    "idle_memory_bytes", "peak_memory_bytes",
    "settled_memory_bytes", "major_faults", "process_peak_memory_bytes", "touched_bytes",
)  # fmt: skip
_WORDS = ("variant", "engine", "runtime", "arrays", "why_portable")


def check_answer(job: Job, data: Any) -> dict[str, Any]:
    """Return the answer to a job that another machine gave, if it can be one; of keys, those that are known.

    Raises:
        DeviceError: If it cannot.
    """
    try:
        row = Reader(data, "answer")
        read = _READ.get(type(job))
        if read is None:
            raise BundleError(f"a job of kind '{job.kind}' has no answer of another machine")
        found: dict[str, Any] = read(job, row)
        for name in _WORDS:
            if isinstance(word := row.data.get(name), str) and word.isprintable():
                found[name] = word[:_WORD_CHARS]
        return found
    except BundleError as error:
        raise DeviceError(f"the device answers what cannot be ({error}); nothing of it is kept") from error


def _sampled(job: SampleStages, row: Reader) -> dict[str, Any]:
    ranges = {stage.blocks for stage in (*job.chain, *job.segments)}
    rows = [
        {"start": each.count("start"), "end": each.count("end"), **_seconds(each, "load_s", *_INFERENCES, *_WAITS)}
        for each in row.items("rows")
    ]
    found = [(each["start"], each["end"]) for each in rows]
    if sorted(found) != sorted(ranges):
        raise BundleError(
            f"answer.rows must be of the {len(ranges)} stages that were asked for, they are of {found!r:.80}"
        )
    share = None
    if job.pair:
        share = row.number("serial_share")  # of loads that take no time, it is any number
    return {"rows": rows, "serial_share": share}


def _tried(job: TryScheme, row: Reader) -> dict[str, Any]:
    names = ("first_s", "steady_s") if job.steady else ("first_s",)
    return {"rows": _one_each(job.stages, (_seconds(each, *names) for each in row.items("rows")))}


def _compared(job: ComparePacked, row: Reader) -> dict[str, Any]:
    differ = row.sequence("differ")
    if not all(isinstance(each, bool) for each in differ):
        raise BundleError("answer.differ must hold true and false")
    return {"differ": _one_each(job.stages, differ)}


def _arena(_: MeasureArena, row: Reader) -> dict[str, Any]:
    return {name: _bytes(row, name) for name in ("anonymous_bytes", "input_bytes")}


def _timed(job: TimePieces | TimeMessages, row: Reader) -> dict[str, Any]:
    rounds_s, count = row.sequence("rounds_s"), len(job.pieces if isinstance(job, TimePieces) else job.sizes)
    if len(rounds_s) != count or any(not isinstance(each, list) or len(each) != job.rounds for each in rounds_s):
        raise BundleError(f"answer.rounds_s must have {job.rounds} seconds of each of {count}")
    return {"rounds_s": [[_second(value, "answer.rounds_s") for value in each] for each in rounds_s]}


def _loaded(job: LoadModel, row: Reader) -> dict[str, Any]:
    names = [name for name in _OPTIONAL_S if row.data.get(name) is not None]
    found: dict[str, Any] = _seconds(row, *(() if job.whole else _TIMES), *names)
    for name in _OPTIONAL_COUNTS:
        if row.data.get(name) is not None:
            found[name] = _bytes(row, name)
    if not job.whole:
        found["steady_runs_s"] = [_second(each, "answer.steady_runs_s") for each in row.sequence("steady_runs_s")]
        if not job.steady <= len(found["steady_runs_s"]) <= _MOST_RUNS:
            raise BundleError(f"answer.steady_runs_s has {len(found['steady_runs_s'])} runs")
        if job.steady and not found["steady_runs_s"]:
            raise BundleError("answer.steady_runs_s is empty")
    if "tasks" in row.data:
        found["tasks"] = [
            {
                "stage": each.count("stage"),
                "kind": each.choice("kind", "load", "infer"),
                "thread": each.count("thread"),
                **_seconds(each, "start_s", "end_s"),
            }
            for each in row.items("tasks", 0, _MOST_TASKS)
        ]
    if job.outputs and not job.whole:
        found["outputs"] = row.sequence("outputs")
        if not all(name in (None, f"output-{number}.npy") for number, name in enumerate(found["outputs"])):
            raise BundleError(f"answer.outputs must hold output-NUMBER.npy and null, it is {found['outputs']!r:.80}")
    return found


_READ: Mapping[type[Job], Any] = {
    SampleStages: _sampled,
    TryScheme: _tried,
    ComparePacked: _compared,
    MeasureArena: _arena,
    TimePieces: _timed,
    TimeMessages: _timed,
    LoadModel: _loaded,
    **dict.fromkeys(GRAPH_JOBS, graph_answer),
}


def _one_each(stages: tuple[StageFile, ...], values: Iterable[Any]) -> list[Any]:
    found = list(values)
    if len(found) != len(stages):
        raise BundleError(f"answer has {len(found)} rows for {len(stages)} stages")
    return found


def _seconds(row: Reader, *names: str) -> dict[str, float]:
    return {name: _second(row.get(name), f"{row.where}.{name}") for name in names}


def _second(value: Any, where: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= MOST_S:
        raise BundleError(f"{where} must be seconds from 0 to {MOST_S:g}, it is {value!r:.40}")
    return float(value)


def _bytes(row: Reader, name: str) -> int:
    value = row.count(name)
    if value > MOST_BYTES:
        raise BundleError(f"{row.where}.{name} is {value}, more than any machine has")
    return value

"""Measures the working memory of a model in a fresh process: what its stages, run one after the other, hold besides."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitload.bundle.manifest import TensorSpec
from splitload.measure.stage_jobs import MeasureArena
from splitload.runtime.engine import chosen
from splitload.runtime.inputs import example_inputs, load_feeds
from splitload.runtime.options import CallerOptions

RUNS = 3
_ROLLUP = Path("/proc/self/smaps_rollup")


def answer(job: MeasureArena, folder: Path) -> dict[str, Any]:
    """Load stages as the loader does under a ceiling, run them, and return what that has taken beside weights.

    Memory that is not mapped from files counts: the arena, tensors outside it, and what kernels keep for themselves.
    """
    engine, _ = chosen("auto", None, CallerOptions(), None)
    files = {each.name: str(folder / each.file) for each in job.inputs if each.file is not None}
    given = example_inputs(job.inputs, load_feeds(files))
    sessions = [
        engine.open(
            str(folder / stage.graph), prepack=False, mapped=True, optimize=False, background=False, share_memory=True
        )
        for stage in job.stages
    ]
    engine.reserve(sessions[0], job.reserve_bytes)
    before = _anonymous_bytes()
    for _ in range(RUNS):
        values: dict[str, Any] = {
            each.name: engine.value(TensorSpec(each.name, each.type, each.shape), given[each.name])
            for each in job.inputs
        }
        _run(engine, job, sessions, values)
    return {"arena_bytes": max(_anonymous_bytes() - before, 0), "input_bytes": sum(map(_nbytes, given.values()))}


def _run(engine: Any, job: MeasureArena, sessions: list[Any], values: dict[str, Any]) -> None:
    boundaries = engine.boundaries(set())
    for number, (stage, session) in enumerate(zip(job.stages, sessions, strict=True)):
        names = [spec.name for spec in stage.outputs]
        results = engine.run_stage(session, stage, names, values, None, keep=False, boundaries=boundaries)
        later = {name for each in job.stages[number + 1 :] for name in each.inputs}
        for name in [name for name in values if name not in later]:
            boundaries.take_back(values.pop(name))
        values.update(zip(names, results, strict=True))


def _nbytes(value: Any) -> int:
    return int(getattr(value, "nbytes", 0))


def _anonymous_bytes() -> int:
    """Return what this process holds that is of no file."""
    rows: Mapping[str, str] = dict(line.split(":", 1) for line in _ROLLUP.read_text(encoding="ascii").splitlines()[1:])
    return int(rows["Anonymous"].split()[0]) * 1024

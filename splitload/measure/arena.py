"""Measures in a fresh process what a model takes beside its weights: sessions, and the runs that go through them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from splitload.measure.running import engine_for, given_values, in_form, start_runtime
from splitload.measure.stage_jobs import MeasureArena

RUNS = 3
_ROLLUP = Path("/proc/self/smaps_rollup")


def answer(job: MeasureArena, folder: Path) -> dict[str, Any]:
    """Load stages as the loader does under a ceiling, run them, and return what that has taken beside weights.

    Memory that is not mapped from files counts: sessions, the arena, tensors outside it, and what kernels keep for
    themselves; not what the runtime takes for the smallest model.
    """
    engine = engine_for(job.inputs, job.stages)
    given = given_values(engine, job.inputs, folder)
    start_runtime(engine, folder)
    before = _anonymous_bytes()
    sessions = [
        engine.open(
            str(folder / stage.graph), prepack=False, mapped=True, optimize=False, background=False, share_memory=True
        )
        for stage in job.stages
    ]
    engine.reserve(sessions[0], job.reserve_bytes)
    for _ in range(RUNS):
        _run(engine, job, sessions, in_form(engine, job.inputs, given))
    return {
        "anonymous_bytes": max(_anonymous_bytes() - before, 0),
        "input_bytes": sum(map(_nbytes, given.values())),
        "engine": engine.name,
        "runtime": engine.version,
    }


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

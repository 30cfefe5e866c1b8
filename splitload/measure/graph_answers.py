"""What a job on a graph may answer that was done on another machine; see `answers`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from splitload.base.errors import BundleError
from splitload.base.fields import Reader, is_count
from splitload.measure.graph_jobs import OpenGraph, OptimizeGraph, RaceGraphs, RunGraph, RunStages, SeeShapes
from splitload.measure.job import Job, tensor_of

_REASON_CHARS = 4000
_MOST_BYTES = 1 << 40  # of a file of weights


def graph_answer(job: Job, row: Reader) -> dict[str, Any]:
    """Return the answer to a job on a graph, if it can be one.

    Raises:
        BundleError: If it cannot.
    """
    refused = row.optional_text("refused")
    if refused is None:
        return {"refused": None, **_READ[type(job)](job, row)}
    found: dict[str, Any] = {"refused": refused[:_REASON_CHARS]}
    if isinstance(job, RunStages):
        found["stage"] = row.count("stage")
        if found["stage"] >= len(job.stages):
            raise BundleError(f"{row.where}.stage is {found['stage']} of {len(job.stages)}")
    return found


def _signature(_: Job, row: Reader) -> dict[str, Any]:
    return {key: [tensor_of(each)._asdict() for each in row.items(key)] for key in ("inputs", "outputs")}


def _optimized(job: OptimizeGraph, row: Reader) -> dict[str, Any]:
    weights, end = [], 0
    for each in row.items("weights"):
        each.only("offset", "length", "sha256")
        offset, length = each.count("offset"), each.count("length")
        if offset < end or offset + length > _MOST_BYTES:
            raise BundleError(f"{each.where} lies where another weight does, or too far away")
        end = offset + length
        weights.append({"offset": offset, "length": length, "sha256": each.sha256("sha256")})
    if weights and job.weights_file is None:
        raise BundleError(f"{row.where}.weights are of a graph that has no file for them")
    return {**_signature(job, row), "weights": weights}


def _ran(job: RunGraph | RunStages, row: Reader) -> dict[str, Any]:
    outputs = row.sequence("outputs")
    if len(outputs) != len(job.outputs) or not all(each is None or isinstance(each, str) for each in outputs):
        raise BundleError(f"{row.where}.outputs must be {len(job.outputs)} names of files or null")
    return {"outputs": outputs}


def _shapes(job: SeeShapes, row: Reader) -> dict[str, Any]:
    shapes = row.mapping("shapes")
    made = {name for piece in job.pieces for name in piece.makes}
    for name, sizes in shapes.items():
        if name not in made or not isinstance(sizes, list) or not all(map(is_count, sizes)):
            raise BundleError(f"{row.where}.shapes must hold sizes of what was asked for, of {name!r:.40} it does not")
    return {"shapes": shapes}


def _raced(_: RaceGraphs, row: Reader) -> dict[str, Any]:
    times = {name: row.number(name) for name in ("changed_s", "original_s")}
    if min(times.values()) < 0:
        raise BundleError(f"{row.where} has seconds below 0")
    return {"alike": row.flag("alike"), **times}


_READ: Mapping[type[Job], Callable[[Any, Reader], dict[str, Any]]] = {
    OptimizeGraph: _optimized,
    OpenGraph: _signature,
    RunGraph: _ran,
    RunStages: _ran,
    SeeShapes: _shapes,
    RaceGraphs: _raced,
}

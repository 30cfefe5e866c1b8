"""Does the jobs on the graph of a model in a fresh process, with the onnxruntime that is there; needs no onnx."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from splitload.base.pieces import PIECE_BYTES
from splitload.bundle.references import stored_pieces
from splitload.graphs.here import HERE, StageWay, run_staged, seen_shapes
from splitload.graphs.runtime import GraphPiece, Refusal, Signature, StageRefusal
from splitload.measure.__main__ import saved_output
from splitload.measure.graph_jobs import OpenGraph, OptimizeGraph, RaceGraphs, RunGraph, RunStages, SeeShapes
from splitload.measure.job import Input, Job
from splitload.runtime.inputs import example_inputs, load_feeds

_REASON = 2000  # characters


def answer(job: Job, folder: Path) -> dict[str, Any]:
    """Do one of the jobs on graphs; return its answer."""
    try:
        return {"refused": None, **_WORK[type(job)](job, folder)}
    except StageRefusal as refused:
        return {"refused": str(refused)[:_REASON], "stage": refused.number}
    except Refusal as refused:
        return {"refused": str(refused)[:_REASON]}


def _optimize(job: OptimizeGraph, folder: Path) -> dict[str, Any]:
    """Optimise a graph; leave of its weights what the asker does not know."""
    signature = HERE.optimize(folder / job.graph, folder / job.target, job.level)
    weights = [] if job.weights_file is None else _keep_new(folder / job.target, folder / job.weights_file, job.known)
    return {**_said(signature), "weights": weights}


def _keep_new(graph: Path, data: Path, known: tuple[str, ...]) -> list[dict[str, Any]]:
    """Leave in a file of weights those that are not known, each once; return where each weight lay, and its hash."""
    places = sorted({piece[1:] for piece in stored_pieces(graph) if piece.file == data.name})
    if not places:
        return []
    there = set(known)
    rows = []
    left = data.with_suffix(".left")
    with data.open("rb") as source, left.open("wb", PIECE_BYTES) as out:
        for offset, length in places:
            digest = hashlib.sha256()
            _each_chunk(source, offset, length, digest.update)
            sha256 = digest.hexdigest()
            rows.append({"offset": offset, "length": length, "sha256": sha256})
            if sha256 not in there:
                there.add(sha256)
                _each_chunk(source, offset, length, out.write)
    left.replace(data)
    return rows


def _each_chunk(source: Any, offset: int, length: int, take: Callable[[bytes], Any]) -> None:
    source.seek(offset)
    while length:
        chunk = source.read(min(length, PIECE_BYTES))
        if not chunk:
            raise OSError("the optimised model's weights end too soon")
        take(chunk)
        length -= len(chunk)


def _open(job: OpenGraph, folder: Path) -> dict[str, Any]:
    return _said(HERE.open(folder / job.graph, optimize=job.optimize, prepack=job.prepack))


def _run(job: RunGraph, folder: Path) -> dict[str, Any]:
    feeds = _values(job.inputs, folder)
    return _saved(HERE.run(folder / job.graph, job.outputs, feeds, how=job.how, times=job.times), folder)


def _staged(job: RunStages, folder: Path) -> dict[str, Any]:
    stages = [
        StageWay(
            folder / stage.graph,
            stage.inputs,
            stage.outputs,
            {"prepack": stage.prepack, "optimize": stage.optimize(stage.prepack)},
        )
        for stage in job.stages
    ]
    return _saved(run_staged(stages, job.outputs, _values(job.inputs, folder)), folder)


def _shapes(job: SeeShapes, folder: Path) -> dict[str, Any]:
    pieces = ((folder / each.graph, GraphPiece(b"", each.reads, each.makes, each.kept)) for each in job.pieces)
    return {"shapes": seen_shapes(pieces, _values(job.inputs, folder))}


def _race(job: RaceGraphs, folder: Path) -> dict[str, Any]:
    feeds = _values(job.inputs, folder)
    return HERE.race(folder / job.changed, folder / job.original, feeds)._asdict()


_WORK: dict[type[Job], Callable[[Any, Path], dict[str, Any]]] = {
    OptimizeGraph: _optimize,
    OpenGraph: _open,
    RunGraph: _run,
    RunStages: _staged,
    SeeShapes: _shapes,
    RaceGraphs: _race,
}


def _said(signature: Signature) -> dict[str, Any]:
    return {name: [spec._asdict() for spec in specs] for name, specs in signature._asdict().items()}


def _saved(values: list[Any], folder: Path) -> dict[str, Any]:
    return {
        "outputs": [saved_output(value, str(folder), f"output-{number}.npy") for number, value in enumerate(values)]
    }


def _values(inputs: Sequence[Input], folder: Path) -> dict[str, Any]:
    """Return a value for each input, from its file where it has one."""
    files = {each.name: str(folder / each.file) for each in inputs if each.file is not None}
    return example_inputs(inputs, load_feeds(files))

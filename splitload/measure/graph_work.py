"""Does the jobs on the graph of a model in a fresh process, with the onnxruntime that is there; needs no onnx.

Without numpy, or without onnxruntime's Python module, the C library does them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.pieces import PIECE_BYTES
from splitload.bundle.references import stored_pieces
from splitload.graphs.runtime import GraphPiece, Refusal, Signature, StageRefusal
from splitload.measure.__main__ import has_module, saved_output
from splitload.measure.graph_jobs import OpenGraph, OptimizeGraph, RaceGraphs, RunGraph, RunStages, SeeShapes
from splitload.measure.job import Job
from splitload.measure.running import values_of
from splitload.measure.stage_jobs import StageFile
from splitload.runtime.inputs import Arrays

if TYPE_CHECKING:
    from splitload.measure.library_graphs import LibraryGraphs

_REASON = 2000  # characters


def answer(job: Job, folder: Path) -> dict[str, Any]:
    """Do one of the jobs on graphs; return its answer."""
    try:
        return {"refused": None, **_WORK[type(job)](job, folder, _place())}
    except StageRefusal as refused:
        return {"refused": str(refused)[:_REASON], "stage": refused.number}
    except Refusal as refused:
        return {"refused": str(refused)[:_REASON]}


class _Module:
    """The Python module, with the methods of `LibraryGraphs`."""

    arrays: Arrays = "numpy"

    def __init__(self) -> None:
        from splitload.graphs import here

        self._here = here
        self.optimize, self.open, self.run = here.HERE.optimize, here.HERE.open, here.HERE.run
        self.race, self.shapes = here.HERE.race, here.seen_shapes

    def staged(
        self, folder: Path, stages: Sequence[StageFile], outputs: Sequence[str], feeds: Mapping[str, Any]
    ) -> list[Any]:
        """Return outputs of a variant of a bundle."""
        ways = [
            self._here.StageWay(
                folder / stage.graph,
                stage.inputs,
                stage.outputs,
                {"prepack": stage.prepack, "optimize": stage.optimizes(stage.prepack)},
            )
            for stage in stages
        ]
        return self._here.run_staged(ways, outputs, feeds)


def _place() -> _Module | LibraryGraphs:
    """Return what does the job."""
    if has_module("numpy") and has_module("onnxruntime"):
        return _Module()
    from splitload.measure.library_graphs import LibraryGraphs

    return LibraryGraphs()


def _optimize(job: OptimizeGraph, folder: Path, place: Any) -> dict[str, Any]:
    """Optimise a graph; leave of its weights what the asker does not know."""
    for name in filter(None, (job.target, job.weights_file)):
        (folder / name).unlink(missing_ok=True)  # a file that came with the job may be another name of a kept one
    signature = place.optimize(folder / job.graph, folder / job.target, job.level)
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


def _open(job: OpenGraph, folder: Path, place: Any) -> dict[str, Any]:
    return _said(place.open(folder / job.graph, optimize=job.optimize, prepack=job.prepack))


def _run(job: RunGraph, folder: Path, place: Any) -> dict[str, Any]:
    feeds = values_of(job.inputs, folder, place.arrays)
    return _saved(place.run(folder / job.graph, job.outputs, feeds, how=job.how, times=job.times), folder)


def _staged(job: RunStages, folder: Path, place: Any) -> dict[str, Any]:
    return _saved(place.staged(folder, job.stages, job.outputs, values_of(job.inputs, folder, place.arrays)), folder)


def _shapes(job: SeeShapes, folder: Path, place: Any) -> dict[str, Any]:
    pieces = ((folder / each.graph, GraphPiece(b"", each.reads, each.makes, each.kept)) for each in job.pieces)
    return {"shapes": place.shapes(pieces, values_of(job.inputs, folder, place.arrays))}


def _race(job: RaceGraphs, folder: Path, place: Any) -> dict[str, Any]:
    feeds = values_of(job.inputs, folder, place.arrays)
    race: dict[str, Any] = place.race(folder / job.changed, folder / job.original, feeds)._asdict()
    return race


_WORK: dict[type[Job], Callable[[Any, Path, Any], dict[str, Any]]] = {
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
    names = []
    for number, value in enumerate(values):
        file = f"output-{number}.npy"
        (folder / file).unlink(missing_ok=True)
        names.append(saved_output(value, str(folder), file))
    return {"outputs": names}

"""Jobs of fresh processes on the graph of a model: what its maker asks of the runtime that it is made for.

onnxruntime may refuse a model, and that is an answer: every one has `refused`, what it says, or None. Files lie in the
folder of the job or in folders of it; what a job makes lies in the folder itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import PurePosixPath, PureWindowsPath
from typing import ClassVar

from splitload.base.errors import BundleError
from splitload.base.fields import Reader
from splitload.bundle.validate import is_plain
from splitload.graphs.runtime import How, Level
from splitload.measure.job import Input, Job, inputs_of
from splitload.measure.stage_jobs import StageFile, stages_of

HOWS: tuple[How, ...] = ("plain", "packed", "stock")
LEVELS: tuple[Level, ...] = ("all", "basic", "none")


@dataclass(frozen=True, slots=True)
class OptimizeGraph(Job):
    """Optimise a graph and write it; see `GraphRuntime.optimize`.

    The answer has `inputs` and `outputs`, as `TensorSpec`s, and `weights`: of each weight that lies in the .bin file of
    the target its place there, `offset` and `length`, and its `sha256`. That file holds, one after the other, those
    alone that the asker does not know, each once.

    Attributes:
        graph: The .onnx file.
        target: Name of the .onnx or .ort file to write.
        level: How far it is optimised.
        known: SHA-256 of weights that the asker has.
    """

    kind: ClassVar[str] = "optimize"
    graph: str
    target: str
    level: Level
    known: tuple[str, ...] = ()

    @property
    def weights_file(self) -> str | None:
        """Name of the file for large weights; None where they lie in the graph's."""
        return f"{self.target.removesuffix('.onnx')}.bin" if self.target.endswith(".onnx") else None

    @classmethod
    def read(cls, row: Reader) -> OptimizeGraph:
        """Return what a message says."""
        target = row.text("target")
        if not is_plain(target) or not target.endswith((".onnx", ".ort")):
            raise BundleError(f"{row.where}.target must be the name of an .onnx or .ort file, it is {target!r:.80}")
        return cls(graph_name(row, "graph"), target, row.choice("level", *LEVELS), _texts(row, "known"))


@dataclass(frozen=True, slots=True)
class OpenGraph(Job):
    """Open a graph as a loader does; the answer has `inputs` and `outputs`, as `TensorSpec`s.

    Attributes:
        graph: The .onnx or .ort file.
        optimize: Whether onnxruntime optimises it.
        prepack: Whether weights are rearranged.
    """

    kind: ClassVar[str] = "open"
    graph: str
    optimize: bool = False
    prepack: bool = False

    @classmethod
    def read(cls, row: Reader) -> OpenGraph:
        """Return what a message says."""
        return cls(graph_name(row, "graph"), row.flag("optimize"), row.flag("prepack"))


@dataclass(frozen=True, slots=True)
class RunGraph(Job):
    """Run a graph; the answer has `outputs`: the names of .npy files, None for one that is no array.

    Attributes:
        graph: The .onnx or .ort file.
        inputs: Its inputs.
        outputs: Names of the wanted outputs.
        how: In which session.
        times: How often it runs; the last outputs count.
    """

    kind: ClassVar[str] = "run"
    graph: str
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    how: How = "plain"
    times: int = 1

    @classmethod
    def read(cls, row: Reader) -> RunGraph:
        """Return what a message says."""
        how = row.choice("how", *HOWS)
        return cls(graph_name(row, "graph"), inputs_of(row), _texts(row, "outputs"), how, row.count("times", 1))


@dataclass(frozen=True, slots=True)
class RunStages(Job):
    """Run stage after stage, one session at a time; the answer has `outputs` as that of `RunGraph`.

    Where a stage is refused it has `stage`, its number from 0.

    Attributes:
        inputs: The model's inputs.
        stages: All stages of a variant.
        outputs: Names of the model's outputs.
    """

    kind: ClassVar[str] = "staged"
    inputs: tuple[Input, ...]
    stages: tuple[StageFile, ...]
    outputs: tuple[str, ...]

    @classmethod
    def read(cls, row: Reader) -> RunStages:
        """Return what a message says."""
        return cls(inputs_of(row), stages_of(row, "stages"), _texts(row, "outputs"))


@dataclass(frozen=True, slots=True)
class PieceFile:
    """A piece of a graph; see `GraphPiece`.

    Attributes:
        graph: The .onnx file.
        reads: Names of its inputs.
        makes: Names of its outputs.
        kept: Names of all values that later pieces read.
    """

    graph: str
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    kept: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SeeShapes(Job):
    """Run pieces of a graph one after the other; the answer has `shapes`, by the name of the tensor.

    Attributes:
        inputs: The graph's inputs.
        pieces: They, in order.
    """

    kind: ClassVar[str] = "shapes"
    inputs: tuple[Input, ...]
    pieces: tuple[PieceFile, ...]

    @classmethod
    def read(cls, row: Reader) -> SeeShapes:
        """Return what a message says."""
        pieces = []
        for each in row.items("pieces"):
            each.only(*(field.name for field in fields(PieceFile)))
            pieces.append(
                PieceFile(graph_name(each, "graph"), *(_texts(each, key) for key in ("reads", "makes", "kept")))
            )
        return cls(inputs_of(row), tuple(pieces))


@dataclass(frozen=True, slots=True)
class RaceGraphs(Job):
    """Run two graphs on the same inputs, in turns; the answer has the fields of `Race`.

    Attributes:
        changed: The .onnx file of the first.
        original: That of the second.
        inputs: Their inputs.
    """

    kind: ClassVar[str] = "race"
    changed: str
    original: str
    inputs: tuple[Input, ...]

    @classmethod
    def read(cls, row: Reader) -> RaceGraphs:
        """Return what a message says."""
        return cls(graph_name(row, "changed"), graph_name(row, "original"), inputs_of(row))


GRAPH_JOBS = (OptimizeGraph, OpenGraph, RunGraph, RunStages, SeeShapes, RaceGraphs)


def graphs_of(job: Job) -> tuple[str, ...]:
    """Return the graph files that a job on graphs reads, but for those of stages."""
    if hasattr(job, "pieces"):
        return tuple(piece.graph for piece in job.pieces)
    names = (getattr(job, name, None) for name in ("graph", "changed", "original"))
    return tuple(name for name in names if name is not None)


def output_files(outputs: list[str | None]) -> list[str]:
    """Return the names of the files with outputs that an answer says were written."""
    return [f"output-{number}.npy" for number, name in enumerate(outputs) if name is not None]


def graph_name(row: Reader, key: str) -> str:
    """Return the path of a graph file, which cannot lie outside the folder."""
    name = row.text(key)
    outside = any(path.anchor or ".." in path.parts for path in (PurePosixPath(name), PureWindowsPath(name)))
    if outside or not name.endswith((".onnx", ".ort")):
        raise BundleError(f"{row.where}.{key} must be an .onnx or .ort file in the folder, it is {name!r:.80}")
    return name


def _texts(row: Reader, key: str) -> tuple[str, ...]:
    values = row.sequence(key)
    if not all(isinstance(each, str) for each in values):
        raise BundleError(f"{row.where}.{key} must hold strings")
    return tuple(values)

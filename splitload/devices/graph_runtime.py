"""The onnxruntime of a device, as the runtime that a graph is made for: what it has to do goes there as jobs.

A graph is rewritten at the desk, which has onnx; a device has none, and no need of it. Weights that come back with an
optimised graph are those alone that the desk does not have.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from splitload.base.errors import DeviceError
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import StageEntry, TensorSpec
from splitload.bundle.references import referenced_files, weight_files
from splitload.devices.machine import Machine
from splitload.graphs.here import HERE
from splitload.graphs.runtime import (
    Beside,
    GraphPiece,
    GraphRuntime,
    How,
    Level,
    Model,
    Race,
    Refusal,
    Signature,
    StageRefusal,
)
from splitload.graphs.sent_weights import ReturnedWeight, SentWeights
from splitload.measure.fresh import save_inputs
from splitload.measure.graph_jobs import (
    OpenGraph,
    OptimizeGraph,
    PieceFile,
    RaceGraphs,
    RunGraph,
    RunStages,
    SeeShapes,
    output_files,
)
from splitload.measure.job import Input, Job
from splitload.measure.stage_jobs import StageFile
from splitload.runtime.inputs import DTYPES

_TYPES = {name: type_ for type_, name in DTYPES.items()}


def runtime_of(machine: Machine) -> GraphRuntime:
    """Return this process's runtime where a machine has the same processor and onnxruntime, else that of the machine.

    The same optimiser writes the same graph: one for such a machine is made here.
    """
    if (machine.cpu, machine.onnxruntime()) == (HERE.cpu, HERE.version):
        return HERE
    return FarRuntime(machine)


class FarRuntime:
    """The `GraphRuntime` of a machine.

    Args:
        machine: It.
    """

    is_here = False

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    @property
    def words(self) -> str:
        """What messages call the machine."""
        return self._machine.words

    @property
    def cpu(self) -> str:
        """Its kind of processor."""
        return self._machine.cpu

    @property
    def version(self) -> str:
        """The version of its onnxruntime."""
        return self._machine.onnxruntime()

    def optimize(self, model: Model, target: Path, level: Level) -> Signature:
        """Optimise a model there and write it here; see `GraphRuntime.optimize`."""
        to_onnx = target.suffix == ".onnx"
        sent = SentWeights(model) if to_onnx else None
        with scratch_folder(target.parent, ".far-") as folder:
            job = OptimizeGraph(_placed(model, folder, "0"), target.name, level, sent.known if sent else ())
            answer = self._done(job, folder)
            if to_onnx and (strange := referenced_files(folder / target.name) - {str(job.weights_file)}):
                raise DeviceError(
                    f"{self.words} answers with a graph that reads weights from {min(strange)!r:.80}; nothing of its "
                    "answer is kept"
                )
            if sent is not None and answer["weights"]:
                weights = [ReturnedWeight(**row) for row in answer["weights"]]
                sent.restore(weights, folder / str(job.weights_file), target.with_name(str(job.weights_file)))
            (folder / target.name).replace(target)
        return _signature(answer)

    def open(self, model: Model, *, optimize: bool = False, prepack: bool = False) -> Signature:
        """Open a model there; see `GraphRuntime.open`."""
        with _folder() as folder:
            return _signature(self._done(OpenGraph(_placed(model, folder, "0"), optimize, prepack), folder))

    def run(
        self, model: Model, outputs: Sequence[str], feeds: Mapping[str, Any], *, how: How = "plain", times: int = 1
    ) -> list[Any]:
        """Return outputs of a model, run there; see `GraphRuntime.run`."""
        with _folder() as folder:
            graph, inputs = _placed(model, folder, "0"), _saved(feeds, folder)
            answer = self._done(RunGraph(graph, inputs, tuple(outputs), how, times), folder)
            return _outputs(answer, outputs, folder)

    def shapes(
        self, folder: Path, pieces: Iterable[GraphPiece], feeds: Mapping[str, Any]
    ) -> dict[str, tuple[int, ...]]:
        """Run pieces of a graph there; see `GraphRuntime.shapes`."""
        with _folder() as made:
            files = [
                PieceFile(
                    _placed(Beside(folder, piece.data), made, "0", f"{number}.onnx"),
                    piece.reads,
                    piece.makes,
                    piece.kept,
                )
                for number, piece in enumerate(pieces)
            ]
            answer = self._done(SeeShapes(_saved(feeds, made), tuple(files)), made)
        return {name: tuple(sizes) for name, sizes in answer["shapes"].items()}

    def race(self, changed: Path, original: Path, feeds: Mapping[str, Any]) -> Race:
        """Run two graphs there, in turns; see `GraphRuntime.race`."""
        with _folder() as folder:
            job = RaceGraphs(_placed(changed, folder, "0"), _placed(original, folder, "1"), _saved(feeds, folder))
            answer = self._done(job, folder)
        return Race(answer["alike"], answer["changed_s"], answer["original_s"])

    def staged(
        self, folder: Path, stages: Sequence[StageEntry], outputs: Sequence[str], feeds: Mapping[str, Any]
    ) -> list[Any]:
        """Return outputs of a variant of a bundle, run there; see `GraphRuntime.staged`."""
        with _folder() as made:
            for stage in stages:
                _placed(folder / stage.graph.name, made, "")
            files = tuple(map(StageFile.of, stages))
            answer = self._done(RunStages(_saved(feeds, made), files, tuple(outputs)), made)
            return _outputs(answer, outputs, made)

    def _done(self, job: Job, folder: Path) -> dict[str, Any]:
        """Return what a job answers.

        Raises:
            Refusal: If onnxruntime refuses there.
            DeviceError: If the process there ends without an answer.
        """
        answer = self._machine.run(job, folder, self._failed)
        if (reason := answer["refused"]) is None:
            return answer
        raise Refusal(reason) if answer.get("stage") is None else StageRefusal(answer["stage"], reason)

    def _failed(self, line: str) -> DeviceError:
        return DeviceError(f"the native graph cannot be made on {self.words}: {line}")


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder for a job."""
    with scratch_folder(Path(tempfile.gettempdir()), "splitload-graph-") as folder:
        yield folder


def _placed(model: Model, folder: Path, place: str, name: str = "model.onnx") -> str:
    """Put a model into a folder of a job's, with links to the files of its weights; return its path there.

    Args:
        model: It; a file keeps its name.
        folder: The job's.
        place: Name of the folder in it; "" for the job's own.
        name: For a model in memory.
    """
    there = folder / place
    there.mkdir(exist_ok=True)
    if isinstance(model, Beside):
        graph, parent = there / name, model.folder
        graph.write_bytes(model.data)
    else:
        graph, parent = there / model.name, model.parent
        _link(model, graph)
    for location in weight_files(graph) if graph.suffix == ".onnx" else ():
        _link(parent / location, there / location)
    return graph.relative_to(folder).as_posix()


def _link(file: Path, link: Path) -> None:
    """Have a file stand in a folder of a job's, as a second name of it where that can be."""
    if link.exists():
        return
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        link.hardlink_to(file.resolve())  # for a model in memory, onnxruntime follows no other link to weights
    except OSError:  # on another file system; whoever sends the folder reads where a link leads to
        link.symlink_to(file.resolve())


def _saved(feeds: Mapping[str, Any], folder: Path) -> tuple[Input, ...]:
    """Return the inputs of a job, with their values in files; what numpy lacks the type of is made up there."""
    import onnxruntime as ort

    specs = [
        TensorSpec(name, value.data_type(), tuple(value.shape()))
        if isinstance(value, ort.OrtValue)
        else TensorSpec(name, _TYPES.get(str(getattr(value, "dtype", "")), ""), getattr(value, "shape", None))
        for name, value in feeds.items()
    ]
    arrays = {name: value for name, value in feeds.items() if not isinstance(value, ort.OrtValue)}
    return save_inputs(specs, arrays, folder)


def _outputs(answer: Mapping[str, Any], names: Sequence[str], folder: Path) -> list[Any]:
    """Return the outputs that a job wrote.

    Raises:
        Refusal: If one is no array.
    """
    import numpy as np

    files: list[str | None] = answer["outputs"]
    missing = [name for name, file in zip(names, files, strict=True) if file is None]
    if missing:
        raise Refusal(f"the output '{missing[0]}' is no array, which does not travel from a device")
    values = [np.load(folder / file, allow_pickle=False) for file in output_files(files)]
    return [value.astype(object) if value.dtype.kind == "U" else value for value in values]


def _signature(answer: Mapping[str, Any]) -> Signature:
    """Return what an answer says of a graph."""
    takes, gives = (
        tuple(
            TensorSpec(row["name"], row["type"], None if row["shape"] is None else tuple(row["shape"]))
            for row in answer[key]
        )
        for key in ("inputs", "outputs")
    )
    return Signature(takes, gives)

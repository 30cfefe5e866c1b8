"""Jobs: every kind survives its message, and a message that says anything else is refused in one line."""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import models
import pytest

from splitload.base.errors import StageError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.measure import __main__ as program
from splitload.measure import epoch
from splitload.measure.fresh import run_job, save_inputs
from splitload.measure.graph_jobs import (
    GRAPH_JOBS,
    OpenGraph,
    OptimizeGraph,
    PieceFile,
    RaceGraphs,
    RunGraph,
    RunStages,
    SeeShapes,
)
from splitload.measure.job import (
    MODEL_JOBS,
    VERSION,
    ConvertModel,
    Input,
    Job,
    LoadModel,
    LoadModule,
    TrainEpoch,
    read_job,
)
from splitload.measure.piece_jobs import SHARING_JOBS, TimedPiece, TimeMessages, TimePieces
from splitload.measure.process import PACKAGE
from splitload.measure.sampling import saved_inputs
from splitload.measure.stage_jobs import (
    STAGE_JOBS,
    ComparePacked,
    MeasureArena,
    SampleStages,
    StageFile,
    TryScheme,
)

CLASSES = (*MODEL_JOBS, *STAGE_JOBS, *GRAPH_JOBS, *SHARING_JOBS)
ADD = "g (float[2] x) => (float[2] y) { y = Add(x, x) }"
INPUTS = (Input("x", "tensor(float)", (1, "n", None), "x.npy"), Input("y", "tensor(bfloat16)", None))
STAGE = StageFile((0, 2), "blocks.ort", ("x",), (TensorSpec("h", "tensor(float)", None),), optimized=False)
READ = replace(STAGE, reading=(64, 4096))
TABLE = replace(STAGE, reading=(128, 96))  # read in places only, so that reading ends before it begins
JOBS: list[Job] = [
    LoadModel("splitload", ".", INPUTS, 2, steady=False),
    LoadModel("ncnn", "m.param", INPUTS, weights="m.bin", batch={"inputs": [0], "outputs": [233]}),
    LoadModel("torch", "m.pt", (), module={"package": "torchvision", "name": "vgg19"}, outputs=True),
    SampleStages(INPUTS, (STAGE,), pair=(STAGE, STAGE)),
    TryScheme(INPUTS, (STAGE, READ, TABLE), mapped=True, prefetch=False, prepack=True),
    ComparePacked(INPUTS, (STAGE,)),
    MeasureArena(INPUTS, (STAGE,), 1 << 20),
    ConvertModel("tuned", "zoo:vgg19", "m.onnx", "out", INPUTS),
    TrainEpoch("torch", "m.pt", "train.npz", "fc", 16, 1e-3, 2, {"package": "torchvision", "name": "vgg19"}),
    LoadModule("copy", "cpu", "float32", 1, 64, 3),
    OptimizeGraph("0/m.onnx", "model.onnx", "all", ("ab" * 32,)),
    OpenGraph("m.ort", prepack=True),
    RunGraph("0/m.onnx", INPUTS, ("y",), "stock", 2),
    RunStages(INPUTS, (STAGE,), ("y",)),
    SeeShapes(INPUTS, (PieceFile("0/0.onnx", ("x",), ("h", "y"), ("h",)),)),
    RaceGraphs("0/m.onnx", "1/m.onnx", INPUTS),
    TimePieces((TimedPiece("0.onnx", INPUTS), TimedPiece("1.onnx", ())), 3),
    TimeMessages((1000, 1 << 18), 3),
]


def sent(job: Job) -> Any:
    return json.loads(json.dumps(job.to_json()))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.kind)
def test_a_job_survives_its_message(job: Job) -> None:
    message = sent(job)
    assert (message["version"], message["kind"]) == (VERSION, job.kind)
    assert read_job(message, CLASSES) == job


def test_every_kind_is_tried() -> None:
    assert {type(job) for job in JOBS} == set(CLASSES)


def change(**values: Any) -> Callable[[Any], Any]:
    return lambda message: {**message, **values}


def stage(**values: Any) -> Callable[[Any], Any]:
    return lambda message: {**message, "chain": [{**message["chain"][0], **values}]}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda _: [], "job must be an object"),
        (change(version=2), "job.version must be 1, it is 2"),
        (lambda message: {"kind": "stages"}, "job.version is missing"),
        (change(kind="format the disk"), "job.kind must be one of"),
        (change(more=1), r"job has unknown keys \['more'\]"),
        (lambda message: {key: message[key] for key in message if key != "pair"}, "job.pair is missing"),
        (change(inputs=[{"name": "x", "type": "t", "shape": [1.5], "file": None}]), "must hold sizes, names and null"),
        (change(inputs=[{"name": "x", "type": "t", "shape": [], "file": 1}]), "must be a string"),
        (change(inputs=[{"name": "x", "type": "t", "shape": [], "file": None, "more": 1}]), "has unknown keys"),
        *(
            (change(inputs=[{"name": "x", "type": "t", "shape": [], "file": file}]), "file must lie inside the folder")
            for file in ("/etc/x.npy", "../x.npy", "a/../../x.npy", "..", "C:x.npy", "a\\..\\..\\x.npy")
        ),
        (stage(graph="../secret"), "must be the name of a file in the folder"),
        (stage(graph=".."), "must be the name of a file in the folder"),
        (stage(blocks=[1]), "must be two whole numbers"),
        (stage(inputs=[1]), "inputs must be strings"),
        (stage(prepack=1), "must be true or false"),
        (stage(more=1), "has unknown keys"),
    ],
)
def test_what_is_no_job(changed: Callable[[Any], Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        read_job(changed(sent(SampleStages(INPUTS, (STAGE,)))), CLASSES)
    assert "\n" not in str(caught.value)


def test_the_program_knows_the_same_version_and_keys_without_importing_them() -> None:
    assert program.VERSION == VERSION
    for keys, kind in ((program.LOAD_KEYS, LoadModel), (epoch.KEYS, TrainEpoch)):
        assert keys == {"version", "kind", *(field.name for field in fields(kind))}
    assert {each.kind for each in CLASSES if not each.whole_process} == set(program._MODULES)


class Odd(LoadModel):
    """A job of another version."""

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "version": VERSION + 1}


class OddStages(SampleStages):
    """A job with a key too many."""

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "more": 1}


@pytest.mark.parametrize(
    ("job", "message"),
    [(Odd("stock", "m", ()), "the job must be of version 1"), (OddStages((), ()), r"unknown keys \['more'\]")],
)
def test_the_program_refuses_what_is_no_job(job: Job, message: str, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=message) as caught:
        run_job(job, tmp_path, StageError)
    assert "\n" not in str(caught.value)


def test_a_job_needs_no_room_but_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.save(models.text(ADD), tmp_path)
    (tmp_path / "job").mkdir()
    inputs = save_inputs([TensorSpec("x", "tensor(float)", (2,))], {}, tmp_path / "job")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    answer = run_job(LoadModel("stock", str(model), inputs, steady=False), tmp_path / "job", StageError)
    assert answer["process_s"] > answer["ttfo_s"] > 0
    assert [file.name for file in (tmp_path / "job").iterdir()] == ["feed-0.npy"]


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_what_a_killed_process_left_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with saved_inputs([TensorSpec("x", "tensor(float)", (2,))], {}) as (folder, _):
        left = folder.with_name(folder.name.replace(folder.name[16:24], "abcdefgh"))
    left.mkdir()
    with saved_inputs([TensorSpec("x", "tensor(float)", (2,))], {}) as (folder, _):
        assert list(tmp_path.iterdir()) == [folder]
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_process_has_the_splitload_that_started_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tmp_path / "elsewhere" / "splitload" / "__init__.py"
    own.parent.mkdir(parents=True)
    own.write_text("WHOSE = 'own'")
    for name in [name for name in sys.modules if name.split(".")[0] == "splitload"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    for place, file in ((PACKAGE.parents[1], PACKAGE), (own.parents[1], own)):
        monkeypatch.setattr(sys, "argv", ["program", "message", "folder", str(place)])
        program.own_splitload()
        assert importlib.import_module("splitload").__file__ == str(file)
        monkeypatch.delitem(sys.modules, "splitload")


@pytest.mark.parametrize("sizes", [[], [0], [True], [(1 << 24) + 1], [1] * 17, "8"])
def test_sizes_of_messages_have_limits(sizes: Any) -> None:
    with pytest.raises(UsageError, match="sizes"):
        read_job({**sent(TimeMessages((8,), 1)), "sizes": sizes}, CLASSES)

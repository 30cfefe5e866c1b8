"""Jobs: every kind survives its message, and a message that says anything else is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import StageError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.measure import __main__ as program
from splitload.measure import epoch
from splitload.measure.fresh import run_job
from splitload.measure.job import (
    KINDS,
    VERSION,
    ComparePacked,
    ConvertModel,
    Input,
    Job,
    LoadModel,
    LoadModule,
    SampleStages,
    StageFile,
    TrainEpoch,
    TryScheme,
    read_job,
)

INPUTS = (Input("x", "tensor(float)", (1, "n", None), "x.npy"), Input("y", "tensor(bfloat16)", None))
STAGE = StageFile((0, 2), "blocks.ort", ("x",), (TensorSpec("h", "tensor(float)", None),), optimized=False)
JOBS: list[Job] = [
    LoadModel("splitload", ".", INPUTS, 2, steady=False),
    LoadModel("ncnn", "m.param", INPUTS, weights="m.bin", batch={"inputs": [0], "outputs": [233]}),
    LoadModel("torch", "m.pt", (), module={"package": "torchvision", "name": "vgg19"}, outputs=True),
    SampleStages(INPUTS, (STAGE,), pair=(STAGE, STAGE)),
    TryScheme(INPUTS, (STAGE,), mapped=True, prefetch=False, prepack=True),
    ComparePacked(INPUTS, (STAGE,)),
    ConvertModel("tuned", "zoo:vgg19", "m.onnx", "out", INPUTS),
    TrainEpoch("torch", "m.pt", "train.npz", "fc", 16, 1e-3, 2, {"package": "torchvision", "name": "vgg19"}),
    LoadModule("copy", "cpu", "float32", 1, 64, 3),
]


def sent(job: Job) -> Any:
    return json.loads(json.dumps(job.to_json()))


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.kind)
def test_a_job_survives_its_message(job: Job) -> None:
    message = sent(job)
    assert (message["version"], message["kind"]) == (VERSION, job.kind)
    assert read_job(message) == job


def test_every_kind_is_tried() -> None:
    assert {job.kind for job in JOBS} == set(KINDS)


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
        read_job(changed(sent(SampleStages(INPUTS, (STAGE,)))))
    assert "\n" not in str(caught.value)


def test_the_program_knows_the_same_version_and_keys_without_importing_them() -> None:
    assert program.VERSION == VERSION
    for keys, kind in ((program.LOAD_KEYS, LoadModel), (epoch.KEYS, TrainEpoch)):
        assert keys == {"version", "kind", *(field.name for field in fields(kind))}
    assert {kind for kind in KINDS if not KINDS[kind].whole_process} == set(program._MODULES)


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

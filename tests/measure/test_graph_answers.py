"""What another machine answers to jobs on graphs is checked before it counts, and so are the jobs themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import onnx
import pytest
from onnx import numpy_helper

from splitload.base.errors import DeviceError, StageError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.bundle.references import stored_pieces
from splitload.measure.answers import check_answer
from splitload.measure.fresh import run_job, save_inputs
from splitload.measure.graph_jobs import OpenGraph, OptimizeGraph, PieceFile, RaceGraphs, RunGraph, RunStages, SeeShapes
from splitload.measure.job import Job, read_job
from splitload.measure.job_files import PORTABLE_JOBS, files_made, job_files
from splitload.measure.stage_jobs import StageFile

OPTIMIZE = OptimizeGraph("0/m.onnx", "model.onnx", "all")
RUN, RACE = RunGraph("m.onnx", (), ("y",)), RaceGraphs("0/m.onnx", "1/m.onnx", ())
STAGES = RunStages((), (StageFile((0, 1), "a.ort", (), ()),), ("y",))
SHAPES = SeeShapes((), (PieceFile("0.onnx", (), ("h",), ()),))
INPUT = {"name": "x", "type": "tensor(float)", "shape": (1, "n", None)}
SAID: dict[str, Any] = {"refused": None, "inputs": [{**INPUT, "shape": [1, "n", None]}], "outputs": []}
WEIGHT = {"offset": 0, "length": 8, "sha256": "ab" * 32}


@pytest.mark.parametrize(
    ("job", "answer"),
    [
        (OpenGraph("m.onnx"), SAID),
        (OPTIMIZE, {**SAID, "weights": [WEIGHT, {**WEIGHT, "offset": 8}]}),
        (RUN, {"refused": None, "outputs": ["output-0.npy"]}),
        (STAGES, {"refused": "no such kernel", "stage": 0}),
        (SHAPES, {"refused": None, "shapes": {"h": [1, 2]}}),
        (RACE, {"refused": None, "alike": True, "changed_s": 0.1, "original_s": 0.2}),
        (RACE, {"refused": "no such kernel"}),
    ],
)
def test_what_a_device_may_answer(job: Job, answer: dict[str, Any]) -> None:
    found = check_answer(job, answer)
    assert found == ({**answer, "inputs": [INPUT]} if "inputs" in answer else answer)


@pytest.mark.parametrize(
    ("job", "answer"),
    [
        (OpenGraph("m.onnx"), {"refused": None, "inputs": [{"name": 1, "type": "t", "shape": []}], "outputs": []}),
        (OpenGraph("m.onnx"), {"inputs": [], "outputs": []}),
        (OPTIMIZE, {**SAID, "weights": [WEIGHT, {**WEIGHT, "offset": 4}]}),  # which would be written over another
        (OPTIMIZE, {**SAID, "weights": [{**WEIGHT, "offset": 1 << 60}]}),
        (OPTIMIZE, {**SAID, "weights": [{**WEIGHT, "sha256": "../x"}]}),
        (OptimizeGraph("m.onnx", "m.ort", "none"), {**SAID, "weights": [WEIGHT]}),
        (RUN, {"refused": None, "outputs": []}),
        (RUN, {"refused": None, "outputs": [3]}),
        (STAGES, {"refused": "no such kernel", "stage": 1}),
        (SHAPES, {"refused": None, "shapes": {"other": [1]}}),
        (SHAPES, {"refused": None, "shapes": {"h": [-1]}}),
        (RACE, {"refused": None, "alike": 1, "changed_s": 0.1, "original_s": 0.2}),
        (RACE, {"refused": None, "alike": True, "changed_s": float("nan"), "original_s": 0.2}),
        (RACE, {"refused": None, "alike": True, "changed_s": -1.0, "original_s": 0.2}),
    ],
)
def test_what_cannot_be(job: Job, answer: dict[str, Any]) -> None:
    with pytest.raises(DeviceError, match="answers what cannot be"):
        check_answer(job, answer)


@pytest.mark.parametrize(
    ("job", "changed"),
    [
        *((OpenGraph("m.onnx"), {"graph": name}) for name in ("/etc/m.onnx", "../m.onnx", "a/../../m.onnx", "passwd")),
        *((OPTIMIZE, {"target": name}) for name in ("../m.onnx", "a/m.onnx", "m.sh", ".onnx")),
        (OPTIMIZE, {"level": "most"}),
        (RUN, {"how": "cuda"}),
        (RUN, {"times": 0}),
        (SHAPES, {"pieces": [{"graph": "/m.onnx", "reads": [], "makes": [], "kept": []}]}),
        (SHAPES, {"pieces": [{"graph": "m.onnx", "reads": [1], "makes": [], "kept": []}]}),
    ],
)
def test_what_is_no_job_on_a_graph(job: Job, changed: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="a job that it cannot do"):
        read_job({**job.to_json(), **changed}, PORTABLE_JOBS)


def test_files_travel_with_their_weights_and_what_is_made_comes_back(tmp_path: Path) -> None:
    for place in ("0", "1"):
        (tmp_path / place).mkdir()
        model = models.chain(2, width=64)
        weights_bytes = sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)
        path = str(tmp_path / place / "m.onnx")
        onnx.save_model(model, path, save_as_external_data=True, location="w", size_threshold=64)
    assert sorted(job_files(RACE, tmp_path)) == ["0/m.onnx", "0/w", "1/m.onnx", "1/w"]
    pieces = stored_pieces(tmp_path / "0" / "m.onnx")
    assert {piece.file for piece in pieces} == {"w"}
    assert sum(piece.length for piece in pieces) == weights_bytes
    assert files_made(OPTIMIZE, {"refused": None, "weights": [WEIGHT]}) == ["model.onnx", "model.bin"]
    assert files_made(OPTIMIZE, {"refused": None, "weights": []}) == ["model.onnx"]
    assert files_made(OPTIMIZE, {"refused": "no"}) == []
    assert files_made(STAGES, {"outputs": ["output-0.npy", None]}) == ["output-0.npy"]


def test_a_file_that_came_with_a_job_is_not_written_to(tmp_path: Path) -> None:
    """It may be another name of one that the device keeps for all desks."""
    kept = models.save(models.text("g (float[2] x) => (float[2] y) { y = Tanh(x) }"), tmp_path, "kept.onnx")
    before = kept.read_bytes()
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "m.onnx").hardlink_to(kept)
    answer = run_job(OptimizeGraph("m.onnx", "m.onnx", "all"), tmp_path / "job", StageError)
    assert "doesn't exist" in answer["refused"]
    (tmp_path / "job" / "m.onnx").hardlink_to(kept)
    (tmp_path / "job" / "output-0.npy").hardlink_to(kept)
    inputs = save_inputs([TensorSpec("x", "tensor(float)", (2,))], {}, tmp_path / "job")
    assert run_job(RunGraph("m.onnx", inputs, ("y",)), tmp_path / "job", StageError)["outputs"] == ["output-0.npy"]
    assert kept.read_bytes() == before

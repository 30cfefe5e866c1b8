"""What a served device does with a job: throttled samples are repeated, files that were not sent are never read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import onnx
import pytest
from onnx import TensorProto, helper

from splitload.base.errors import BundleError, StageError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.deploy.conditions import Conditions
from splitload.measure import served
from splitload.measure.fresh import save_inputs
from splitload.measure.job import LoadModel, TrainEpoch
from splitload.measure.served import Measured, check_files, end_left_jobs
from splitload.measure.stage_jobs import SampleStages, StageFile

COOL = Conditions(50.0, 30.0, 1_000_000_000, 2_000_000_000, 0)
HOT = COOL._replace(throttles=1)
STOCK = LoadModel("stock", "model.onnx", (), steady=False)


def job_in(folder: Path) -> dict[str, Any]:
    models.save(models.chain(2, width=4), folder)
    inputs = save_inputs([TensorSpec("x", "tensor(float)", (1, 4))], {}, folder)
    return LoadModel("stock", "model.onnx", inputs, steady=False).to_json()


def ask(looks: list[Conditions], folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], list[Any]]:
    monkeypatch.setattr(served, "COOL_STEP_S", 0.0)
    moments, told = iter(looks), list[Any]()
    answer = Measured(lambda: next(moments, COOL)).do(job_in(folder), folder, False, told.append, threading.Event())
    return answer, told


def test_a_job_is_done_by_a_fresh_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, told = ask([], tmp_path, monkeypatch)
    assert answer["ttfo_s"] > 0
    assert answer["conditions"] == {
        "before": COOL.to_json(), "after": COOL.to_json(), "throttled": None, "repeated": [],
    }  # fmt: skip
    assert told == []


def test_a_sample_that_was_throttled_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, told = ask([COOL, COOL, HOT, HOT, HOT, HOT], tmp_path, monkeypatch)
    assert answer["conditions"]["repeated"] == ["its processors were throttled 1 times"]
    assert answer["conditions"]["throttled"] is None
    assert [each["event"] for each in told] == ["throttled"]


def test_one_that_stays_throttled_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "COOL_S", 0.0)
    at_limit = COOL._replace(headroom_c=0.0, temperature_c=90.0)
    answer, _ = ask([at_limit] * 20, tmp_path, monkeypatch)
    assert answer["conditions"]["throttled"] == "it is 90 °C hot, at its limit"
    assert len(answer["conditions"]["repeated"]) == served.TRIES - 1


@pytest.mark.parametrize("late", [False, True])
def test_a_job_is_killed_where_nobody_wants_it_or_it_takes_too_long(
    late: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    monkeypatch.setattr(served, "MOST_S", 0.01 if late else 900.0)

    def run_job(*_: Any, on_start: Callable[[Any], None], **__: Any) -> dict[str, Any]:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        on_start(child)
        if not late:
            stop.set()
        child.wait(30)
        raise StageError("the process ended with -9")

    monkeypatch.setattr(served, "run_job", run_job)
    words = "took more than 0.01 s" if late else "its order was ended"
    with pytest.raises(StageError, match=words):
        Measured(lambda: COOL).do(job_in(tmp_path), tmp_path, False, print, stop)
    stop.set()
    if not late:
        with pytest.raises(StageError, match="its order was ended"):  # before it began
            Measured(lambda: COOL).do(job_in(tmp_path), tmp_path, False, print, stop)


@pytest.mark.parametrize("location", ["/etc/passwd", "../secret", "a/../../secret", "missing", "*/_ORT_MEM_ADDR_/*"])
def test_weights_that_were_not_sent_are_never_read(location: str, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    (folder / "*" / "_ORT_MEM_ADDR_").mkdir(parents=True)
    (folder / "*" / "_ORT_MEM_ADDR_" / "*").write_bytes(bytes(64))  # as a client may send it
    (tmp_path / "secret").write_bytes(bytes(64))
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value=location)
    model = models.chain(1, width=4)
    model.graph.ClearField("initializer")
    model.graph.initializer.append(weight)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match=r"(which was not sent with|which does not lie beside) it; refused"):
        check_files(STOCK, folder)


def test_a_bundle_whose_graph_is_called_otherwise_reads_no_other_files(native_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "job"
    shutil.copytree(native_bundle, folder)
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="/etc/passwd")
    model = models.chain(1, width=4)
    model.graph.ClearField("initializer")
    model.graph.initializer.append(weight)
    (folder / "graph.pb").write_bytes(model.SerializeToString())
    text = (folder / "manifest.json").read_text()
    name = json.loads(text)["variants"][0]["stages"][0]["graph"]["name"]
    manifest = json.loads(text.replace(name, "graph.pb"))
    first = manifest["variants"][0]["stages"][0]
    first["graph"]["bytes"] = (folder / "graph.pb").stat().st_size
    first.pop("read_order", None)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="reads weights from '/etc/passwd', which its bundle does not name"):
        check_files(LoadModel("splitload", ".", (), steady=False), folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.ort", onnx.ModelProto().SerializeToString() or b"x", "no graph in onnxruntime's format"),
        ("model.pb", b"x", "a graph is an .onnx or .ort file"),
        ("model.ONNX", b"x", "a graph is an .onnx or .ort file"),
        ("model.onnx", b"no protobuf", "not an ONNX graph"),
        ("model.onnx", b"", "is empty"),
        (
            "other.onnx",
            helper.make_model(models.chain(1).graph).SerializeToString(),
            "the job reads 'model.onnx', which was not sent",
        ),
    ],
)
def test_graphs_are_what_their_names_say(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    named = "model.onnx" if name == "other.onnx" else name
    for job in (
        LoadModel("stock", named, (), steady=False),
        SampleStages((), (StageFile((0, 1), named, (), ()),)),
    ):
        with pytest.raises((BundleError, UsageError), match=words):
            check_files(job, tmp_path)


@pytest.mark.parametrize(
    "message",
    [
        None,
        [],
        {},
        {"version": 2, "kind": "load"},
        TrainEpoch("torch", "m.pt", "d.npz", "fc", 1, 1e-3, 1).to_json(),
        LoadModel("torch", "m.pt", (), module={"package": "os", "name": "system"}).to_json(),
        LoadModel("stock", "/etc/passwd", ()).to_json(),
        {**STOCK.to_json(), "custom_ops": "evil.so"},
        {**STOCK.to_json(), "inputs": [{"name": "x", "type": "t", "shape": [1], "file": "../../x.npy"}]},
        {**STOCK.to_json(), "path": "../m.onnx"},
    ],
)
def test_no_message_names_code_or_what_was_not_sent(message: Any) -> None:
    with pytest.raises(UsageError):
        Measured(lambda: COOL).check(message)


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="it is found in /proc")
def test_jobs_of_a_service_that_was_killed_are_ended_and_no_others(tmp_path: Path) -> None:
    sleeper = "import time; time.sleep(60)"
    places = [tmp_path / "jobs" / ("0" * 32) / ".job-x" / "job.json", tmp_path / "jobs" / "notes.txt"]
    left, other = (subprocess.Popen([sys.executable, "-c", sleeper, str(place)]) for place in places)
    try:
        (tmp_path / "jobs").mkdir()
        for _ in range(200):  # until both have become what they will be
            if all(b"sleep" in Path(f"/proc/{each.pid}/cmdline").read_bytes() for each in (left, other)):
                break
            time.sleep(0.01)
        end_left_jobs(tmp_path / "jobs")
        assert left.wait(20) == -9
        assert other.poll() is None
        os.kill(other.pid, 0)
    finally:
        for each in (left, other):
            each.kill()
            each.wait()

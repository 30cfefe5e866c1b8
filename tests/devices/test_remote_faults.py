"""Devices that lie, fail, forget or vanish: one line, nothing of a false answer is kept, and what can go on goes on."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lying_devices import Answer, answering, connected
from service_threads import DEVICE, TOKEN, serving

from splitload.base.errors import DeviceError, ModelError, OutputError, StageError
from splitload.deploy.credentials import Code
from splitload.devices import connection
from splitload.devices.pairing import Address
from splitload.devices.remote import RemoteDevice, RemoteMachine
from splitload.measure.job import LoadModel
from splitload.plan.graph import ModelGraph

JOB = LoadModel("stock", "m.ort", (), steady=False, outputs=True)
GOOD = {"ttfo_s": 0.3, "load_s": 0.1, "first_inference_s": 0.2, "steady_runs_s": [], "outputs": ["output-0.npy"]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "m.ort").write_bytes(b"0000ORTM and more")
    return tmp_path / "job"


def run(url: str, folder: Path, patience_s: float = 5.0) -> dict[str, Any]:
    with connected(url, TOKEN, patience_s) as device:
        return RemoteMachine(device).run(JOB, folder, ModelError)


def good(job: Any, folder: Path, *_: Any) -> dict[str, Any]:
    (folder / "output-0.npy").write_bytes(b"output")
    return dict(GOOD)


def saying(answer: Any) -> Callable[[str, str, bytes], Answer]:
    """Return a device that has all files and answers every job with this."""

    def speak(method: str, path: str, _: bytes) -> Answer:
        if "/events" in path:
            return 200, [json.dumps({"event": "done", "answer": answer, "made": []}).encode() + b"\n"]
        if path.endswith("/device"):
            return 200, [json.dumps(DEVICE).encode()]
        return 200, [b'{"state": "done", "ahead": 0, "missing": {}}'] if method == "PUT" else [b"{}"]

    return speak


def test_a_job_and_its_outputs(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "device", good) as url:
        assert run(url, folder) == GOOD
    assert (folder / "output-0.npy").read_bytes() == b"output"


@pytest.mark.parametrize(
    "change",
    [
        {"ttfo_s": float("nan")},
        {"ttfo_s": float("inf")},
        {"ttfo_s": -0.1},
        {"ttfo_s": 1e9},
        {"ttfo_s": 10**400},
        {"ttfo_s": "0.1"},
        {"ttfo_s": True},
        {"ttfo_s": None},
        {"steady_runs_s": {}},
        {"steady_runs_s": [0.1] * 5000},
        {"peak_memory_bytes": -1},
        {"peak_memory_bytes": 1 << 60},
        {"outputs": ["../../m.onnx"]},
        {"outputs": ["/etc/passwd"]},
        {"outputs": ["m.ort"]},
        {"outputs": ["output-1.npy"]},
        {"outputs": [["output-0.npy"]]},
        {"outputs": "output-0.npy"},
    ],
)
def test_figures_that_cannot_be_are_refused(folder: Path, change: dict[str, Any]) -> None:
    before = {each: each.read_bytes() for each in folder.iterdir()}
    with answering(saying({**GOOD, **change})) as url, pytest.raises(DeviceError, match="answers what cannot be") as it:
        run(url, folder)
    assert "\n" not in str(it.value)
    assert {each: each.read_bytes() for each in folder.iterdir()} == before


@pytest.mark.parametrize("answer", [None, [], "x", 1, {}, {"rows": []}])
def test_answers_that_are_none(folder: Path, answer: Any) -> None:
    with answering(saying(answer)) as url, pytest.raises(DeviceError, match="answers what cannot be"):
        run(url, folder)


@pytest.mark.parametrize(
    "missing", [None, [], {"0" * 64: 0}, {"m.ort": 0}, {"OWN": -1}, {"OWN": 1 << 40}, {"OWN": "0"}, {"OWN": True}]
)
def test_files_that_it_was_not_told_of_are_not_sent(folder: Path, missing: Any) -> None:
    def speak(method: str, path: str, body: bytes) -> Answer:
        if method != "PUT":
            return 200, [b"{}"]
        own = json.loads(body)["files"][0]["sha256"]
        return 200, [json.dumps({"missing": missing}).replace("OWN", own).encode()]

    with answering(speak) as url, pytest.raises(DeviceError, match="asks for files that it was not told of"):
        run(url, folder)


def test_a_device_that_never_has_enough_is_left(folder: Path) -> None:
    def speak(method: str, path: str, body: bytes) -> Answer:
        if "/files/" in path:
            return 200, [json.dumps({"there": (folder / "m.ort").stat().st_size}).encode()]
        return 200, [json.dumps({"missing": {json.loads(body)["files"][0]["sha256"]: 0}} if body else {}).encode()]

    with answering(speak) as url, pytest.raises(DeviceError, match="asks for the same files after 8 times"):
        run(url, folder)


def test_lies_do_not_reach_the_profile_cache(graphs: dict[str, ModelGraph], tmp_path: Path) -> None:
    names = ("load_s", "first_inference_s", "inference_s", "load_wait_s", "first_wait_s")
    rows = [{"start": 0, "end": 1, **dict.fromkeys(names, 1.0)}]  # not all that was asked for
    with answering(saying({"rows": rows, "serial_share": 0.5})) as url:
        device = RemoteDevice(Address(url, Code(TOKEN, None)), tmp_path / "desk", repeats=1)
        with pytest.raises(DeviceError, match="must be of the"):
            device.profile(graphs["native"])
        device.close()
    assert not [each for each in (tmp_path / "desk").rglob("*") if each.is_file()]


@pytest.mark.parametrize(
    "change",
    [
        {"threads": 0},
        {"threads": 1 << 40},
        {"threads": True},
        {"name": "a\x1b[31m"},
        {"name": "a" * 300},
        {"name": "a/../b"},
        {"cpu": None},
    ],
)
def test_descriptions_that_are_none(change: dict[str, Any], tmp_path: Path) -> None:
    said = json.dumps({**DEVICE, **change}).encode()
    with answering(lambda *_: (200, [said])) as url, pytest.raises(DeviceError, match="is no device"):
        RemoteDevice(Address(url, Code(TOKEN, None)), tmp_path)


def test_whose_fault_it_is_is_told_apart(folder: Path, tmp_path: Path) -> None:
    errors = iter([StageError("no such operator"), OutputError("no space left")])

    def fails(*_: Any) -> dict[str, Any]:
        raise next(errors)

    with serving(tmp_path / "device", fails) as url:
        with pytest.raises(ModelError, match="no such operator"):
            run(url, folder)
        with pytest.raises(DeviceError, match=r"no space left \(on the device\)"):  # no fault of the model's
            run(url, folder)
    with serving(tmp_path / "small", good, cap_bytes=5) as url, pytest.raises(DeviceError, match=r"lacks .*on the dev"):
        run(url, folder)


def test_an_order_that_is_forgotten_before_its_outputs_came_is_done_again(folder: Path, tmp_path: Path) -> None:
    with serving(tmp_path / "device", good) as url, connected(url, TOKEN) as device:
        machine = RemoteMachine(device)
        fetch, numbers = device.fetch, []

        def forgetting(path: str, *rest: Any) -> None:
            numbers.append(path)
            if len(numbers) == 1:  # the service is killed, and started again
                device.ask("DELETE", path.partition("/files/")[0])
            fetch(path, *rest)

        device.fetch = forgetting  # type: ignore[method-assign]
        assert machine.run(JOB, folder, ModelError) == GOOD
        assert len(numbers) == 2


def test_files_are_sent_ahead_and_nothing_is_left_of_it(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(bytes(3 << 20))
    with serving(tmp_path / "device", good) as url, connected(url, TOKEN) as device:
        machine = RemoteMachine(device)
        machine.expect([tmp_path / "large.bin", tmp_path / "missing.bin"])
        machine.run(JOB, folder, ModelError)
        for thread in threading.enumerate():
            if thread.name == "ahead":
                thread.join(20)
        sent = machine.transfer.sent_bytes + machine.transfer.copied_bytes
        assert sent == (3 << 20) + (folder / "m.ort").stat().st_size


def test_a_device_that_vanishes_is_one_line_and_what_was_measured_is_kept(
    graphs: dict[str, ModelGraph], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "_LONGEST_PAUSE_S", 0.1)
    jobs = []

    def answer(job: dict[str, Any], *_: Any) -> dict[str, Any]:
        jobs.append(job["kind"])
        if job["kind"] == "load":
            return {**GOOD, "outputs": []}
        ranges = [each["blocks"] for each in (*job["chain"], *job["segments"])]
        figures = {
            "load_s": 0.01,
            "first_inference_s": 0.01,
            "inference_s": 0.01,
            "load_wait_s": 0.0,
            "first_wait_s": 0.0,
        }
        rows = [{"start": start, "end": end, **figures} for start, end in ranges]
        return {"rows": rows, "serial_share": 0.5 if job["pair"] else None}

    def vanishing(job: dict[str, Any], folder: Path, tell: Any, stop: threading.Event) -> dict[str, Any]:
        if job["kind"] == "load":
            gone.set()
            stop.wait(20)
            raise StageError("stopped")
        return answer(job)

    gone, graph = threading.Event(), graphs["native"]
    with contextlib.ExitStack() as stack:
        with serving(tmp_path / "device", vanishing) as url:
            device = stack.enter_context(connected(url, TOKEN, patience_s=0.5))
            first = RemoteDevice(Address(url, Code(TOKEN, None)), tmp_path / "desk", repeats=1, connection=device)
            ends: list[DeviceError] = []

            def profile() -> None:
                try:
                    first.profile(graph)
                except DeviceError as error:
                    ends.append(error)

            measuring = threading.Thread(target=profile)
            measuring.start()
            assert gone.wait(20)
            device._client.base_url = (
                "http://127.0.0.1:9"  # nothing is there: the service ends now, and does not return
            )
        measuring.join(30)
    assert "what was measured so far is kept" in str(ends[0])
    measured = jobs.count("stages")
    with serving(tmp_path / "again", answer) as url, connected(url, TOKEN) as device:
        again = RemoteDevice(Address(url, Code(TOKEN, None)), tmp_path / "desk", repeats=1, connection=device)
        again.profile(graph)
    assert jobs.count("stages") == measured  # the sample of before was taken

"""`planner.train` makes a bundle of a request, tells what it does, and prints nothing."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitload.base.errors import OutputError, UsageError
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.planner.report import Report
from splitload.planner.request import TrainRequest
from splitload.planner.train import train


class Told:
    """A `Report` that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.work: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    @contextlib.contextmanager
    def status(self, text: str) -> Iterator[None]:
        self.work.append(text)
        yield

    @contextlib.contextmanager
    def progress(self, text: str, unit: str) -> Iterator[Callable[..., None]]:
        self.work.append(f"{text}, {unit}")
        yield lambda *_, **__: None


@pytest.fixture
def request_of(chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., TrainRequest]:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def make(**settings: Any) -> TrainRequest:
        given = {"model": str(chain_model), "device": "s20", "agent": "exact", "output": "b.splitload"}
        return TrainRequest(cache=tmp_path / "cache", **{**given, **settings})

    return make


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in result.items() if key != "search_s"}


def test_what_is_returned_is_what_the_command_prints(
    request_of: Callable[..., TrainRequest], capsys: pytest.CaptureFixture[str]
) -> None:
    told = Told()
    report: Report = told
    request = request_of(max_stages=99, output="a.splitload")
    result = train(request, report)
    assert "".join(capsys.readouterr()) == ""
    assert len(told.notes) == 1
    assert "and so at most as many stages" in told.notes[0]
    assert told.work[0] == f"reading {request.model}"
    assert "writing the bundle, stages" in told.work
    words = ["train", request.model, "--device", "s20", "--agent", "exact", "--max-stages", "99"]
    assert main([*words, "-o", "b.splitload", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    made = json.loads(json.dumps(result.to_json()))
    assert list(made) == list(printed)
    assert without_times(made | {"bundle": "b.splitload"}) == without_times(printed)
    assert result.found.partition.num_stages == len(read_manifest(request.target).variants[0].stages)


def test_arrays_stay_arrays(request_of: Callable[..., TrainRequest], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("an array was read from a file"))
    feeds = {"x": np.ones((1, 16), np.float32)}
    result = train(request_of(feeds=feeds), Told())
    assert result.agreement.to_json()["made_up"] == ["z"]


def test_what_cannot_be_written_is_said_before_any_work(request_of: Callable[..., TrainRequest]) -> None:
    told = Told()
    Path("notes").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        train(request_of(output="notes"), told)
    with pytest.raises(OutputError, match="there is no folder 'none'"):
        train(request_of(agent="sarsa", curve="none/c.csv"), told)
    with pytest.raises(UsageError, match="on 's20' none are"):
        train(request_of(budget=9), told)
    assert told.work == []


def test_a_fresh_head_alone_is_trained(request_of: Callable[..., TrainRequest]) -> None:
    request = request_of(new_head=3, max_stages=2)
    result = train(request, Told())
    trained = result.to_json()["trained"]
    assert [len(trained["layers"]), request.trainable] == [1, None]
    assert read_manifest(request.target).plan["trainable"] == "1"

"""The study of client libraries, with a client of our own in place of an installed one."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitload.studies import client_calls, client_tables, clients
from splitload.studies.client_calls import CLIENTS, Client, plain

MODEL = "package/model.onnx"


def test_answers_become_numbers_and_texts_in_lists() -> None:
    value = {"a": np.arange(2, dtype=np.float32), 1: ("b", None, np.float64(0.5), True)}
    assert plain(value) == [["a", [0.0, 1.0]], ["1", ["b", None, 0.5, 1.0]]]


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1.0, -10.0, "a"], [1.0, -9.0, "a"], 0.1),
        (["a", [1.0]], ["b", [1.0]], 1.0),
        ([1.0], [1.0, 1.0], 1.0),
        ([], [], 1.0),  # who computes nothing has shown nothing
        ([0.0], [0.0], 0.0),
        ([None, 1.0], [None, 1.0], 0.0),
    ],
)
def test_answers_are_compared_by_their_largest_number(one: Any, other: Any, expected: float) -> None:
    assert clients.difference(one, other) == pytest.approx(expected)


def test_a_folder_of_one_machine_is_in_no_record() -> None:
    words = ["magika", "--folder", "/some/where", "--folder=/else", "rapidocr"]
    assert clients._without_folder(words) == ["magika", "rapidocr"]


def test_every_client_says_what_it_needs_besides_what_is_tested() -> None:
    assert len(CLIENTS) >= 12
    for name, client in CLIENTS.items():
        assert not {need.partition("=")[0].lower() for need in (name, *client.needs)} & {
            "torch",
            "numpy",
            "onnxruntime",
        }


@pytest.fixture
def own_client(chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where a client `own` is installed, whose model is the chain."""
    place = tmp_path / "packages" / MODEL
    place.parent.mkdir(parents=True)
    place.write_bytes(chain_model.read_bytes())
    monkeypatch.setitem(CLIENTS, "own", Client(compute, ("package/*.onnx",)))
    monkeypatch.setattr(clients, "_install", lambda *_: "1.0")
    monkeypatch.setattr(clients, "_call", called_here)
    return tmp_path


def compute(models: list[Path]) -> Any:
    import onnxruntime
    import runtime_models

    return onnxruntime.InferenceSession(models[0]).run(None, runtime_models.feeds())


def called_here(name: str, packages: Path, models: list[Path], bundles: list[Path]) -> Any:
    """Do what the process of a client does."""
    import onnxruntime

    kept, words, path = (onnxruntime.InferenceSession, onnxruntime.IOBinding), sys.argv, list(sys.path)
    lists = [json.dumps([str(each) for each in files]) for files in (models, bundles)]
    printed: list[str] = []
    try:
        sys.argv = ["client_calls", name, str(packages), *lists]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("builtins.print", printed.append)
            assert client_calls.main() == 0
    finally:
        onnxruntime.InferenceSession, onnxruntime.IOBinding = kept
        sys.argv, sys.path[:] = words, path
    return json.loads(printed[-1])


def test_a_client_on_bundles_is_compared_with_itself_on_sessions(own_client: Path) -> None:
    row = clients.row_of("own", own_client, Path("none.onnx"))
    assert (row["error"], row["models"], row["bundles"], row["refused"]) == (None, 1, 1, [])
    assert (row["sessions"], row["from_bundles"], row["plain"]) == (1, 1, [])
    assert row["difference"] < clients.TOLERANCE
    table = client_tables.clients([("clients.json", {"rows": [row]})])[1]
    assert table[0][:4] == ("own 1.0", "1", "1", "1 of 1")
    assert table[-1][-1] == "1 of 1 ok"


def test_what_fails_is_in_the_record(own_client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (own_client / "packages" / MODEL).write_bytes(b"no model")
    monkeypatch.setattr(
        clients, "_call", lambda *_: {"result": [1.0], "sessions": 1, "from_bundles": 0, "reasons": ["x"]}
    )
    row = clients.row_of("own", own_client, Path("none.onnx"))
    assert row["error"] == "no session came from a bundle"
    assert row["refused"][0].startswith("model.onnx: ")
    assert str(own_client.parent) not in json.dumps(row)
    assert client_tables.clients([("clients.json", {"rows": [row]})])[1][-1][-1] == "0 of 1 ok"


def test_an_unknown_client_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert clients.main(["nobody"]) == 2
    assert capsys.readouterr().err.startswith("no client is called 'nobody'")

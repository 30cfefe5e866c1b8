"""The command that tries every cut point, and its record."""

import json

import models
import pytest

from splitload.build.equality import Outcome
from splitload.studies import cuts


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(models.save(models.chain(5), tmp_path, "five.onnx"))


def test_cuts_writes_what_it_found(tmp_path, model):
    assert cuts.main([model, "-o", str(tmp_path / "found.json")]) == 0
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["kind"] == "cuts"
    assert record["provenance"]["command"].startswith("python -m splitload.studies.cuts")
    assert [(row["model"], row["graph"], row["passed"], row["num_cuts"]) for row in record["rows"]] == [
        ("five", "native", True, 4),
        ("five", "portable", True, 4),
    ]


def test_cuts_fails_where_outputs_differ(monkeypatch, capsys, model):
    monkeypatch.setattr(cuts, "check_graph", lambda *_, **__: Outcome(1, 1, ((1,),), 0.0))
    assert cuts.main([model]) == 1
    assert "FAILED" in capsys.readouterr().out


def test_light_models_are_found():
    assert any(path.endswith("light_squeezenet.onnx") for path in cuts.light_models())

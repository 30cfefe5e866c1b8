"""The commands that make records: every cut point tried, learned plans beside the optimum."""

import json

import models
import pytest

from splitload.commands import cuts, evaluate
from splitload.deploy.equality import Outcome


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(models.save(models.chain(5), tmp_path, "five.onnx"))


def test_cuts_writes_what_it_found(tmp_path, model):
    assert cuts.main([model, "-o", str(tmp_path / "found.json")]) == 0
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["kind"] == "cuts"
    assert record["provenance"]["command"].startswith("python -m splitload.commands.cuts")
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


def test_evaluate_compares_with_the_optimum(tmp_path, monkeypatch, model):
    out = tmp_path / "found.json"
    assert evaluate.main([model, "--device", "s20", "--seeds", "2", "--max-stages", "3", "-o", str(out)]) == 0
    (row,) = json.loads(out.read_text())["rows"]
    assert (row["device"], row["source"]) == ("s20", "simulated")
    assert [(plan["num_stages"], plan["seed"]) for plan in row["plans"]] == [(k, s) for s in (0, 1) for k in (1, 2, 3)]
    assert all(plan["learned_s"] >= plan["exact_s"] * (1 - 1e-9) for plan in row["plans"])
    assert row["worst_ratio"] == max(plan["learned_s"] / plan["exact_s"] for plan in row["plans"])
    monkeypatch.setattr(evaluate.exact, "balance", lambda load, count: ((), 1e-6))
    assert evaluate.main([model, "--device", "s20", "--seeds", "1"]) == 1

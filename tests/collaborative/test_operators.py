"""`splitload collaborate operators`: what two machines can share of a model, counted."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest
from shared_models import graph_of, images

from splitload.cli import main
from splitload.collaborative.operators import count_operators, seen_shapes
from splitload.plan.graph import Tensor


def test_operators_are_counted_by_kind(tmp_path: Path) -> None:
    found = count_operators(graph_of(tmp_path, "portable"))
    assert found.whole == {"GlobalAveragePool": 1, "MatMul": 1, **({"Flatten": 1} if "Flatten" in found.whole else {})}
    assert found.local["Conv"] + found.local.get("FusedConv", 0) == 5
    assert 0.99 < found.local_flops / found.flops < 1


def test_the_command_prints_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    model = str(models.save(images(), tmp_path))
    assert main(["collaborate", "operators", model, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["local"] == sum(told["local_by_kind"].values())
    assert told["global_by_kind"]["MatMul"] == 1
    assert main(["collaborate", "operators", model]) == 0
    assert "of the floating-point operations are local" in capsys.readouterr().out


def test_a_model_of_which_nothing_can_be_shared_is_said_to_be_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    model = models.text(
        "g (float[1, 4] x) => (float[1, 4] y) { a = Softmax(x) y = MatMul(a, w) }", w=models.floats(4, 4)
    )
    assert main(["collaborate", "operators", str(models.save(model, tmp_path))]) == 0
    assert "no operator can be shared" in capsys.readouterr().err


def test_a_model_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["collaborate", "operators", str(tmp_path / "none.onnx")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["collaborate"]) == 2
    assert "no command given" in capsys.readouterr().err


def test_sizes_that_have_names_are_those_of_the_run() -> None:
    kind = "tensor(float)"
    tensors = [
        Tensor("x", kind, ("batch", 3, "height"), 4 * 2 * 3 * 7),
        Tensor("b", kind, ("batch", 5), 4 * 2 * 5),
        Tensor("n", kind, (None, 5), 4 * 3 * 5),
        Tensor("u", kind, (None, None), 4 * 3 * 5),
        Tensor("r", kind, None, 4),
    ]
    assert seen_shapes(tensors) == {"x": (2, 3, 7), "b": (2, 5), "n": (3, 5)}

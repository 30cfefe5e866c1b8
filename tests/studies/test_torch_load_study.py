"""The study of torch modules: every arm loads the same module, and the record and its table hold what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from splitload.measure import modules
from splitload.measure.job import LoadModule
from splitload.studies import records, torch_load


def test_every_arm_computes_the_same(tmp_path: Path) -> None:
    job = LoadModule(arm="prepare", device="cpu", dtype="bfloat16", layers=2, width=64, tokens=3)
    prepared = modules.answer(job, tmp_path)
    assert prepared["model_bytes"] == 2 * sum(each.numel() for each in modules.Transformer(2, 64).parameters())
    assert prepared["num_stages"] == 1
    found = [modules.answer(replace(job, arm=arm), tmp_path) for arm in torch_load.ARMS]
    assert set(torch_load.ARMS) == set(modules.ARMS)
    assert all(each["output"] == found[0]["output"] for each in found)
    assert all(each["ttfo_s"] == pytest.approx(each["load_s"] + each["first_inference_s"]) for each in found)


def answers(job: dict[str, Any], arm: str) -> dict[str, Any]:
    """Answer for a process: times that tell the arm."""
    if arm == "prepare":
        return {"model_bytes": 1000, "num_stages": 3, "gpu": None}
    if arm == "copy":
        return {"bytes_per_s": 4000.0}
    ttfo_s = 1.0 + torch_load.ARMS.index(arm)
    output = [1.0, 2.0 if arm != job.get("wrong") else 3.0]
    return {"ttfo_s": ttfo_s, "load_s": 0.5, "first_inference_s": 0.5, "steady_inference_s": 0.125, "output": output}


def test_the_record_and_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch_load, "measured", answers)
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path))
    file = tmp_path / "torch_load.json"
    assert torch_load.main(["--runs", "3", "-o", str(file)]) == 0
    data = json.loads(file.read_text())
    assert data["provenance"]["command"] == "python -m splitload.studies.torch_load --runs 3"
    assert [row["arm"] for row in data["rows"]] == list(torch_load.ARMS)
    assert all(len(row["ttfo_s"]["samples"]) == 3 for row in data["rows"])
    assert data["rows"][0]["limit_s"]["median"] == 0.25
    table = records.fill("<!-- results:torch_load -->\n<!-- end -->", {"torch_load": [("torch_load.json", data)]})
    row = "| cpu | 0 MB, float32 | warm | splitload, k = 3 | 1000 (1000–1000) | 500 | 125 | 250 | 4.00 | 3 |"
    assert row in table
    assert "| safetensors | 2000 (2000–2000) |" in table
    assert "limit 250.0 ms" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["torch_load.json"]


def test_an_arm_that_computes_something_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch_load, "measured", lambda job, arm: answers({**job, "wrong": "torch.load"}, arm))
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path))
    assert torch_load.main(["--runs", "1"]) == 1
    assert "arm 'torch.load' computes something else" in capsys.readouterr().err


def test_a_process_that_fails_says_why() -> None:
    with pytest.raises(Exception, match=r"arm 'copy' failed: .*nowhere"):
        job = {"device": "nowhere", "dtype": "float32", "layers": 1, "width": 64, "tokens": 1, "folder": "."}
        torch_load.measured(job, "copy")


@pytest.mark.parametrize("words", [["--width", "65"], ["--layers", "0"], ["--dtype", "int8"]])
def test_what_cannot_be_measured(words: list[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        torch_load.main(words)


def test_the_example_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (records.ROOT / "docs" / "torch.md").read_text(encoding="utf-8")
    code = text.partition("## Stay in PyTorch")[2].partition("```python\n")[2].partition("```")[0]
    assert "splitload.torch.load" in code
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)  # noqa: S102 - the document's own code
    assert torch.equal(names["y"], names["original"](names["x"]))

"""The record of plans found within a budget, its table, and `splitload train --budget`."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import models
import pytest

from splitload.cli import main
from splitload.devices.host import HostDevice
from splitload.studies import budget, plan_tables


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    return str(models.save(models.chain(3), tmp_path, "three.onnx"))


@pytest.mark.slow
def test_record_and_table(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "HostDevice", functools.partial(HostDevice, repeats=1))
    monkeypatch.setattr(budget, "COUNTS", (3,))
    out = tmp_path / "found.json"
    assert budget.main([model, "--budget", "40", "--runs", "1", "-o", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert [row["objective"] for row in record["rows"]] == ["balance", "ttfo"]
    for row in record["rows"]:
        assert row["loads"] <= row["budget_loads"] == 40
        assert row["split_points"] == {"full": [1, 2], "budget": [1, 2]}, "there is but one plan of three stages"
        assert row["samples_s"]["full"] == row["samples_s"]["budget"], "so it is measured once"
        assert row["ratio"] == 1
    head, rows = plan_tables.budget([("found.json", record)])
    assert len(rows) == 2
    assert all(len(each) == len(head) for each in rows)
    assert rows[0][-2:] == ("1.000, same plan", "1")


def test_train_within_a_budget(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", model, "--device", "host", "--budget", "30", "--json", "-o", str(tmp_path / "b.splitload")]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert 3 <= result["measured_loads"] <= 30
    assert result["plan"]["num_stages"] >= 1
    assert (tmp_path / "b.splitload" / "manifest.json").is_file()
    assert not list((tmp_path / "cache" / "profiles").glob("*.json")), "no block was measured by itself"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--device", "s20", "--budget", "30"], "--budget counts stage loads that are measured, and on 's20' none are"),
        (["--device", "host", "--budget", "0"], "at least 1"),
        (["--device", "host", "--budget", "30", "--seeds", "2"], "leave out --seeds or --budget"),
        (["--device", "host", "--budget", "30", "--split-points", "1"], "leave out --split-points or --budget"),
        (["--device", "host", "--budget", "30", "--curve", "c.csv"], "leave out --curve or --budget"),
    ],
)
def test_budgets_that_cannot_be_meant(
    model: str, more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", model, *more]) == 2
    assert message in capsys.readouterr().err

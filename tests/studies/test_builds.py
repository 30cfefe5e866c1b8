"""The study of builds: both checkouts are timed, and the table says what that came to."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType

import models
import pytest

from splitload.studies import builds, records, starts


def test_the_table_has_medians_and_spreads() -> None:
    samples = {
        "before": [{"wall_s": each, "cpu_s": 2 * each} for each in (60.0, 50.0, 70.0)],
        "after": [{"wall_s": each, "cpu_s": each} for each in (20.0, 30.0, 25.0)],
    }
    row = {"model": "m", "options": [], "same_files": True, "ratio": 25 / 60, "samples": samples}
    record = {"rows": [row], "provenance": {"command": "make it"}}
    table = records.fill("<!-- results:builds -->\n<!-- end -->", {"builds": [("a.json", record)]})
    assert "| m | searched | 60.0 (50.0–70.0) | 25.0 (20.0–30.0) | 0.42 | 120.0 (100.0–140.0) |" in table


@pytest.mark.parametrize("study", [builds, starts])
def test_a_checkout_without_an_environment_is_refused(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert study.main(["--before", str(tmp_path)]) == 2
    assert "has no .venv/bin/python" in capsys.readouterr().err


@pytest.mark.slow
def test_both_are_trained_and_recorded(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(builds, "commit_of", lambda _: "a" * 40)
    model, record = models.save(models.chain(4), tmp_path), tmp_path / "record.json"
    words = [str(model), "--before", str(checkout), "--runs", "1", "--split-points", "1", "-o", str(record)]
    assert builds.main(words) == 0
    data = json.loads(record.read_text())
    (made,) = data["rows"]
    assert made["same_files"]
    assert made["split_points"] == {"before": [1], "after": [1]}
    assert {arm: len(taken) for arm, taken in made["samples"].items()} == {"before": 1, "after": 1}
    assert all(sample["wall_s"] > 0 for taken in made["samples"].values() for sample in taken)
    assert str(checkout) not in record.read_text()

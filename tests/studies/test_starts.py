"""The study of starts: both checkouts load one bundle in turns, and the table says what that came to."""

from __future__ import annotations

import json
from pathlib import Path

import models
import pytest

from splitload.studies import records, starts


def test_the_table_has_medians_and_spreads() -> None:
    samples = {
        "before": [{"ttfo_s": each, "process_s": 2 * each} for each in (0.06, 0.05, 0.07)],
        "after": [{"ttfo_s": each, "process_s": each} for each in (0.02, 0.03, 0.025)],
    }
    row = {"model": "m", "ratio": {"ttfo_s": 25 / 60, "process_s": 25 / 120}, "samples": samples}
    record = {"rows": [row], "provenance": {"command": "make it"}}
    table = records.fill("<!-- results:starts -->\n<!-- end -->", {"starts": [("a.json", record)]})
    assert "| m | 60.0 (50.0–70.0) | 25.0 (20.0–30.0) | 0.417 | 120.0 (100.0–140.0) |" in table


@pytest.mark.slow
def test_both_load_and_are_recorded(checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(starts, "commit_of", lambda _: "a" * 40)
    model, record = models.save(models.chain(4), tmp_path), tmp_path / "record.json"
    assert starts.main([str(model), "--before", str(checkout), "--runs", "2", "-o", str(record)]) == 0
    (made,) = json.loads(record.read_text())["rows"]
    assert {arm: len(taken) for arm, taken in made["samples"].items()} == {"before": 2, "after": 2}
    assert all(0 < sample["ttfo_s"] < sample["process_s"] for taken in made["samples"].values() for sample in taken)
    assert str(checkout) not in record.read_text()

"""The study of sizes: a row is measured on real files, and the table says what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import small_models
from models import save

from splitload.studies import records, sizes
from splitload.studies.forms import FORMS, open_form


def figure(median: float) -> dict[str, float]:
    return {"median": median, "min": median / 2, "max": 2 * median}


def row(ratio: float, ours_s: float, difference: float | None = 1e-6) -> dict[str, object]:
    return {
        "model": "m", "form": "float16", "graph": "native", "model_bytes": 2_000_000, "ratio": ratio,
        "difference": difference, "ttfo_s": {"splitload": figure(ours_s), "stock": figure(0.1)},
        "samples": {"stock": [{}] * 3},
    }  # fmt: skip


def test_the_table_has_a_row_for_each_model_and_the_largest_ratios() -> None:
    failed = {"model": "n", "form": "int8 static", "failed": "it does not run"}
    record = {"rows": [row(1.02, 0.02), row(1.05, 0.01, None), failed], "provenance": {"command": "make it"}}
    table = records.fill("<!-- results:sizes -->\n<!-- end -->", {"sizes": [("a.json", record)]})
    assert "| m | float16 | native | 2.0 | 1.020 | 20 (10–40) | 100 (50–200) | 0.20 | 1.0e-06 | 3 |" in table
    assert "| m | float16 | native | 2.0 | 1.050 | 10 (5–20) | 100 (50–200) | 0.10 | more than rounding | 3 |" in table
    assert "| n | int8 static | – | – | – | – | – | – | – | – |" in table
    assert "| largest | – | – | – | 1.050 | – | – | 0.20 | – | – |" in table


def test_a_model_is_measured_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    model, record = save(small_models.convolved(36), tmp_path), tmp_path / "record.json"
    assert sizes.main([str(model), "--form", "float16", "--runs", "1", "-o", str(record)]) == 0
    (made,) = json.loads(record.read_text())["rows"]
    assert made["ratio"] == made["bundle_bytes"] / made["model_bytes"]
    assert made["model_bytes"] < 0.6 * model.stat().st_size
    assert made["bundle_bytes"] < model.stat().st_size
    assert made["difference"] is not None
    assert {arm: len(samples) for arm, samples in made["samples"].items()} == {"stock": 1, "splitload": 1}


@pytest.mark.parametrize("form", sorted(FORMS.keys() - {"float32"}))
def test_forms_are_smaller_and_made_once(form: str, tmp_path: Path) -> None:
    model = save(small_models.convolved(36), tmp_path)
    source = open_form(str(model), form, tmp_path / "cache")
    assert source.size_bytes < 0.6 * model.stat().st_size
    before = source.path.stat().st_mtime_ns
    assert open_form(str(model), form, tmp_path / "cache").path.stat().st_mtime_ns == before

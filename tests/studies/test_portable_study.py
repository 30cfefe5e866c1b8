"""The study of portable starts: the native variant is off, both arms are measured, and a table says how they stand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import models
import pytest

from splitload import ParallelLoader
from splitload.base.errors import StageError
from splitload.studies import portable, records

pytestmark = pytest.mark.filterwarnings("ignore::splitload.PortableWarning")


def test_the_table_has_medians_ratios_and_what_the_bundle_grows_by() -> None:
    def samples(scale: float) -> list[dict[str, float]]:
        return [{"ttfo_s": scale * each, "steady_inference_s": each, "process_s": 2 * each} for each in (0.2, 0.1, 0.3)]

    row = {
        "model": "m",
        "bundle_bytes": 1010,
        "portable_bytes": 10,
        "largest_difference": 2e-6,
        "ratio": {"ttfo_s": 0.25, "steady_inference_s": 1.0, "process_s": 1.0},
        "samples": {"stock": samples(1.0), "portable": samples(0.25)},
    }
    record = {"rows": [row], "provenance": {"command": "make it"}}
    table = records.fill("<!-- results:portable -->\n<!-- end -->", {"portable": [("a.json", record)]})
    assert "| m | 200.0 (100.0–300.0) | 50.0 (25.0–75.0) | 0.25 | 200.0 (100.0–300.0) |" in table
    assert "| 1.00 | 1.00 | 1.00 | 2.0e-06 | 3 |" in table


@pytest.fixture
def copied(native_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(native_bundle, tmp_path / "copied.splitload", copy_function=shutil.copyfile))


def test_the_portable_variant_runs_where_the_native_one_is_off(copied: Path) -> None:
    portable.turn_native_off(copied)
    with ParallelLoader(copied, verify="hashes") as model:
        assert model.variant.kind == "portable"


def test_a_native_variant_that_runs_all_the_same_is_told(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "fitting", lambda _, manifest, __: manifest.variants)
    with pytest.raises(StageError, match="runs here although it is for another processor"):
        portable.turn_native_off(copied)


def test_both_arms_are_measured_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    model, record = models.save(models.chain(4), tmp_path), tmp_path / "record.json"
    assert portable.main([str(model), "--runs", "1", "-o", str(record)]) == 0
    (made,) = json.loads(record.read_text())["rows"]
    assert {arm: len(taken) for arm, taken in made["samples"].items()} == {"stock": 1, "portable": 1}
    assert made["largest_difference"] < 1e-3
    assert 0 < made["portable_bytes"] < made["bundle_bytes"]
    assert str(tmp_path) not in record.read_text().replace(str(model), "")

"""Native stages of pinned versions of onnxruntime run in each other, and the study says what it saw.

The slow test installs the versions with pip: `python -m pytest -m slow tests/studies/test_matrix.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitload.studies import matrix, records


@pytest.mark.slow
def test_every_pair_of_versions_of_five_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert matrix.main(["-o", str(tmp_path / "matrix.json")]) == 0
    rows = json.loads((tmp_path / "matrix.json").read_text())["rows"]
    pairs = {(row["model"], row["made_by"], row["run_by"]) for row in rows if matrix.is_kept(row)}
    assert pairs == {
        (model, made, run) for model in matrix.MODELS for made in matrix.VERSIONS for run in matrix.VERSIONS
    }
    assert len(matrix.MODELS) >= 5
    assert all(row["operators"] and row["canary_bytes"] and not row["notes"] for row in rows)


def row(**changed):
    return {
        "of": "pair", "model": "zoo:a", "made_by": "1", "run_by": "2", "variant": "native", "bit_equal": False,
        "relative_difference": 5e-7, "canary_bytes": 12_345, **changed,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "kept"),
    [({}, True), ({"variant": "portable"}, False), ({"relative_difference": 2e-5}, False)],
)
def test_what_counts_as_kept(changed, kept):
    assert matrix.is_kept(row(**changed)) is kept


def test_tables_tell_pairs_and_first_outputs():
    samples = {"native": [0.1, 0.3, 0.2], "stock": [0.8, 0.8, 0.9]}
    ttfo = {"of": "ttfo", "model": "zoo:a", "made_by": "1", "run_by": "2", "samples_s": samples}
    rows = [row(), row(run_by="1", bit_equal=True, relative_difference=0.0), ttfo]
    every = {"matrix": [("m.json", {"rows": rows, "provenance": {"command": "try it"}})]}
    filled = records.fill("<!-- results:matrix -->\n<!-- end -->", every)
    assert "| a | 1 | 2 of 2 | 1 of 2 | 5.0e-07 | 12 |" in filled
    filled = records.fill("<!-- results:next_version -->\n<!-- end -->", every)
    assert "| model | made by → run by | native | stock | n |" in filled
    assert "| a | 1 → 2 | 200 (100–300) | 800 (800–900) | 3 |" in filled

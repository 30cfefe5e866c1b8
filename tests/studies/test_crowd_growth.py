"""The study of growing crowds: what it simulates, and what its tables say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitload.studies import crowd_growth, crowd_tables


def test_record_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "growth.json"
    assert crowd_growth.main(["--devices", "6", "--items", "20", "-o", str(output)]) == 0
    assert capsys.readouterr().out.count("simulated  ") == len(crowd_growth.CASES)
    record = json.loads(output.read_text())
    named = [(output.name, record)]
    head, rows = crowd_tables.growth(named)
    assert [row[0] for row in rows] == list(crowd_growth.CASES)
    assert all(len(row) == len(head) for row in rows)
    head, rows = crowd_tables.scheduling(named)
    assert [row[:4] for row in rows] == [("100", "16", "20", "320")]
    by_case = {row["case"]: row for row in record["rows"]}
    sent, shared, stored, _ = (by_case[case] for case in crowd_growth.CASES)
    assert sent["client_stage_bytes"] == sent["stage_bytes"] > 0
    assert 0 < shared["client_stage_bytes"] <= shared["stage_bytes"]
    assert stored["stage_bytes"] == 0
    assert stored["items_per_s"] > sent["items_per_s"]
    assert all(0 < row["share_of_ideal"] <= 1 for row in record["rows"] if row["source"] == "simulated")


def test_the_client_sends_each_stage_a_few_times_and_devices_the_rest() -> None:
    row = crowd_growth.row("stages travel between devices", 40)
    assert row["client_stage_bytes"] < row["stage_bytes"]
    assert row["num_assignments"] == 8 * row["num_items"], "nothing was placed twice"


def test_bad_sizes_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        crowd_growth.main(["--devices", "0"])
    assert "at least 1" in capsys.readouterr().err

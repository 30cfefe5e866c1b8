"""The study of faults of served devices, in small: right answers are told from wrong ones, and its record is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitload.base.errors import ModelError
from splitload.measure.fresh import run_job
from splitload.studies import fault_tables, served_faults
from splitload.studies.served_faults import answers_right, main


class Here:
    """A device that runs each job here, perhaps on the model of another number."""

    def __init__(self, other: int | None = None) -> None:
        self._other = other

    def run(self, job: object, folder: Path, failed: type[ModelError]) -> object:
        if self._other is not None:
            served_faults.write_model(folder, self._other).replace(folder / "7.onnx")
        return run_job(job, folder, failed)  # type: ignore[arg-type]


def test_an_answer_of_another_model_is_seen(tmp_path: Path) -> None:
    assert answers_right(Here(), tmp_path / "own", 7)  # type: ignore[arg-type]
    assert not answers_right(Here(8), tmp_path / "other", 7)  # type: ignore[arg-type]


def test_a_table_says_what_went_wrong() -> None:
    search = {"kills": 2, "exit_code": 1, "valid_bundle": False}
    rows = [
        {"part": "requests", "requests": 9, "as_described": 8},
        {"part": "clients", "clients": 2, "outcomes": {"right": 1, "wrong": 1}, "damaged_files": []},
        {"part": "links", "cut_at": "moments", "cuts": 3, "jobs": 1,
         "outcomes": {"right": 1}, "file_bytes": 100, "up_bytes": 150,
         "damaged_files": ["x"]},
        {"part": "kills", "kills": 2, "searches": [search], "damaged_files": 0},
    ]  # fmt: skip
    assert [served_faults.went_wrong(row) for row in rows] == [False, True, True, True]
    assert served_faults.went_wrong({**rows[0], "exit_code": 1})
    assert not served_faults.went_wrong({**rows[3], "searches": [{**search, "exit_code": 0, "valid_bundle": True}]})
    _, found = fault_tables.faults([("faults.json", {"rows": rows})])
    assert [row[2] for row in found] == [
        "8 answered as described",
        "1 right, 1 wrong",
        "1 right; 1.50 bytes sent for each of a file; damaged files: 1",
        "0 of 1 searches end with a valid bundle",
    ]


@pytest.mark.slow
def test_a_record(tmp_path: Path) -> None:
    output = tmp_path / "faults.json"
    assert main(["--examples", "0", "--clients", "5", "--cuts", "10", "--kills", "3", "-o", str(output)]) == 0
    clients, *links, kills = json.loads(output.read_text())["rows"]
    assert clients["outcomes"] == {"right": 5}
    assert [(each["cut_at"], each["cuts"] >= 5) for each in links] == [("bytes", True), ("moments", True)]
    assert all(each["outcomes"] == {"right": each["jobs"]} for each in links)
    assert kills["kills"] == 3
    assert all(search["exit_code"] == 0 and search["valid_bundle"] for search in kills["searches"])
    assert not any(row["damaged_files"] for row in (clients, *links, kills))

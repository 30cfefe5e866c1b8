"""The study of faults of served devices, in small: right answers are told from wrong ones, and its record is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from splitload.base.errors import ModelError
from splitload.measure.fresh import run_job
from splitload.studies import served_faults
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


@pytest.mark.slow
def test_a_record(tmp_path: Path) -> None:
    output = tmp_path / "faults.json"
    assert main(["--clients", "5", "--cuts", "10", "--kills", "3", "-o", str(output)]) == 0
    clients, links, kills = json.loads(output.read_text())["rows"]
    assert clients["outcomes"] == {"right": 5}
    assert links["outcomes"] == {"right": links["jobs"]}
    assert kills["kills"] == 3
    assert all(search["exit_code"] == 0 and search["valid_bundle"] for search in kills["searches"])
    assert not clients["damaged_files"] and not links["damaged_files"] and not kills["damaged_files"]

"""What the commands that make records refuse before they measure for hours, and how."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import ModelError, OutputError, UsageError
from splitload.studies import (
    ablation,
    budget,
    calibrate,
    digits,
    evaluate,
    personalization,
    predictions,
    records,
    rivals,
    steps,
    study,
)
from splitload.studies.study import at_least, errors_in_one_line, growing_record, record_file

STUDIES = {module.__name__.rpartition(".")[2]: module for module in (
    ablation, budget, calibrate, digits, evaluate, personalization, predictions, rivals, steps
)}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_a_record_that_cannot_be_written_is_refused_at_once(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        STUDIES[name].main(["-o", str(tmp_path / "none" / "record.json")])
    assert caught.value.code == 2
    assert "there is no folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("budget", "--runs"),
        ("rivals", "--runs"),
        ("personalization", "--runs"),
        ("evaluate", "--seeds"),
        ("digits", "--seeds"),
    ],
)
def test_counts_are_at_least_one(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        STUDIES[name].main([option, "0"])
    assert "at least 1, not '0'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"),
    [(UsageError("no\nsuch thing"), 2), (ModelError("no\nsuch thing"), 1), (KeyboardInterrupt(), 130)],
)
def test_errors_are_one_line(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    def main(words: Sequence[str] | None = None) -> int:
        raise error

    assert errors_in_one_line(main)() == code
    assert capsys.readouterr().err.count("\n") == 1


def test_argument_types(tmp_path: Path) -> None:
    assert at_least(2)("2") == 2
    for word in ("1", "-3", "x", "2.5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 2"):
            at_least(2)(word)
    assert record_file(str(tmp_path / "r.json")) == tmp_path / "r.json"
    with pytest.raises(argparse.ArgumentTypeError, match="not a file"):
        record_file(str(tmp_path))


@pytest.mark.parametrize("error", [None, KeyboardInterrupt(), ModelError("no such thing"), UsageError("not so")])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("as_given", [["-o", "./sizes.json"], ["-osizes.json"], ["--output=sizes.json"]])
def test_a_study_that_is_stopped_leaves_the_record_of_before(
    before: bool,
    error: BaseException | None,
    as_given: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record, partial = tmp_path / "sizes.json", tmp_path / "sizes.json.partial"
    old = json.dumps({"kind": "sizes", "rows": [1] * 30})
    if before:
        record.write_text(old)

    @errors_in_one_line
    def main(words: Sequence[str] | None = None) -> int:
        assert words is not None
        with growing_record(record, "sizes", "module", words) as keep:
            keep([{"a": 1}])
            if error is not None:
                raise error
            keep([{"a": 2}, {"a": 3}])
        return 0

    code = main(["x", *as_given])
    told = capsys.readouterr().err
    if error is None:
        assert (code, told) == (0, "")
        made = json.loads(record.read_text())
        assert made["rows"] == [{"a": 1}, {"a": 2}, {"a": 3}]
        assert made["provenance"]["command"] == "python -m module x"
        assert [path.name for path in tmp_path.iterdir()] == ["sizes.json"]
        return
    assert code == {KeyboardInterrupt: 130, ModelError: 1, UsageError: 2}[type(error)]
    state = "as it was" if before else "not there"
    end = f"'{record}' is {state}, and the rows that were done (1) are in '{partial}'"
    assert told == f"{str(error) or 'interrupted'}; {end}\n"
    assert json.loads(partial.read_text())["rows"] == [{"a": 1}]
    assert not before or record.read_text() == old
    assert ("sizes" in records.read_records(tmp_path)) == before, "tables are made of whole records only"


def test_rows_that_could_not_be_written_are_not_said_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = records.write_record

    def full(output: Path, *rest: Any) -> None:
        if len(rest[-1]) > 1:
            raise OutputError("no space left")
        real(output, *rest)

    monkeypatch.setattr(study, "write_record", full)
    with (
        pytest.raises(OutputError, match=r"no space left; .* the rows that were done \(1\) are in"),
        growing_record(tmp_path / "sizes.json", "sizes", "module", []) as keep,
    ):
        keep([{"a": 1}])
        keep([{"a": 2}])


def test_a_study_that_is_stopped_before_its_first_row_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    @errors_in_one_line
    def main(words: Sequence[str] | None = None) -> int:
        with growing_record(tmp_path / "sizes.json", "sizes", "module", []):
            raise KeyboardInterrupt

    assert main() == 130
    assert capsys.readouterr().err == "interrupted; no record was written\n"
    assert not list(tmp_path.iterdir())

"""What the commands that make records refuse before they measure for hours, and how."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from splitload.commands import (
    ablation,
    budget,
    calibrate,
    digits,
    evaluate,
    personalization,
    predictions,
    rivals,
    steps,
)
from splitload.commands.study import at_least, one_line, record_file
from splitload.errors import ModelError, UsageError

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

    assert one_line(main)() == code
    assert capsys.readouterr().err.count("\n") == 1


def test_argument_types(tmp_path: Path) -> None:
    assert at_least(2)("2") == 2
    for word in ("1", "-3", "x", "2.5", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 2"):
            at_least(2)(word)
    assert record_file(str(tmp_path / "r.json")) == tmp_path / "r.json"
    with pytest.raises(argparse.ArgumentTypeError, match="not a file"):
        record_file(str(tmp_path))

"""Who is told of a planner's work: a program by its log, a terminal by its console."""

from __future__ import annotations

import logging

import pytest

from splitload.commands.console import Console
from splitload.planner.report import LogReport, Report


@pytest.mark.parametrize("report", [LogReport(), Console(json=True)], ids=["log", "console"])
def test_whoever_is_told_prints_no_result(report: Report, capsys: pytest.CaptureFixture[str]) -> None:
    report.note("worth knowing")
    with report.status("working"), report.progress("working", unit="steps") as show:
        show(1, 2)
        show(2, 2, "nearly done")
    assert capsys.readouterr().out == ""


def test_a_program_finds_notes_in_its_log(caplog: pytest.LogCaptureFixture) -> None:
    LogReport().note("50% of it")
    assert [(each.name, each.levelno, each.getMessage()) for each in caplog.records] == [
        ("splitload", logging.WARNING, "50% of it")
    ]

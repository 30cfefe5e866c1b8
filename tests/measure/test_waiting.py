"""What a thread waits for: sleep counts, work does not, and where the system does not tell nothing does."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from splitload.measure import waiting
from splitload.measure.waiting import Waits


@pytest.mark.skipif(not Path(waiting._SCHEDULED).exists(), reason="the system does not tell")
def test_sleep_is_a_wait() -> None:
    waits = Waits()
    time.sleep(0.05)
    assert waits.lap_s() > 0.04


def test_time_on_a_processor_and_in_line_for_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([(0.0, 0.0), (5.0, 2.0), (6.0, 3.5)])  # the clock, and what is no wait
    monkeypatch.setattr(waiting, "_now", lambda: next(moments))
    waits = Waits()
    assert waits.lap_s() == 3.0
    assert waits.lap_s() == 0.0, "two clocks are not quite one"


def test_nothing_counts_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(waiting, "_SCHEDULED", str(tmp_path / "none"))
    waits = Waits()
    assert waits.lap_s() == 0.0

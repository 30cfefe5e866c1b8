"""Samples of a measurement that was cut short: the next attempt takes them, and a settled one leaves none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import DeviceError
from splitload.devices.host import HostDevice
from splitload.devices.journal import KEPT_S, Journal
from splitload.measure.fresh import run_job
from splitload.plan.graph import ModelGraph


def test_answers_come_again_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "room" / "samples.journal"
    journal = Journal(path)
    assert [journal.answer(("a", [0, 1]), lambda value=value: {"s": value}) for value in (1, 2)] == [{"s": 1}, {"s": 2}]
    assert journal.answer(("b",), lambda: 3) == 3
    with path.open("a") as file:
        file.write("\n0123 torn")
    again = Journal(path)
    assert again.answer(("b",), lambda: pytest.fail("measured again")) == 3
    assert [again.answer(("a", [0, 1]), lambda: {"s": 9}) for _ in range(3)] == [{"s": 1}, {"s": 2}, {"s": 9}]
    assert again.taken == 3
    assert Journal(path).answer(("a", [0, 1]), lambda: 0) == {"s": 1}
    assert [Journal(path).answer((end,), lambda: 4) for end in "cc"] == [4, 4]
    again.forget()
    assert not path.exists()


def test_samples_of_another_day_are_no_more(tmp_path: Path) -> None:
    path = tmp_path / "samples.journal"
    Journal(path).answer((1,), lambda: 1)
    os.utime(path, (path.stat().st_mtime - KEPT_S - 60,) * 2)
    assert Journal(path).answer((1,), lambda: 2) == 2


def test_a_profile_goes_on_where_the_device_vanished(graphs: dict[str, ModelGraph], tmp_path: Path) -> None:
    graph = graphs["native"]
    left = 4  # of the jobs of a profile, three a repeat and more

    def run(*words: Any, **more: Any) -> dict[str, Any]:
        nonlocal left
        if left == 0:
            raise DeviceError("gone")
        left -= 1
        return run_job(*words, **more)

    device = HostDevice(tmp_path, repeats=2, run=run)
    with pytest.raises(DeviceError, match="gone"):
        device.profile(graph)
    (kept,) = (tmp_path / "profiles").iterdir()
    assert len(kept.read_bytes().split(b"\n")) == 4 + 1
    left = 100
    whole = HostDevice(tmp_path, repeats=2, run=run).profile(graph)
    assert 100 - left == 2 * (1 + 2 * 2) - 4
    assert [path.suffix for path in (tmp_path / "profiles").iterdir()] == [".json"]
    assert HostDevice(tmp_path, repeats=2).profile(graph) == whole

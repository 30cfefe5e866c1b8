"""The tables of shared inferences, and an emulated pair that leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import StageError
from splitload.measure.piece_jobs import TimeMessages
from splitload.studies import shared_tables
from splitload.studies.control_groups import are_mounted, members_of
from splitload.studies.emulation import DEVICES
from splitload.studies.shared_pair import CONTROLLERS, DEVICE, SERVER, EmulatedPair


def row_of(model: str, megabits: int, latencies_s: dict[str, float], predicted_s: float) -> dict[str, Any]:
    samples = {name: [{"latency_s": each, "by": "both", "why": ""}] * 3 for name, each in latencies_s.items()}
    return {
        "model": model, "megabits_per_s": megabits, "samples": samples,
        "predicted_s": {**latencies_s, "shared": predicted_s},
    }  # fmt: skip


ROWS = [
    row_of("zoo:resnet152", 93, {"device": 0.8, "server": 0.2, "layer cut": 0.25, "shared": 0.18}, 0.171),
    row_of("zoo:resnet152", 20, {"device": 0.8, "server": 0.4, "layer cut": 0.3, "shared": 0.3}, 0.3),
]


def test_shared_inferences_are_beside_those_that_share_nothing() -> None:
    head, body = shared_tables.shared([("a.json", {"rows": ROWS})])
    first = dict(zip(head, body[0], strict=True))
    assert first["shared ms"].startswith("180")
    assert (first["÷ best"], first["predicted ms"], first["n"]) == ("0.900", "171", "3")


def test_what_is_aimed_at_is_of_the_headline_models_alone() -> None:
    _, body = shared_tables.targets([("a.json", {"rows": ROWS})])
    assert body[0][0].endswith("geometric mean of 1 (model, link)")
    assert [row[2] for row in body] == ["0.900", "0.900", "0.0%", "100%", "0"]
    alone = [{**ROWS[0], "samples": {**ROWS[0]["samples"], "server": [{"latency_s": 0.2, "by": "device", "why": "x"}]}}]
    assert shared_tables.targets([("a.json", {"rows": alone})])[1][-1][2] == "1"


def test_an_emulated_pair_needs_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(StageError, match="needs root"):
        EmulatedPair(10**8, tmp_path)


@pytest.mark.root
def test_a_pair_has_its_limits_and_leaves_nothing(tmp_path: Path) -> None:
    if os.geteuid() != 0 or not are_mounted(CONTROLLERS):
        pytest.skip("an emulated pair needs root, and control groups of version 1")
    with EmulatedPair(93_000_000, tmp_path) as pair:
        with pytest.raises(StageError, match=r"emulated device fails: .*nothing"):
            pair.ask(DEVICE, "nothing")
        with pytest.raises(StageError, match="emulated server fails"):
            pair.ask(SERVER, "timed", message={}, folder=str(tmp_path))
        seconds = pair.machine(DEVICE).run(TimeMessages((1_000, 100_000), 2), tmp_path, StageError)["rounds_s"]
        assert [len(each) for each in seconds] == [2, 2] and min(map(min, seconds)) > 0
    assert not members_of(DEVICES, CONTROLLERS)
    assert not list(tmp_path.iterdir())

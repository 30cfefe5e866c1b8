"""The tables of shared inferences, and an emulated pair that leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitload.base.errors import StageError
from splitload.deploy.collaborator import ALONE_IS_QUICKER
from splitload.measure.piece_jobs import TimeMessages
from splitload.studies import bandwidth_traces, shared_other_tables, shared_tables
from splitload.studies.control_groups import are_mounted, members_of
from splitload.studies.emulation import DEVICES
from splitload.studies.shared_equality import TOLERATED, relative_error
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
    late, chosen = ({"latency_s": 0.2, "by": "device", "why": why} for why in ("it is late", ALONE_IS_QUICKER))
    row = {**ROWS[0], "samples": {**ROWS[0]["samples"], "shared": [late, chosen, late]}}
    assert shared_tables.targets([("a.json", {"rows": [row]})])[1][-1][2] == "2"


def test_an_answer_that_is_no_number_or_of_another_shape_is_far_from_right() -> None:
    right = np.array([1.0, -4.0], np.float32)
    assert relative_error(np.array([1.0, -3.0], np.float32), right) == 0.25
    for wrong in ([np.nan, -4.0], [[1.0, -4.0]], [1.0]):
        assert relative_error(np.array(wrong, np.float32), right) > TOLERATED


def test_softmax_over_all_tokens_has_an_aim_of_its_own() -> None:
    row = {**ROWS[0], "model": "zoo:distilbert"}
    _, body = shared_tables.targets([("a.json", {"rows": [row]})])
    assert body[0][1:] == ("≤ 1.02", f"{0.18 / 0.2:.3f}")


def test_pictures_are_of_the_headline_models() -> None:
    moments = [{"where": "device", "number": 0, "start_s": 0.0, "end_s": 0.05}]
    moments.append({"where": "up", "number": 1, "start_s": 0.05, "end_s": 0.1})
    text = shared_tables.pictures([("a.json", {"rows": [{**each, "moments": moments} for each in ROWS]})])
    assert text.count("device │") == 1
    lanes = {line[:6].strip(): line[8:-1] for line in text.splitlines() if "│" in line}
    assert lanes["device"].rstrip() == "█" * 36 and lanes["up"].lstrip() == "━" * 36
    assert not lanes["down"].strip() and len(lanes["server"]) == 72


def test_a_trace_is_the_same_for_the_same_seed_and_has_the_mean_it_says() -> None:
    steps = bandwidth_traces.trace("indoors", 3000, 1)
    assert steps == bandwidth_traces.trace("indoors", 3000, 1) != bandwidth_traces.trace("indoors", 3000, 2)
    assert len(steps) == 6000 and abs(sum(steps) / 6000 - 93) < 10
    assert min(bandwidth_traces.trace("outdoors", 3000, 1)) == bandwidth_traces.LEAST_MEGABITS


def test_other_tables_have_what_their_records_say() -> None:
    def only(make: Any, row: dict[str, Any]) -> dict[str, str]:
        head, body = make([("a.json", {"rows": [row]})])
        return dict(zip(head, body[0], strict=True))

    tables = shared_other_tables
    counted = {"model": "x", "published": [2, 1], "local": {"conv2d": 2}, "global": {"linear": 1}}
    assert only(tables.operators, counted)["the same"] == "yes"
    assert only(tables.operators, {**counted, "published": [3, 1]})["the same"] == "no"
    plans = [{"error": 1e-6, "exchanges": 3}, {"error": 3e-6, "exchanges": 1}, {"error": 2e-6, "exchanges": 2}]
    equal = only(tables.equality, {"model": "zoo:x", "levels": 9, "plans": plans})
    assert (equal["exchanges"], equal["largest"]) == ("1–3", "3.0e-06")
    planned = {
        "model": "x", "links": 51, "planning_s": 61.0, "beside_bytes": 5, "bundle_bytes": 100, "exact": 50
    }  # fmt: skip
    assert only(tables.planning, planned)["of the bundle"] == "5.0%"
    samples = [{"latency_s": 0.1, "by": "both"}, {"latency_s": 0.3, "by": "device"}]
    rows = [
        {"model": "x", "where": "indoors", "arm": "shared", "plan": None, "samples": samples},
        {"model": "x", "where": "indoors", "arm": "fixed 1", "plan": [0, 9], "samples": samples[1:]},
    ]
    head, body = tables.traces([("a.json", {"rows": rows})])
    assert dict(zip(head, body[0], strict=True))["÷ best fixed plan"] == "0.667"
    outcomes = [{"right": True, "by": "device", "latency_s": 0.5}, {"right": False, "by": None, "latency_s": None}]
    killed = {"model": "x", "outcomes": outcomes, "alone_s": [0.3], "deadline_s": 0.2}
    assert only(tables.kills, killed)["wrong or missing"] == "1"
    assert only(tables.kills, killed)["later than that by, at most"] == "200"
    simulated = {"device": 0.08, "server": 0.07, "layer cut": 0.1, "shared": 0.06}
    published = {
        "model": "x", "published_ms": {"device_ms": 80, "server_ms": 9}, "megabits_per_s": 93,
        "simulated_s": simulated, "alone_j": 1.0, "spared_j": 0.25,
    }  # fmt: skip
    assert only(tables.published, published)["under the layer cut"] == "40.0%"
    assert only(tables.published, published)["energy spared"] == "75%"
    wire = {"bytes": 9, "trips_s": {"tls": [0.001], "zmq-curve": [0.002]}}
    assert only(tables.wire, wire)["TLS ÷ ZeroMQ"] == "0.50"


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

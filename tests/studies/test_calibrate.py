"""The calibration of s20: its record and its device file say the same, and the fit finds what it is shown."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import models
import numpy as np
import pytest

from splitload import devices
from splitload.devices.simulated import SimulatedDevice
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.schedule import Contention, simulate
from splitload.studies import calibrate

RECORD = Path(__file__).parents[2] / "results" / "calibration-s20.json"
S20 = SimulatedDevice.read(devices.names()["s20"]).model


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    """Three small models: few bytes, many bytes, many nodes."""
    folder = tmp_path_factory.mktemp("graphs")
    made = {"narrow": (8, 16), "wide": (9, 64), "long": (24, 24)}
    sources = {
        name: Source.open(models.save(models.chain(layers, width=width), folder, f"{name}.onnx"), name)
        for name, (layers, width) in made.items()
    }
    return {name: load_graph(source, "portable", folder / "cache") for name, source in sources.items()}


def test_the_device_file_holds_what_the_record_fitted():
    first, *simpler = json.loads(RECORD.read_text(encoding="utf-8"))["rows"]
    figures = {key: value for key, value in asdict(S20).items() if key not in ("name", "description")}
    assert first["parameters"] == figures, "run: python -m splitload.studies.calibrate, and put s20.toml right"
    assert set(first["free"]) == {"prepare_bytes_per_s", "node_s", "serial_share"}
    assert [row["fit"] for row in (first, *simpler)] == list(calibrate.FITS)
    assert all(len(row["free"]) == 2 and row["rms_residual"] > first["rms_residual"] for row in simpler)


def test_the_residuals_of_the_record_follow_from_the_device_file():
    first = json.loads(RECORD.read_text(encoding="utf-8"))["rows"][0]
    assert {row["model"]: row["observed_s"] for row in first["models"]} == calibrate.TABLE_1
    for row in first["models"]:
        assert sum(stage["weights_bytes"] for stage in row["stages"]) == row["weights_bytes"]
        assert sum(stage["num_nodes"] for stage in row["stages"]) == row["num_nodes"]
        assert len(row["stages"]) == calibrate.NUM_STAGES
        read_s = [stage["weights_bytes"] / S20.storage_bandwidth_bytes_per_s for stage in row["stages"]]
        load_s = [
            S20.stage_fixed_s
            + stage["num_nodes"] * S20.node_s
            + stage["weights_bytes"] / S20.prepare_bytes_per_s
            + read
            for stage, read in zip(row["stages"], read_s, strict=True)
        ]
        contention = Contention(S20.threads, S20.serial_share, S20.thread_penalty)
        proposed_s = simulate(load_s, [0.0] * len(load_s), contention, read_s=read_s).load_makespan_s
        again = {"original": sum(load_s) - (len(load_s) - 1) * S20.stage_fixed_s, "proposed": proposed_s}
        assert row["simulated_s"] == pytest.approx(again)
        assert row["residual"] == pytest.approx({key: again[key] / row["observed_s"][key] - 1 for key in again})


def test_a_fit_finds_the_device_that_made_the_figures(graphs, monkeypatch):
    monkeypatch.setattr(calibrate, "START", {"prepare_bytes_per_s": 1e6, "node_s": 0.003, "serial_share": 0.2})
    real = replace(S20, prepare_bytes_per_s=1.3e6, node_s=0.002, serial_share=0.3)
    observed_s = {}
    for name, graph in graphs.items():
        loaded = calibrate.simulate_loading(real, graph)
        observed_s[name] = {"original": loaded.original_s, "proposed": loaded.proposed_s}
    found = calibrate.fit(S20, tuple(calibrate.START), graphs, observed_s)
    for key in calibrate.START:
        assert getattr(found, key) == pytest.approx(getattr(real, key), rel=0.05)
    no_nodes = calibrate.fit(S20, ("prepare_bytes_per_s", "serial_share"), graphs, observed_s)
    assert no_nodes.node_s == 0.0
    name = "bytes, nodes and serial share"
    exact, worse = (calibrate.fit_row(name, device, graphs, observed_s) for device in (found, no_nodes))
    assert exact["rms_residual"] < 0.01 < worse["rms_residual"]


def test_a_stage_loads_alone_as_the_formula_says(graphs):
    loaded = calibrate.simulate_loading(replace(S20, serial_share=0.0), graphs["wide"])
    assert sum(nodes for _, nodes in loaded.stages) == len(graphs["wide"].nodes)
    assert loaded.original_s / calibrate.NUM_STAGES < loaded.proposed_s < loaded.original_s
    twice = {"original": loaded.original_s / 2, "proposed": loaded.proposed_s * 2}
    assert calibrate.residuals(loaded, twice) == pytest.approx({"original": 1.0, "proposed": -0.5})


def test_the_search_needs_no_derivative():
    found = calibrate.minimum(lambda x: abs(x[0] - 1) + 10 * float(x[1] < -1) + (x[1] + 1) ** 2, np.zeros(2))
    assert found == pytest.approx([1.0, -1.0], abs=0.01)


def test_the_command_writes_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = str(models.save(models.chain(8), tmp_path, "eight.onnx"))
    monkeypatch.setattr(calibrate, "TABLE_1", {model: {"original": 0.04, "proposed": 0.02}})
    monkeypatch.setattr(calibrate, "FITS", {"nodes and serial share": ("node_s", "serial_share")})
    assert calibrate.main(["-o", str(tmp_path / "found.json")]) == 0
    assert "nodes and serial share: node_s = " in capsys.readouterr().out
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["kind"] == "calibration"
    assert record["provenance"]["command"] == "python -m splitload.studies.calibrate"
    (row,) = record["rows"]
    assert row["free"] == ["node_s", "serial_share"]
    assert row["rms_residual"] == pytest.approx(0.0, abs=0.02)

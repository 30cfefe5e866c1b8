"""`--residency` in `train`: the plan fits, the bundle says what it needs, and what is printed says it is predicted."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import chain, save

from splitload import ParallelLoader
from splitload.base.sizes import read_bytes
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.plan.memory import memory_needs, peak_bytes
from splitload.plan.partition import Partition
from splitload.runtime.residency import ARENA_SHARE, Needs

TRAIN = ["train", "--device", "s20", "--agent", "exact", "-o", "b.splitload"]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a chain of four products of 640 kB each."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return str(save(chain(8, width=400), tmp_path))


def printed(capsys: pytest.CaptureFixture[str]) -> Any:
    return json.loads(capsys.readouterr().out)


def least_of(model: str, capsys: pytest.CaptureFixture[str]) -> int:
    """Return the least ceiling, which the refusal of a lower one names."""
    assert main([*TRAIN, model, "--residency", "1kB"]) == 2
    out, line = capsys.readouterr()
    assert not out
    assert not Path("b.splitload").exists()
    assert line.startswith("splitload: no plan of up to ")
    return read_bytes(line.strip().rpartition("--residency ")[2])


@pytest.mark.parametrize("objective", ["steady", "ttfo"])
def test_a_plan_under_a_ceiling(model: str, objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    ceiling = least_of(model, capsys)
    assert main([*TRAIN, model, f"--residency={ceiling}", f"--objective={objective}", "--json"]) == 0
    out, notes = capsys.readouterr()
    assert "weights stay mapped" in notes
    told = json.loads(out)
    assert told["plan"]["num_stages"] >= 4
    memory = told["memory"]
    assert (memory["source"], memory["residency"]) == ("predicted", ceiling)
    assert memory["peak_bytes"] == max(stage["peak_bytes"] for stage in memory["stages"]) <= ceiling
    assert memory["streamed_bytes"] >= 0
    source = open_source(model, Path("cache"))
    graph = load_graph(source, "portable", Path("cache"), feeds=source.examples, max_weight_bytes=ceiling // 4)
    plan = Partition.of(told["plan"]["num_blocks"], told["plan"]["split_points"])
    needs = memory_needs(graph)
    assert memory["arena_bytes"] == math.ceil(ARENA_SHARE * needs.live_bytes(plan))
    assert memory["arena_source"] == "predicted"
    stages = [needs.stage(*stage) for stage in plan.stages()]
    assert memory["peak_bytes"] == peak_bytes(stages, memory["arena_bytes"])
    (variant,) = read_manifest(Path("b.splitload")).variants
    assert Needs(variant).least <= memory["peak_bytes"], "the loader takes it"
    assert (variant.arena_bytes, variant.input_bytes) == (None, None), "nothing was measured"
    assert variant.residency == ceiling
    for stage, said in zip(variant.stages, memory["stages"], strict=True):
        assert (stage.mapped, stage.prefetch, stage.prepack, stage.upgrade) == (True, False, False, False)
        assert {name: getattr(stage, name) for name in said if name != "peak_bytes"} == {
            name: size for name, size in said.items() if name != "peak_bytes"
        }
    assert json.loads(Path("b.splitload", MANIFEST).read_text())["version"] == 3
    with ParallelLoader("b.splitload") as loader:
        assert loader.run(None, {"x": np.ones((1, 400), np.float32)})[0].shape == (1, 400)


def test_one_stage_at_a_time(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, model, "--residency=stage", "--split-points=2,4"]) == 0
    shown = capsys.readouterr().out
    assert "memory that each stage needs, predicted" in shown
    assert "come again" not in shown, "how much does, only a ceiling says"
    assert read_manifest(Path("b.splitload")).variants[0].residency == "stage"
    assert main(["inspect", "b.splitload"]) == 0
    shown = capsys.readouterr().out
    assert "at most one stage's weights in memory at a time" in shown
    assert "the most at a time: " in shown
    assert main(["inspect", "b.splitload", "--json"]) == 0
    assert printed(capsys)["variants"][0]["residency"] == "stage"


def test_without_it_nothing_changes(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, model, "--residency=all", "--json"]) == 0
    assert "memory" not in printed(capsys)
    said = json.loads(Path("b.splitload", MANIFEST).read_text())
    assert said["version"] == 2
    assert "residency" not in said["variants"][0]
    assert "residency" not in said["plan"]


def test_a_given_plan_that_does_not_fit(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    ceiling = least_of(model, capsys)
    assert main([*TRAIN, model, f"--residency={ceiling}", "--split-points="]) == 2
    assert "--split-points make stages that need " in capsys.readouterr().err


@pytest.mark.slow
def test_on_this_host_the_working_memory_is_measured(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", model, "--device", "host", "--agent", "exact", "-o", "b.splitload", "--max-stages", "6"]
    assert main([*words, "--residency", "100kB"]) == 2
    ceiling = capsys.readouterr().err.strip().rpartition("--residency ")[2]
    assert main([*words, "--residency", ceiling, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["memory"]["arena_source"] == "measured"
    assert told["trial"] is None, "the whole model is no alternative"
    native, portable = read_manifest(Path("b.splitload")).variants
    assert (portable.residency, portable.input_bytes) == (native.residency, 1600)
    assert Needs(portable).least <= read_bytes(ceiling)
    assert native.arena_bytes == told["memory"]["arena_bytes"]
    assert native.input_bytes == 1600
    assert Needs(native).least <= read_bytes(ceiling)
    with ParallelLoader("b.splitload") as loader:
        assert loader.run(None, {"x": np.ones((1, 400), np.float32)})[0].shape == (1, 400)
    assert main(["specialize", "b.splitload", "--json"]) == 0
    capsys.readouterr()
    again, elsewhere = read_manifest(Path("b.splitload")).variants
    assert elsewhere.residency == native.residency
    assert [stage.name for stage in elsewhere.stages] == [stage.name for stage in portable.stages]
    assert again.residency == native.residency
    assert again.input_bytes == 1600
    assert Needs(again).least <= read_bytes(ceiling)


def test_a_budget_under_a_ceiling(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", model, "--device", "host", "--objective", "ttfo", "-o", "b.splitload", "--residency"]
    assert main([*command, "1kB"]) == 2
    ceiling = read_bytes(capsys.readouterr().err.strip().rpartition("--residency ")[2])
    assert main([*command, str(ceiling), "--budget", "3"]) == 2
    assert "give more --budget" in capsys.readouterr().err
    assert main([*command, str(ceiling), "--budget", "60", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["plan"]["num_stages"] > 1
    assert 0 < told["measured_loads"] <= 60
    assert told["memory"]["peak_bytes"] <= ceiling
    assert told["memory"]["arena_source"] == "measured"

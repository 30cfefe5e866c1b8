"""`train --crowd`: the bundle fits the workers and the loader, predictions are told as such, bad input in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import chain, save

from splitload import ParallelLoader
from splitload.base.errors import UsageError
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.crowd.chain import chain_of
from splitload.planner.request import TrainRequest
from splitload.runtime.residency import Needs

TRAIN = ["train", "--device", "s20", "-o", "b.splitload", "--crowd", "crowd.toml"]
CROWD = """
batch = 20
[[workers]]
count = {count}
memory = "{memory}"
speed = 0.01
link_mbit_s = 400
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a chain of four products of 640 kB each."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("crowd.toml").write_text(CROWD.format(count=3, memory="21.6MB"), encoding="utf-8")
    return str(save(chain(8, width=400), tmp_path))


@pytest.mark.parametrize("objective", ["latency", "throughput"])
def test_a_plan_for_a_crowd(model: str, objective: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, model, "--objective", objective, "--json"]) == 0
    told: Any = json.loads(capsys.readouterr().out)
    crowd = told["crowd"]
    assert (crowd["source"], crowd["batch"], crowd["num_workers"]) == ("predicted", 20, 3)
    firsts_s, slowest_s = sum(s["first_s"] for s in crowd["stages"]), max(s["each_s"] for s in crowd["stages"])
    assert crowd["latency_s"] == pytest.approx(firsts_s + 19 * slowest_s)
    assert crowd["throughput_per_s"] == pytest.approx(1 / slowest_s)
    assert told["value"]["learned"] == pytest.approx(crowd["latency_s"] if objective == "latency" else slowest_s)
    assert told["value"]["learned"] == pytest.approx(told["value"]["exact"]), "and the optimum is beside it"
    assert len(crowd["stages"]) == told["plan"]["num_stages"] > 1
    assert {stage["workers"] for stage in crowd["stages"]} == {3}
    assert crowd["worker_bytes"] == max(stage["worker_bytes"] for stage in crowd["stages"]) <= 1_600_000
    manifest = read_manifest(Path("b.splitload"))
    (variant,) = manifest.variants
    assert variant.residency == told["memory"]["residency"] == told["memory"]["peak_bytes"] >= Needs(variant).least
    assert manifest.plan["crowd"] == crowd
    for link, stage in zip(chain_of(manifest, variant, keep_mapped=True).links, crowd["stages"], strict=True):
        assert link.scheduled.memory_bytes <= stage["worker_bytes"], "the engine lets a worker hold it"
    with ParallelLoader("b.splitload") as loader:
        assert np.isfinite(loader.run(None, {"x": np.ones((1, 400), np.float32)})[0]).all()


def test_what_is_printed(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, model, "--objective", "latency", "--agent", "exact"]) == 0
    out, notes = capsys.readouterr()
    assert "with --crowd weights stay mapped" in notes
    assert "on a crowd of 3 workers, predicted" in out
    assert "a batch of 20: " in out
    assert "outputs a second (predicted)" in out


@pytest.mark.parametrize(
    ("more", "crowd", "said"),
    [
        (["--objective=ttfo"], None, "--crowd needs --objective latency or throughput, not 'ttfo'"),
        ([], None, "--crowd needs --objective latency or throughput, not 'balance'"),
        (["--objective=latency", "--residency=4MB"], None, "leave out --residency or --crowd"),
        (["--objective=latency", "--trainable=1"], None, "leave out --trainable or --crowd"),
        (["--objective=latency", "--crowd=none.toml"], None, "'none.toml' cannot be read"),
        (["--objective=latency"], "batch = 1\nworkers = []", "crowd.workers has 0 entries"),
        (
            ["--objective=latency"],
            CROWD.format(count=1, memory="20.01MB"),
            "no worker can hold the stage 'n2': it takes 0.8 MB",
        ),
        (
            ["--objective=latency", "--split-points="],
            CROWD.format(count=1, memory="21.6MB"),
            "beside the runtime no worker has more than 1.6 MB",
        ),
    ],
)
def test_what_is_refused(
    model: str, more: list[str], crowd: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if crowd is not None:
        Path("crowd.toml").write_text(crowd, encoding="utf-8")
    assert main([*TRAIN, model, *more]) == 2
    out, line = capsys.readouterr()
    assert not out
    assert said in line
    assert line.count("\n") == 1
    assert not Path("b.splitload").exists()


def test_an_objective_without_its_crowd(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--objective throughput is of a crowd: give --crowd CROWD\.toml"):
        TrainRequest(device="s20", objective="throughput", cache=tmp_path)

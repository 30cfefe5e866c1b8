"""The benchmark: arms in turns, a fresh process for each sample, and a clear error when an arm fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_models import INPUTS, feeds

from splitload import bench
from splitload.bench import FIGURES, Arm, run_arms, summarize
from splitload.errors import StageError


def test_arms_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def sample(arm: Arm, job: Any) -> dict[str, float]:
        order.append(arm.name)
        return {"ttfo_s": len(order)}

    monkeypatch.setattr(bench, "_sample", sample)
    seen: list[tuple[int, int]] = []
    arms = [Arm(name, Path("none")) for name in "abc"]
    samples = run_arms(arms, (), {}, 3, lambda *step: seen.append(step))
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert seen == [(done, 9) for done in range(1, 10)]
    assert samples["a"] == [{"ttfo_s": 1}, {"ttfo_s": 6}, {"ttfo_s": 8}]


def test_every_sample_is_a_fresh_process(
    chain_model: Path, chain_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = []
    real = bench.subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return real(command, **options)

    monkeypatch.setattr(bench.subprocess, "run", run)
    arms = [Arm("stock", chain_model), Arm("splitload", chain_bundle, threads=2)]
    samples = run_arms(arms, INPUTS, feeds(), 1)
    assert len(commands) == 2
    for rows in samples.values():
        assert tuple(rows[0]) == FIGURES
        assert all(value > 0 for value in rows[0].values())


def test_the_tuned_arm_takes_an_optimised_file(chain_bundle: Path) -> None:
    stage = next(chain_bundle.glob("portable-00-*.onnx"))
    row = run_arms([Arm("tuned", stage)], INPUTS[:1], {}, 1)["tuned"][0]  # the stage reads x, made up here
    assert row["ttfo_s"] >= row["load_s"]


def test_peak_memory_is_that_of_the_process_itself(chain_model: Path) -> None:
    ballast = np.ones(60_000_000)  # 480 MB, which a child must not count
    row = run_arms([Arm("stock", chain_model)], INPUTS, feeds(), 1)["stock"][0]
    assert row["peak_memory_bytes"] < ballast.nbytes


@pytest.mark.parametrize("name", ["stock", "tuned", "splitload"])
def test_an_arm_that_fails(tmp_path: Path, name: str) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with pytest.raises(StageError, match=rf"benchmark arm '{name}' failed: .*broken\.onnx"):
        run_arms([Arm(name, broken)], INPUTS, feeds(), 1)


def test_an_arm_that_dies(chain_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.sys, "executable", "/bin/false")
    with pytest.raises(StageError, match="the process ended with 1"):
        run_arms([Arm("stock", chain_model)], INPUTS, feeds(), 1)


def test_summary() -> None:
    rows = [dict.fromkeys(FIGURES, value) for value in (3.0, 1.0, 2.0)]
    assert summarize(rows)["ttfo_s"] == {"median": 2.0, "min": 1.0, "max": 3.0}

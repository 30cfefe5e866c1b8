"""A cut that is predicted to pay is measured beside the whole model before it is taken on this machine."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import OutputError
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.devices.host import HostDevice
from splitload.measure.sampling import Arm
from splitload.planner import gain as gains
from splitload.planner import measure_plans, search, train, trial
from splitload.planner.trial import TRIAL_RUNS, Trial

CLEAR = TRIAL_RUNS // 2 + 1  # samples that settle it where all say the same


@pytest.mark.parametrize(
    ("split_s", "whole_s", "pays"),
    [
        ((0.8, 0.8, 0.8), (1.0, 1.0, 1.0), True),
        ((0.98, 0.98, 0.98), (1.0, 1.0, 1.0), False),
        ((0.8, 8.0, 1.6), (1.0, 10.0, 1.0), True),  # the machine is slower for a while, for both
        ((0.8, 1.0, 9.9), (1.0, 1.0, 10.0), False),
    ],
)
def test_what_pays(split_s: tuple[float, ...], whole_s: tuple[float, ...], pays: bool) -> None:
    assert Trial(2, split_s, whole_s).pays is pays


@pytest.mark.parametrize("seed", range(50))
def test_a_trial_that_ends_early_chooses_as_all_samples_would(seed: int) -> None:
    draw = random.Random(seed)  # noqa: S311 - of test data
    split_s = [draw.uniform(0.7, 1.1) for _ in range(TRIAL_RUNS)]
    whole_s = [1.0] * TRIAL_RUNS
    taken = next(n for n in range(TRIAL_RUNS + 1) if trial._decided(split_s[:n], whole_s[:n]))
    assert CLEAR <= taken <= TRIAL_RUNS
    early, late = (Trial(2, tuple(split_s[:n]), tuple(whole_s[:n])) for n in (taken, TRIAL_RUNS))
    assert early.pays is late.pays


@dataclass
class Script:
    """What the trial is told a cut takes, where the whole model takes a second; and what it measured."""

    split_s: float = 0.8
    whole_stages: int = 1
    measured: list[str] = field(default_factory=list)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Script]:
    """Have every cut searched for taken to the trial; what is measured there, of real bundles, is scripted."""
    monkeypatch.setattr(search, "WORTHWHILE", -1e9)  # whatever this machine measures of it
    script, real = Script(), HostDevice.first_output

    def scripted(device: HostDevice, arm: Arm, *rest: Any) -> dict[str, float]:
        if not arm.path.parent.name.startswith(".trial-"):  # the gain of the bundle that was made
            return real(device, arm, *rest)
        assert {variant.kind for variant in read_manifest(arm.path, "hashes").variants} == {"native", "portable"}
        stages = len(read_manifest(arm.path).variants[0].stages)
        split = stages > script.whole_stages
        script.measured.append("split" if split else "whole")
        return {"ttfo_s": script.split_s if split else 1.0}

    monkeypatch.setattr(HostDevice, "first_output", scripted)
    yield script
    assert not list(cache.glob(".trial-*"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_samples: None) -> Path:
    monkeypatch.setattr(trial, "TRIAL_RUNS", TRIAL_RUNS)  # as they are in use
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "cache"


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert main([*words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def trained(capsys: pytest.CaptureFixture[str], model: Path, most: int) -> Any:
    """Train on this machine with at most so many stages."""
    words = ["train", str(model), "--device", "host", "--agent", "exact", "--max-stages", str(most)]
    return json_of(capsys, *words, "-o", "b.splitload")


@pytest.mark.parametrize("split_s", [0.8, pytest.param(1.2, marks=pytest.mark.slow)])
def test_train_takes_what_answers_first(
    chain_model: Path, script: Script, capsys: pytest.CaptureFixture[str], split_s: float
) -> None:
    script.split_s = split_s
    found = trained(capsys, chain_model, 3)
    assert script.measured == ["split", "whole"] * CLEAR
    tried = found["trial"]
    assert tried == {"runs": CLEAR, "num_stages": tried["num_stages"], "split_ttfo_s": split_s, "whole_ttfo_s": 1.0}
    assert tried["num_stages"] > 1
    manifest = read_manifest(Path("b.splitload"))
    assert manifest.plan["trial"] == tried
    assert manifest.plan["native_left_out"] is None
    taken = tried["num_stages"] if split_s < 1 else 1
    assert len(manifest.variants[0].stages) == found["plan"]["num_stages"] == taken


@pytest.mark.slow
def test_what_is_given_is_measured_and_stays(
    chain_model: Path, script: Script, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(capsys, "train", str(chain_model), "--device", "host", "--split-points", "2", "-o", "b.splitload")
    assert (script.measured, found["trial"], found["plan"]["num_stages"]) == (
        ["split", "whole"] * gains.GAIN_RUNS,
        None,
        2,
    )
    gain = found["gain"]
    assert gain["cut_ratio"] == pytest.approx(1.0 / script.split_s)
    assert gain["layout_ratio"] * gain["cut_ratio"] == pytest.approx(gain["ratio"])


@pytest.mark.slow
def test_bench_tries_once(chain_model: Path, script: Script, capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    script.split_s = 1.2
    words = ["bench", str(chain_model), "--runs", "1", "--arms", "splitload"]
    for _ in range(2):
        assert json_of(capsys, *words)["plan"] == {"num_stages": 1, "split_points": []}
        assert len(script.measured) == 2 * CLEAR
    (bundle,) = (cache / "bench").glob("*.splitload")
    assert read_manifest(bundle).plan["trial"]["num_stages"] > 1


@pytest.mark.parametrize("split_s", [pytest.param(0.8, marks=pytest.mark.slow), 1.2])
def test_specialize_takes_what_answers_first(
    own_bundle: Path, script: Script, capsys: pytest.CaptureFixture[str], split_s: float
) -> None:
    script.split_s = split_s
    taken = json_of(capsys, "specialize", str(own_bundle))["num_stages"]
    assert script.measured == ["split", "whole"] * CLEAR
    manifest = read_manifest(own_bundle)
    tried = manifest.plan["trial"]["num_stages"]
    assert tried > 1
    assert len(manifest.variants[0].stages) == taken == (tried if split_s < 1 else 1)


def test_with_a_trained_tail_what_is_frozen_is_tried(
    chain_model: Path, script: Script, monkeypatch: pytest.MonkeyPatch
) -> None:
    script.whole_stages = 2  # one frozen, and what is trained
    told: list[Any] = []

    def chosen(*_: Any, notes: Any, **__: Any) -> None:
        told.append(notes)
        raise OutputError("what was chosen is enough")

    monkeypatch.setattr(train, "write_bundle", chosen)
    words = ["train", str(chain_model), "--device", "host", "--agent", "exact", "--max-stages", "3"]
    assert main([*words, "--trainable", "1", "-o", "b.splitload"]) == 1
    assert script.measured == ["split", "whole"] * CLEAR
    assert told[0]["trial"]["num_stages"] == 2
    assert len(told[0]["split_points"]) == 2


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), pytest.param(OutputError("no room"), marks=pytest.mark.slow)]
)
@pytest.mark.usefixtures("cache")
def test_a_bundle_that_cannot_be_measured_afterwards_is_no_failure(
    chain_model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    def full(*_: Any) -> float:
        raise error

    monkeypatch.setattr(train, "measure_gain", full)
    found = json_of(capsys, "train", str(chain_model), "--device", "host", "--split-points", "2", "-o", "b.splitload")
    assert found["ttfo_s"]["measured"] is None
    read_manifest(Path("b.splitload"), "hashes")


def test_samples_are_of_fresh_processes(
    chain_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(search, "WORTHWHILE", -10.0)
    monkeypatch.setattr(trial, "TRIAL_RUNS", 2)
    samples: list[float] = []
    real = HostDevice.first_output

    def seen(device: HostDevice, arm: Arm, *rest: Any) -> dict[str, float]:
        found = real(device, arm, *rest)
        if arm.path.parent.name.startswith(".trial-"):
            samples.append(found["ttfo_s"])
        return found

    monkeypatch.setattr(HostDevice, "first_output", seen)
    tried = trained(capsys, chain_model, 2)["trial"]
    assert len(set(samples)) == 4
    assert tried["split_ttfo_s"] == pytest.approx((samples[0] + samples[2]) / 2)
    assert tried["whole_ttfo_s"] == pytest.approx((samples[1] + samples[3]) / 2)


@pytest.mark.slow
def test_a_trial_that_fails_leaves_the_prediction(
    chain_model: Path, script: Script, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OutputError("no room")

    monkeypatch.setattr(measure_plans, "build_bundle", full)
    assert main(["train", str(chain_model), "--device", "host", "--max-stages", "2", "-o", "b.splitload"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "the cut could not be measured beside the whole model" in said
    assert "so its prediction counts: no room" in said
    assert len(read_manifest(Path("b.splitload")).variants[0].stages) == 2

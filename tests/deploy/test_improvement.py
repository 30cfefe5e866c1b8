"""A tail is replaced by a better one only: the tail as it was before training counts as epoch 0."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from splitload.base.errors import UsageError
from splitload.bundle.tails import current_version, revert
from splitload.cli import main
from splitload.deploy import personalize as script
from splitload.deploy.arguments import Settings
from splitload.deploy.epochs import Epoch
from splitload.deploy.personalize import personalize

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
from small_bundle import CLASSES, QUICK, answer, data

WILD = ["--optimizer", "sgd", "--lr", "30", "--epochs", "3", "--batch-size", "120"]


def test_a_worse_tail_is_not_kept(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, valid = data(tmp_path / "train.npz"), data(tmp_path / "valid.npz", seed=1)
    good = personalize(bundle, train, valid, settings=QUICK)
    expected = answer(bundle)
    words = [str(bundle), "--data", str(train), "--valid", str(valid), *WILD]
    assert main(["finetune", *words, "--json"]) == 0
    printed = capsys.readouterr()
    row = json.loads(printed.out)
    assert (row["improved"], row["version"], row["best"]["number"]) == (False, 1, 0)
    assert row["before"] == row["best"]
    assert row["before"]["valid_loss"] == pytest.approx(good.best.valid_loss, rel=1e-5)
    assert row["before"]["valid_accuracy"] == good.best.valid_accuracy
    assert "no epoch made the tail 'default' better: the loss was" in printed.err
    assert main(["finetune", *words]) == 0
    assert capsys.readouterr().out.startswith("before training: validation loss")
    assert script.main(words) == 0
    printed = capsys.readouterr()
    assert "no epoch made the tail 'default' better" in printed.err
    assert json.loads(printed.out.splitlines()[-1])["improved"] is False
    assert current_version(bundle, "default") == 1
    np.testing.assert_array_equal(answer(bundle), expected)


def test_the_last_stage_as_built_is_better_than_a_worse_tail(bundle: Path, tmp_path: Path) -> None:
    train = data(tmp_path / "train.npz")
    result = personalize(bundle, train, settings=Settings(learning_rate=0.0, epochs=3, patience=2))
    assert (result.improved, result.version) == (False, 0)
    assert len(result.epochs) == 2, "patience counts from epoch 0 on"
    assert all(epoch.loss_after == pytest.approx(result.before.loss_after) for epoch in result.epochs)
    assert not (bundle / "tails" / "default").exists()


@pytest.mark.parametrize("judged", ["loss", "validation loss"])
def test_what_epochs_are_judged_by_stands_first_on_each_line(
    bundle: Path, tmp_path: Path, judged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["finetune", str(bundle), "--data", str(data(tmp_path / "train.npz")), "--epochs", "3"]
    words += ["--valid", str(data(tmp_path / "valid.npz", seed=1))] if judged == "validation loss" else []
    assert main(words) == 0
    shown = capsys.readouterr().out.splitlines()[:4]
    revert(bundle, "default")
    assert main([*words, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    for line, epoch in zip(shown, [result["before"], *result["epochs"]], strict=True):
        name = f"epoch {epoch['number']}" if epoch["number"] else "before training"
        assert line.startswith(f"{name}: {judged} {epoch['loss_after']:.4f}")
        assert ("running loss" in line) == (epoch["number"] > 0)


def test_epoch_0_is_told_first_and_noted(bundle: Path, tmp_path: Path) -> None:
    told: list[Epoch] = []
    train = data(tmp_path / "train.npz")
    result = personalize(bundle, train, settings=QUICK, on_epoch=told.append)
    assert told == [result.before, *result.epochs]
    assert (result.before.number, result.before.loss) == (0, None)
    assert result.improved
    notes = json.loads((bundle / "tails" / "default" / "0001" / "tail.json").read_text())["notes"]
    assert notes["before"] == asdict(result.before)
    assert notes["epoch"] == asdict(result.best)
    again = personalize(bundle, train, settings=QUICK)
    assert again.before.loss_after == pytest.approx(result.best.loss_after, rel=1e-4)


WIDE: dict[str, tuple[dict[str, object], str]] = {
    "beyond float32": ({"x": np.full((120, 1, 8, 8), 1e300)}, "'image' holds 1e\\+300; float32 holds at most"),
    "outputs beyond float32": ({"y": np.full((120, CLASSES), -1e39)}, "'y' holds -1e\\+39; float32 holds at most"),
    "classes that would wrap": ({"y": np.full(120, 2**64 - 1, "u8")}, "there are 18446744073709551615"),
}


@pytest.mark.parametrize("name", WIDE)
def test_values_that_change_in_the_models_type_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    changes, message = WIDE[name]
    with pytest.raises(UsageError, match=message):
        personalize(bundle, data(tmp_path / "train.npz", **changes), settings=QUICK)
    assert not (bundle / "tails").exists()

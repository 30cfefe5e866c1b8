"""Ctrl-C while a tail is trained: the best epoch so far is saved if it beats the tail as it was, and a line says so."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitload.bundle import tails
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import current_version, names
from splitload.deploy import personalize as module
from splitload.deploy.epochs import Epoch
from splitload.deploy.learner import Learner
from splitload.deploy.personalize import personalize

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
from small_bundle import QUICK, answer, data


def interrupt(*_: Any) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def after(number: int, seen: list[Epoch]) -> Callable[[Epoch], None]:
    def on_epoch(epoch: Epoch) -> None:
        seen.append(epoch)
        if epoch.number == number:
            interrupt()

    return on_epoch


def test_the_best_epoch_so_far_is_saved(bundle: Path, tmp_path: Path) -> None:
    train, seen = data(tmp_path / "train.npz"), list[Epoch]()
    with pytest.raises(KeyboardInterrupt) as raised:
        personalize(bundle, train, settings=QUICK, on_epoch=after(3, seen))
    best = min(seen, key=lambda epoch: epoch.loss_after)
    assert best.number > 0
    assert str(raised.value) == (
        f"interrupted; the best epoch so far, {best.number}, is saved as version 1 of the tail 'default': "
        f"its loss is {best.loss_after:.4f}, and was {seen[0].loss_after:.4f} before training"
    )
    again = personalize(bundle, train, settings=replace(QUICK, learning_rate=0.0, epochs=1))
    assert again.before.loss_after == pytest.approx(best.loss_after, rel=1e-5), "its weights are what counts now"
    read_manifest(bundle, "hashes")
    assert not list(bundle.glob(".*"))


@pytest.mark.parametrize(
    "calls",
    [
        {"on_features": interrupt},
        {"on_step": interrupt},
        {"on_epoch": after(0, [])},
        {"on_epoch": after(2, []), "settings": replace(QUICK, learning_rate=0.0)},
    ],
    ids=["features", "step", "epoch 0", "no epoch is better"],
)
def test_nothing_is_saved_where_nothing_is_better(bundle: Path, tmp_path: Path, calls: dict[str, Any]) -> None:
    before = answer(bundle)
    with pytest.raises(KeyboardInterrupt, match="before an epoch made the tail 'default' better; nothing was saved"):
        personalize(bundle, data(tmp_path / "train.npz"), **{"settings": QUICK} | calls)
    assert names(bundle) == []
    assert not list(bundle.glob(".*"))
    assert (answer(bundle) == before).all()


def test_weights_and_epoch_belong_together(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt while the weights of epoch 2 are taken keeps epoch 1 with its own."""
    real, taken = Learner.weights, list[int]()

    def weights(self: Learner) -> Any:
        taken.append(1)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return real(self)

    monkeypatch.setattr(Learner, "weights", weights)
    train, seen = data(tmp_path / "train.npz"), list[Epoch]()
    with pytest.raises(KeyboardInterrupt, match="the best epoch so far, 1, is saved"):
        personalize(bundle, train, settings=QUICK, on_epoch=seen.append)
    again = personalize(bundle, train, settings=replace(QUICK, learning_rate=0.0, epochs=1))
    assert again.before.loss_after == pytest.approx(seen[1].loss_after, rel=1e-5)


def test_an_interrupt_while_writing_says_what_counts(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.write_tail

    def write_tail(*arguments: Any) -> Any:
        real(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_tail", write_tail)
    with pytest.raises(KeyboardInterrupt, match=r"interrupted; .* is saved as version 1 of the tail 'default'"):
        personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)
    assert current_version(bundle, "default") == 1


@pytest.mark.parametrize(("times", "saved"), [(1, 1), (2, 0)])
def test_the_writing_begins_anew_after_one_interrupt_and_ends_at_the_second(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int, saved: int
) -> None:
    real, left = tails.sync_tree, [None] * times

    def sync_tree(*arguments: Any, **settings: Any) -> None:
        if left:
            left.pop()
            raise KeyboardInterrupt
        real(*arguments, **settings)

    monkeypatch.setattr(tails, "sync_tree", sync_tree)
    says = "is saved as version 1" if saved else "interrupted while the tail 'default' was written; nothing was saved"
    with pytest.raises(KeyboardInterrupt, match=says):
        personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK, on_epoch=after(3, []))
    assert not left
    assert current_version(bundle, "default") == saved


@pytest.mark.parametrize("times", [1, 2], ids=["removing", "training and removing"])
def test_an_interrupt_while_features_are_removed_loses_nothing(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    real, interrupted = shutil.rmtree, list[Path]()

    def rmtree(path: Any, *arguments: Any, **settings: Any) -> None:
        if ".features-" in Path(path).name and not interrupted:
            interrupted.append(Path(path))
            raise KeyboardInterrupt
        real(path, *arguments, **settings)

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    train = data(tmp_path / "train.npz")
    with pytest.raises(KeyboardInterrupt, match="is saved as version 1 of the tail 'default'"):
        personalize(bundle, train, settings=QUICK, on_epoch=after(3, []) if times == 2 else None)
    assert interrupted[0].exists()
    assert current_version(bundle, "default") == 1
    personalize(bundle, train, settings=replace(QUICK, epochs=1))
    assert not list(bundle.glob(".features-*")), "what stayed is removed by the next training"


@pytest.mark.parametrize("program", ["splitload", "splitload.deploy.personalize"])
def test_both_programs_exit_with_130(bundle: Path, tmp_path: Path, program: str) -> None:
    words = [*["finetune"] * (program == "splitload"), bundle, "--data", data(tmp_path / "train.npz"), "--tail", "anna"]
    forever = ["--epochs", "1000000", "--patience", "1000000"]
    with subprocess.Popen(
        [sys.executable, "-u", "-m", program, *words, *forever],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        for _ in range(4):
            child.stdout.readline()
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 130
    (line,) = errors.splitlines()
    assert line.startswith(f"{program.rpartition('.')[2]}: interrupted; the best epoch so far, ")
    assert "is saved as version 1 of the tail 'anna'" in line
    assert current_version(bundle, "anna") == 1

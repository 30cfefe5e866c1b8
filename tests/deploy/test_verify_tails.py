"""`splitload verify` on personalized bundles: every version of every tail, and what a killed writer leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import splitload.bundle.replace
from splitload import ParallelLoader
from splitload.base.errors import BundleError, OutputError
from splitload.base.regular import sha256_of
from splitload.base.sealed import KEY
from splitload.bundle import delivery
from splitload.bundle.delivery import install
from splitload.bundle.manifest import MANIFEST
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import names, read_weights, revert, write_tail
from splitload.bundle.verification import TailVersions, verify
from splitload.bundle.write import write_manifest
from splitload.cli import main
from splitload.deploy.personalize import personalize

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
from small_bundle import QUICK, data


@pytest.fixture(scope="session")
def tuned_once(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    bundle = Path(shutil.copytree(built, folder / "tuned.splitload", copy_function=shutil.copyfile))
    for _ in range(2):
        personalize(bundle, data(folder / "train.npz"), settings=replace(QUICK, epochs=1), tail="anna")
    revert(bundle, "anna")
    return bundle


@pytest.fixture
def tuned(tuned_once: Path, tmp_path: Path) -> Path:
    """A bundle with two versions of a tail, of which the first counts."""
    return Path(shutil.copytree(tuned_once, tmp_path / "tuned.splitload", copy_function=shutil.copyfile))


def test_tails_are_verified(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = verify(tuned)
    assert found.tails == (TailVersions("anna", (1, 2), 1),)
    assert found.files == sum(path.is_file() for path in tuned.rglob("*"))
    assert main(["verify", str(tuned)]) == 0
    assert "tail 'anna': 2 versions, version 1 counts" in capsys.readouterr().out
    assert main(["verify", str(tuned), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tails"] == [{"name": "anna", "versions": [1, 2], "current": 1}]


def test_damage_to_any_file_of_a_tail_is_seen(tuned: Path) -> None:
    files = sorted(path for path in (tuned / "tails").rglob("*") if path.is_file())
    assert len(files) == 2 * 3 + 1
    for file in files:
        whole = file.read_bytes()
        for place in {0, len(whole) // 2, len(whole) - 2}:
            damaged = bytearray(whole)
            damaged[place] ^= 0x40
            file.write_bytes(damaged)
            with pytest.raises(BundleError):
                verify(tuned)
        file.write_bytes(whole[:-1] if file.name != "current" else b"7\n")
        with pytest.raises(BundleError):
            verify(tuned)
        file.write_bytes(whole)
    verify(tuned)


@pytest.mark.parametrize("place", ["", "anna/", "anna/0001/", "anna/0003/"])
def test_what_belongs_to_no_tail_is_refused(tuned: Path, place: str) -> None:
    (tuned / "tails" / place).mkdir(exist_ok=True)
    (tuned / "tails" / place / "stray").write_bytes(b"1")
    with pytest.raises(BundleError):
        verify(tuned)


def test_what_a_killed_writer_leaves_is_told(tuned: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tuned / "tails" / "anna"
    (place / ".new-x.making").mkdir()
    (place / ".current.12345678").write_text("1\n")
    assert verify(tuned).unfinished == 2
    assert main(["verify", str(tuned)]) == 0
    assert "2 tails being written" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["tails", "tails/anna", "tails/anna/0001"])
def test_folders_are_no_links(tuned: Path, place: str) -> None:
    (tuned / place).rename(tuned.with_name("elsewhere"))
    (tuned / place).symlink_to(tuned.with_name("elsewhere"))
    with pytest.raises(BundleError, match="is a link"):
        verify(tuned)


@pytest.mark.parametrize("mode", ["none", "sizes", "hashes"])
def test_a_fifo_in_a_tail_blocks_nobody(tuned: Path, mode: Any) -> None:
    def give_up(*_: Any) -> None:
        raise AssertionError("it waits for a FIFO")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(60)
    place = tuned / "tails" / "anna"
    for file in [place / "current", *sorted((place / "0001").iterdir())]:
        kept = file.rename(file.with_name("kept"))
        os.mkfifo(file)
        with pytest.raises(BundleError, match="is a FIFO, and a bundle holds files only"):
            ParallelLoader(tuned, tail="anna", verify=mode)
        file.unlink()
        kept.rename(file)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_an_installed_bundle_keeps_the_tails_of_its_place(tuned: Path, built: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.splitload"
    assert install(tuned, copy).tails == verify(tuned).tails, "they come along"
    personalize(copy, data(tmp_path / "train.npz"), settings=replace(QUICK, epochs=1), tail="bert")
    assert install(built, copy).tails == verify(copy).tails, "they stay"
    assert [tail.name for tail in verify(copy).tails] == ["anna", "bert"]
    revert(tuned, "anna")
    stayed: list[str] = []
    assert install(tuned, copy, on_stayed=stayed.append).tails[0] == TailVersions("anna", (1, 2), 1), (
        "those of the place win"
    )
    assert stayed == ["anna"]


def test_install_says_whose_tail_stayed(
    tuned: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.splitload"
    said = "tail 'anna': 2 versions, version 1 counts"
    for source, stays in (
        (tuned, ""),
        (tuned, "; it was here and stays, that of the source was left behind"),
        (built, ""),
    ):
        assert main(["install", str(source), str(copy)]) == 0
        assert f"{said}{stays}\n" in capsys.readouterr().out
    assert main(["install", str(tuned), str(copy), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tails_stayed"] == ["anna"]


@pytest.mark.slow
def test_a_specialized_bundle_keeps_its_tails(
    tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    x = np.load(data(tmp_path / "train.npz"))["x"][:1]

    def answers() -> list[Any]:
        found = []
        for tail in ("anna", None):
            with ParallelLoader(tuned, tail=tail) as model:
                found.append(model.run(None, {model.get_inputs()[0].name: x})[0])
        return found

    manifest = read_manifest(tuned)
    *others, portable = manifest.variants
    write_manifest(tuned, manifest._replace(variants=(*others, portable._replace(threads=8))))
    before, expected, last = verify(tuned).tails, answers(), portable.stages[-1]
    for words in (["--add"], []):
        assert main(["specialize", str(tuned), *words]) == 0, capsys.readouterr().err
        manifest = read_manifest(tuned)
        assert [variant.kind for variant in manifest.variants] == ["native", "portable"]
        assert manifest.variants[-1].threads == 8
        assert {variant.stages[-1].graph for variant in manifest.variants} == {last.graph}
        assert verify(tuned).tails == before
        np.testing.assert_allclose(answers(), expected, rtol=0, atol=1e-5)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3, "the tail answers otherwise than the last stage as built"


@pytest.mark.parametrize("step", ["_copy", "verify"])
def test_a_tail_that_is_made_during_the_copy_is_carried_over(
    tuned: Path, built: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    source = Path(shutil.copytree(built, tmp_path / "source.splitload", copy_function=shutil.copyfile))
    personalize(source, data(tmp_path / "train.npz"), settings=replace(QUICK, epochs=1), tail="bert")
    real, made = getattr(delivery, step), []

    def meanwhile(*values: Any) -> Any:
        found = real(*values)
        if not made:
            made.append(
                shutil.copytree(tuned / "tails" / "anna", tuned / "tails" / "bert")
            )  # under a name of the source
        return found

    monkeypatch.setattr(delivery, step, meanwhile)
    found = install(source, tuned)
    assert [(tail.name, tail.versions, tail.current) for tail in found.tails] == [
        ("anna", (1, 2), 1),
        ("bert", (1, 2), 1),
    ]
    assert verify(tuned) == found


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
@pytest.mark.parametrize("name", ["anna", "bert"])
def test_what_is_trained_during_an_installation_is_not_lost(
    tuned: Path, built: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    manifest = read_manifest(built)
    stage, training = manifest.variants[-1].stages[-1], manifest.training
    assert training is not None and stage.weights is not None
    weights = read_weights(built / stage.weights.name, training)
    writer = threading.Thread(target=write_tail, args=(tuned, name, stage, training, weights, {}), daemon=True)
    real = delivery.verify

    def meanwhile(bundle: Path) -> Any:
        writer.start()
        writer.join(0.3)
        assert writer.is_alive(), "it waits for the installation"
        return real(bundle)

    monkeypatch.setattr(delivery, "verify", meanwhile)
    install(built, tuned)
    writer.join(60)
    assert not writer.is_alive()
    found = {tail.name: (tail.versions, tail.current) for tail in verify(tuned).tails}
    assert found == {"anna": ((1, 2), 1), name: ((1, 2, 3), 3) if name == "anna" else ((1,), 1)}


@pytest.mark.parametrize("when", ["on_features", "on_step"])
def test_training_goes_on_where_its_bundle_is_replaced(tuned: Path, built: Path, tmp_path: Path, when: str) -> None:
    installed: list[Any] = []

    def replace_it(*_: Any) -> None:
        assert verify(tuned).unfinished == 0, "nothing of the training lies in the bundle"
        if not installed:
            installed.append(install(built, tuned))

    samples = data(tmp_path / "train.npz")
    made = personalize(tuned, samples, settings=replace(QUICK, epochs=1), tail="bert", **{when: replace_it})
    assert installed
    assert made.version == 1
    assert [tail.name for tail in verify(tuned).tails] == ["anna", "bert"]
    assert not list(tmp_path.glob(".*"))


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_two_installations_never_wait_for_each_other(tuned: Path, built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one sees a tail late whose name comes before the one that it knows."""
    done: list[Any] = []
    first, second = (threading.Thread(target=lambda: done.append(install(built, tuned)), daemon=True) for _ in range(2))
    real = delivery.verify

    def meanwhile(bundle: Path) -> Any:
        if second.ident is None:
            shutil.copytree(tuned / "tails" / "anna", tuned / "tails" / "aaron")
            second.start()
            second.join(0.3)
        return real(bundle)

    monkeypatch.setattr(delivery, "verify", meanwhile)
    first.start()
    first.join(60)
    second.join(60)
    assert len(done) == 2
    assert names(tuned) == ["aaron", "anna"]


def test_a_tail_that_is_made_when_it_is_too_late_changes_nothing(
    tuned: Path, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = verify(tuned)
    real = splitload.bundle.replace.sync_tree

    def meanwhile(folder: Path, **how: bool) -> None:
        real(folder, **how)
        shutil.copytree(tuned / "tails" / "anna", tuned / "tails" / "bert")

    monkeypatch.setattr(splitload.bundle.replace, "sync_tree", meanwhile)
    with pytest.raises(OutputError, match=r"the tail 'bert' was made in .* meanwhile.*install the bundle again"):
        install(built, tuned)
    assert verify(tuned).tails == (*before.tails, TailVersions("bert", (1, 2), 1))
    monkeypatch.undo()
    assert install(built, tuned).tails == (*before.tails, TailVersions("bert", (1, 2), 1))


def test_a_bundle_that_tails_do_not_fit_is_not_installed(tuned: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tuned, tmp_path / "other.splitload", copy_function=shutil.copyfile)
    shutil.rmtree(other / "tails")
    stage = read_manifest(other).variants[-1].stages[-1]
    assert stage.weights is not None
    weights = bytearray((other / stage.weights.name).read_bytes())
    weights[-1] ^= 1
    (other / stage.weights.name).write_bytes(weights)
    sha256 = sha256_of(other / stage.weights.name)
    manifest = json.loads((other / MANIFEST).read_text().replace(stage.weights.sha256, sha256))
    del manifest[KEY]
    (other / MANIFEST).write_text(json.dumps(manifest))
    verify(other)
    before = verify(tuned)
    with pytest.raises(OutputError, match=r"the tail .* would be lost .*another bundle.*remove its folder"):
        install(other, tuned)
    assert verify(tuned) == before

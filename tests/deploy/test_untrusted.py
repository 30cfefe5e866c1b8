"""What training reads of a bundle is what the manifest says: no bit of it is another, and no link leads elsewhere."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from splitload import ParallelLoader
from splitload.base.errors import BundleError
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import current_version, read_weights, write_tail
from splitload.deploy.arguments import Settings
from splitload.deploy.personalize import personalize

GOLDEN = Path(__file__).parent / "golden"  # made by the code of version 1; never made anew
BITS = 75  # that are turned in each training step, one at a time
SECRET = b"a private file of the user"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return Path(shutil.copytree(GOLDEN / "v1-trainable.splitload", tmp_path / "net.splitload"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x = np.random.default_rng(1).standard_normal((12, 3)).astype("f4")
    np.savez(tmp_path / "train.npz", x=x, y=(x[:, 0] > 0).astype(int))
    return tmp_path / "train.npz"


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_steps_of_version_1_train_as_they_did(bundle: Path, data: Path, optimizer: str) -> None:
    """The losses are those that the version which made the bundle came to."""
    expected = json.loads((GOLDEN / "v1-losses.json").read_text())[optimizer]
    settings = Settings(epochs=3, batch_size=4, optimizer=optimizer, learning_rate=0.05)
    result = personalize(bundle, data, settings=settings)
    assert [epoch.loss for epoch in result.epochs] == pytest.approx(expected, rel=1e-5)
    assert result.improved


def refused(bundle: Path, data: Path, tail: str = "default") -> str:
    """Personalize, which must end with one line before anything was computed; return it."""

    def never(*_: object) -> None:
        raise AssertionError("training began")

    with pytest.raises(BundleError) as raised:
        personalize(bundle, data, settings=Settings(epochs=1), tail=tail, on_features=never, on_step=never)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_one_bit_of_a_training_step_is_enough_to_refuse_it(bundle: Path, data: Path) -> None:
    rng = random.Random(0)  # noqa: S311 - not for secrets
    steps = sorted(bundle.glob("step-*.onnx"))
    assert len(steps) == 4
    for step in steps:
        content = step.read_bytes()
        for _ in range(BITS):
            changed = bytearray(content)
            changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
            step.write_bytes(changed)
            assert f"'{step}' is not what the manifest says" in refused(bundle, data)
        step.write_bytes(content)
    assert not (bundle / "tails").exists()
    assert personalize(bundle, data, settings=Settings(epochs=1, learning_rate=0.05)).improved


@pytest.mark.parametrize("pattern", ["portable-00-*.onnx", "portable-02-*.onnx", "portable-02-*.bin"])
def test_one_bit_of_a_stage_is_enough_too(bundle: Path, data: Path, pattern: str) -> None:
    (file,) = bundle.glob(pattern)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert f"'{file}' is not what the manifest says" in refused(bundle, data)


def linked(bundle: Path, pattern: str, target: Path) -> Path:
    (file,) = bundle.glob(pattern)
    file.unlink()
    file.symlink_to(target)
    return file


@pytest.mark.parametrize("pattern", ["portable-00-*.onnx", "portable-02-*.bin", "portable-02-*.onnx", "step-mse-sgd-*"])
def test_links_are_not_followed(bundle: Path, data: Path, tmp_path: Path, pattern: str) -> None:
    """Not even to what the manifest says; and no private file becomes part of the bundle."""
    (file,) = bundle.glob(pattern)
    same = tmp_path / "same"
    shutil.copyfile(file, same)
    assert f"'{linked(bundle, pattern, same)}' is a link" in refused(bundle, data)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET.ljust(same.stat().st_size))
    assert f"'{linked(bundle, pattern, secret)}' is a link" in refused(bundle, data)
    assert not (bundle / "tails").exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("pattern", ["portable-02-*.bin", "step-mse-sgd-*"])
def test_a_pipe_is_refused_and_nobody_waits_for_it(bundle: Path, data: Path, pattern: str) -> None:
    (file,) = bundle.glob(pattern)
    file.unlink()
    os.mkfifo(file)
    assert f"'{file}' is a FIFO, and a bundle holds files only" in refused(bundle, data)


def test_weights_that_change_while_they_are_copied_are_not_kept(bundle: Path, tmp_path: Path) -> None:
    """What `write_tail` copies is what the manifest says, whatever was checked before."""
    manifest = read_manifest(bundle)
    assert manifest.training is not None
    stage = manifest.variants[-1].stages[-1]
    assert stage.weights is not None
    weights = read_weights(bundle / stage.weights.name, manifest.training)
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET.ljust(stage.weights.bytes))
    change: tuple[Callable[[], object], ...] = (
        lambda: linked(bundle, "portable-02-*.bin", secret),
        lambda: (bundle / stage.weights.name).unlink(),  # type: ignore[union-attr]
        lambda: shutil.copyfile(secret, bundle / stage.weights.name),  # type: ignore[union-attr]
    )
    for each in change:
        each()
        with pytest.raises(BundleError):
            write_tail(bundle, "anna", stage, manifest.training, weights, {})
    assert current_version(bundle, "anna") == 0
    assert not any(SECRET in file.read_bytes() for file in (bundle / "tails").rglob("*") if file.is_file())


@pytest.mark.parametrize("name", ["tails", "tails/anna"])
def test_a_folder_of_tails_that_is_a_link_is_not_written_to(
    bundle: Path, data: Path, tmp_path: Path, name: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (bundle / name).parent.mkdir(exist_ok=True)
    (bundle / name).symlink_to(outside)
    assert f"'{bundle / name}' is a link" in refused(bundle, data, tail="anna")
    assert list(outside.iterdir()) == []
    with pytest.raises(BundleError, match="is a link"):
        ParallelLoader(bundle, tail="anna")


@pytest.mark.parametrize("name", ["current", "0001", "0001/tail.json", "0001/weights"])
def test_links_in_a_tail_are_not_followed(bundle: Path, data: Path, tmp_path: Path, name: str) -> None:
    personalize(bundle, data, settings=Settings(epochs=1, learning_rate=0.05), tail="anna")
    place = bundle / "tails" / "anna"
    (weights,) = (place / "0001").glob("*.bin")
    path = weights if name.endswith("weights") else place / name
    moved = path.rename(tmp_path / "moved")
    path.symlink_to(moved)
    with pytest.raises(BundleError, match=r"is a link|is damaged"):
        ParallelLoader(bundle, tail="anna")
    refused(bundle, data, tail="anna")

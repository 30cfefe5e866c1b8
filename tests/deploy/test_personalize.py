"""Personalization on a real bundle: trained, written beside the original, gone back from, and never half of it."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from splitload import ParallelLoader
from splitload.base.errors import BundleError, TrainingError, UsageError
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import current_version, names
from splitload.cli import main
from splitload.deploy import features
from splitload.deploy import personalize as script
from splitload.deploy.arguments import Settings
from splitload.deploy.personalize import personalize

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
from small_bundle import CLASSES, QUICK, answer, build, data, frozen


def test_the_last_stage_is_what_is_trained(built: Path) -> None:
    manifest = read_manifest(built, "hashes")
    assert manifest.training is not None
    assert [weight.name for weight in manifest.training.weights] == [
        "head.conv.weight", "head.conv.bias", "head.linear.weight", "head.linear.bias",
    ]  # fmt: skip
    assert {(step.loss, step.optimizer) for step in manifest.training.steps} == {
        (loss, optimizer) for loss in ("cross-entropy", "mse") for optimizer in ("sgd", "adam")
    }
    for variant in manifest.variants:
        assert [stage.trainable for stage in variant.stages] == [False] * (len(variant.stages) - 1) + [True]
        assert variant.stages[-1].inputs == manifest.training.features == ("c",)
        assert variant.stages[-1].graph == manifest.variants[0].stages[-1].graph


def test_a_bundle_answers_as_its_model_does(built: Path) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(str(built.parent / "digits.onnx"), providers=["CPUExecutionProvider"])
    images = np.random.default_rng(9).standard_normal((5, 1, 1, 8, 8)).astype("f4")
    expected = np.concatenate([session.run(None, {"image": image})[0] for image in images])
    np.testing.assert_allclose(answer(built), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_training_is_that_of_torch(built: Path, bundle: Path, tmp_path: Path, optimizer: str) -> None:
    """The same samples in the same order, by torch in one process: the same weights."""
    import torch
    from torch.nn import functional

    file = data(tmp_path / "train.npz")
    settings = Settings(epochs=2, batch_size=16, optimizer=optimizer, learning_rate=0.01, patience=9)
    result = personalize(bundle, file, settings=settings)
    stored = np.load(file)
    import onnx

    source = onnx.load(str(built.parent / "digits.onnx"))
    values = {t.name: torch.tensor(numpy_helper.to_array(t)) for t in source.graph.initializer}
    trained = [name for name in values if name.startswith("head")]
    for name in trained:
        values[name].requires_grad_(True)

    def forward(x: Any) -> Any:
        x = functional.relu(functional.conv2d(x, values["body.conv1.weight"], values["body.conv1.bias"], padding=1))
        x = functional.max_pool2d(x, 2)
        x = functional.relu(functional.conv2d(x, values["body.conv2.weight"], values["body.conv2.bias"], padding=1))
        x = functional.relu(functional.conv2d(x, values["head.conv.weight"], values["head.conv.bias"], padding=1))
        return functional.linear(x.mean((2, 3)), values["head.linear.weight"], values["head.linear.bias"])

    parameters = [values[name] for name in trained]
    theirs = (
        torch.optim.Adam(parameters, lr=0.01)
        if optimizer == "adam"
        else torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    )
    rng = np.random.default_rng(0)
    for epoch in result.epochs:
        order = rng.permutation(len(stored["y"]))
        total = 0.0
        for start in range(0, len(order), 16):
            rows = np.sort(order[start : start + 16])
            theirs.zero_grad()
            loss = functional.cross_entropy(forward(torch.tensor(stored["x"][rows])), torch.tensor(stored["y"][rows]))
            loss.backward()
            theirs.step()
            total += loss.item() * len(rows)
        assert epoch.loss == pytest.approx(total / len(order), rel=1e-3)
    images = np.random.default_rng(9).standard_normal((5, 1, 1, 8, 8)).astype("f4")
    with torch.no_grad():
        expected = np.concatenate([forward(torch.tensor(image)).numpy() for image in images])
    np.testing.assert_allclose(answer(bundle), expected, rtol=1e-2, atol=1e-3)


def test_the_best_epoch_is_kept_and_training_ends_early(bundle: Path, tmp_path: Path) -> None:
    noise = data(tmp_path / "valid.npz", seed=3, y=np.random.default_rng(4).integers(0, CLASSES, 120))
    settings = Settings(epochs=40, batch_size=8, learning_rate=0.02, patience=2)
    result = personalize(bundle, data(tmp_path / "train.npz"), noise, settings=settings)
    judged = [epoch.valid_loss for epoch in (result.before, *result.epochs)]  # the tail as it was counts as epoch 0
    assert result.best.valid_loss == min(judged)  # type: ignore[type-var]
    assert len(result.epochs) == result.best.number + 2 < 40


def test_a_model_with_an_open_first_size_runs_many_samples_at_once(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    bundle = build(tmp_path, samples="n", trainable="1")
    calls: list[int] = []
    personalize(
        bundle, data(tmp_path / "train.npz"), settings=QUICK, on_features=lambda done, total: calls.append(done)
    )
    assert calls == [16, 32, 48, 64, 80, 96, 112, 120]


def test_training_begins_after_one_batch_of_features(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each sample goes through the frozen stages once, which are gone whenever the last stage is trained."""
    happened: list[Any] = []
    inside, leave = features.ParallelLoader.__enter__, features.ParallelLoader.__exit__
    monkeypatch.setattr(features.ParallelLoader, "__enter__", lambda each: (happened.append("load"), inside(each))[1])
    monkeypatch.setattr(
        features.ParallelLoader, "__exit__", lambda each, *error: (leave(each, *error), happened.append("close"))[0]
    )
    personalize(
        bundle,
        data(tmp_path / "train.npz", count=40),
        data(tmp_path / "valid.npz", seed=1, count=5),
        settings=Settings(epochs=2, batch_size=16),
        on_features=lambda done, total: happened.append((done, total)),
        on_step=lambda steps, loss: happened.append(f"step {steps}"),
        on_epoch=lambda epoch: happened.append("epoch"),  # the first time for the tail as it was
    )
    assert happened == [
        "load", *((done, 45) for done in range(1, 17)), "close", "step 1",
        "load", *((done, 45) for done in range(17, 46)), "close", "step 2", "step 3", "epoch", "epoch",
        "step 4", "step 5", "step 6", "epoch",
    ]  # fmt: skip


def test_whole_outputs_are_learned_too(bundle: Path, tmp_path: Path) -> None:
    wanted = np.random.default_rng(2).standard_normal((120, CLASSES))
    result = personalize(bundle, data(tmp_path / "train.npz", y=wanted), settings=QUICK)
    assert result.best.valid_accuracy is None
    assert result.epochs[-1].loss < result.epochs[0].loss


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no target": ({"y": None}, "has no array 'y'"),
    "no input": ({"x": None}, "has no array 'image'"),
    "another array": ({"z": np.zeros(3)}, r"does not take: \['z'\]"),
    "another shape": ({"x": np.zeros((120, 1, 8, 9), "f4")}, r"'image' must be a tensor\(float\) of shape"),
    "whole numbers of another kind": ({"x": np.zeros((120, 1, 8, 8), "c8")}, "it is of type complex64"),
    "no number": ({"x": np.full((120, 1, 8, 8), np.nan, "f4")}, "'image' holds values that are not finite"),
    "fewer targets": ({"y": np.zeros(7, int)}, "one entry of each array for each sample"),
    "no samples": ({"x": np.zeros((0, 1, 8, 8), "f4"), "y": np.zeros(0, int)}, "at least one"),
    "a class too high": ({"y": np.full(120, CLASSES)}, "classes must be from 0 to 3; there are 4 to 4"),
    "a class below": ({"y": np.full(120, -1)}, "there are -1 to -1"),
    "outputs of another shape": ({"y": np.zeros((120, 3))}, "'y' must hold finite outputs of shape"),
    "outputs without number": ({"y": np.full((120, CLASSES), np.inf)}, "'y' must hold finite outputs"),
    "classes in columns": ({"y": np.zeros((120, 1), int)}, "a class for each sample"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_refused_and_nothing_changes(bundle: Path, tmp_path: Path, name: str) -> None:
    changes, message = BAD[name]
    files = frozen(bundle)
    with pytest.raises(UsageError, match=message):
        personalize(bundle, data(tmp_path / "train.npz", **changes), settings=QUICK)
    assert frozen(bundle) == files
    assert names(bundle) == []


def test_bad_files_and_names_are_refused(bundle: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.npz"
    bad.write_bytes(b"no archive")
    good = data(tmp_path / "train.npz")
    pickled = tmp_path / "pickled.npz"
    np.savez(pickled, x=np.array([{}], dtype=object), y=np.zeros(1, int))
    none = tmp_path / "none.npz"
    for file, message in ((bad, "is no .npz file"), (none, "cannot read"), (pickled, "or holds Python objects")):
        with pytest.raises(UsageError, match=message):
            personalize(bundle, file)
    for tail in ("../x", "", "a b", ".x"):
        with pytest.raises(UsageError, match="a tail's name"):
            personalize(bundle, good, tail=tail)
    with pytest.raises(UsageError, match="the loss is one of cross-entropy, binary-cross-entropy, mse, not 'hinge'"):
        personalize(bundle, good, settings=Settings(loss="hinge"))
    with pytest.raises(UsageError, match="seed must be a whole number"):
        Settings(seed=-1)
    assert names(bundle) == []


def test_a_loss_that_is_no_number_writes_nothing(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nothing was written; give a smaller --lr"):
        personalize(
            bundle, data(tmp_path / "train.npz"), settings=Settings(optimizer="sgd", learning_rate=1e30, epochs=3)
        )
    assert current_version(bundle, "default") == 0
    assert not list(bundle.glob(".features-*"))


@pytest.mark.parametrize("name", ["no array", "a header of another size", "an encrypted member"])
def test_damaged_archives_are_refused(bundle: Path, tmp_path: Path, name: str) -> None:
    train = data(tmp_path / "train.npz")
    with zipfile.ZipFile(train) as archive:
        members = {each: archive.read(each) for each in archive.namelist()}
    if name == "no array":
        members["x"] = members.pop("x.npy")[50:]
    elif name == "a header of another size":
        members["x.npy"] = members["x.npy"].replace(b"(120, 1, 8, 8)", b"(120, 1<<40, 8)".ljust(14)[:14])
    with zipfile.ZipFile(train, "w") as archive:
        for each, content in members.items():
            archive.writestr(each, content)
    if name == "an encrypted member":
        flags = b"PK\x01\x02\x14\x03\x14\x00"  # of an entry in the directory, before its flags
        train.write_bytes(train.read_bytes().replace(flags + b"\x00", flags + b"\x01"))
    with pytest.raises(UsageError, match=r"is no \.npz file of arrays"):
        personalize(bundle, train, settings=QUICK)


@pytest.mark.parametrize("change", ["name", "shape", "missing"])
def test_weights_that_do_not_fit_their_steps_are_refused(bundle: Path, tmp_path: Path, change: str) -> None:
    path = bundle / "manifest.json"
    row = json.loads(path.read_text())
    del row["sha256"]  # the manifest's own: whoever changed it made it so
    weights = row["training"]["weights"]
    if change == "missing":
        del weights[0]
    else:
        weights[0].update({"name": "other"} if change == "name" else {"shape": [1]})
    path.chmod(0o644)
    path.write_text(json.dumps(row))
    with pytest.raises(BundleError, match=r"do not fit its weights|and no such weight"):
        personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)


def test_the_command_and_the_script(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = data(tmp_path / "train.npz")
    words = [str(bundle), "--data", str(train), "--epochs", "2", "--batch-size", "16"]
    assert main(["finetune", *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["version"], len(printed["epochs"])) == (1, 2)
    assert script.main([*words, "--tail", "anna", "--valid", str(train)]) == 0
    *epochs, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [epoch["number"] for epoch in epochs] == [0, 1, 2], "the tail as it was is told first"
    assert (last["tail"], last["version"], last["improved"]) == ("anna", 1, True)
    assert main(["finetune", str(bundle), "--revert"]) == 0
    assert current_version(bundle, "default") == 0
    for words, code, message in (
        ([str(bundle)], 2, "--data is missing"),
        ([str(bundle), "--revert"], 2, "no personalized tail 'default' to go back from; there are: anna"),
        ([str(bundle), "--data", str(train), "--epochs", "0"], 2, "epochs must be a whole number of at least 1"),
        ([str(bundle), "--data", str(train), "--lr", "nan"], 2, "learning_rate must be a finite number"),
    ):
        assert main(["finetune", *words]) == code
        assert message in capsys.readouterr().err
        assert script.main(words) == code
        assert message in capsys.readouterr().err


def test_neither_torch_nor_onnx_is_imported(bundle: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from splitload.deploy.personalize import main; "
        f"main([{str(bundle)!r}, '--data', {str(data(tmp_path / 'train.npz'))!r}, '--epochs', '1']); "
        "print(sorted({'torch', 'onnx', 'gymnasium', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_input_that_there_is_not_is_no_fault_of_the_training(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "q.npy", np.ones(1, np.float32))
    assert main(["specialize", str(bundle), "--input", f"q={tmp_path / 'q.npy'}"]) == 2
    assert capsys.readouterr().err == "splitload: the model has no input ['q']; it has ['image']\n"


@pytest.mark.slow
def test_a_specialized_bundle_is_trained_by_the_same_steps(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    for module in ("torch", "onnxscript"):  # a device has neither
        monkeypatch.setitem(sys.modules, module, None)
    before, expected = read_manifest(bundle), answer(bundle)
    assert main(["specialize", str(bundle)]) == 0
    after = read_manifest(bundle)
    assert after.variants[0].kind == "native"
    assert before.training is not None
    assert after.training is not None
    assert after.training.steps == before.training.steps
    assert after.plan["trainable"] == "head"
    np.testing.assert_allclose(answer(bundle), expected, rtol=0, atol=1e-5)
    epochs = personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK).epochs
    assert epochs[-1].loss < epochs[0].loss


@pytest.mark.parametrize("rate", [0.05, 3.0])
def test_the_weights_that_are_kept_have_the_loss_that_is_told(bundle: Path, tmp_path: Path, rate: float) -> None:
    train = data(tmp_path / "train.npz")
    settings = Settings(optimizer="sgd", learning_rate=rate, epochs=4, batch_size=120)
    best = personalize(bundle, train, settings=settings).best
    arrays = np.load(train)
    with ParallelLoader(bundle) as loaded:
        logits = np.concatenate([loaded.run(None, {"image": each[None]})[0] for each in arrays["x"]])
    chances = logits - logits.max(1, keepdims=True)
    chances -= np.log(np.exp(chances).sum(1, keepdims=True))
    loss = -chances[np.arange(len(logits)), arrays["y"]].mean()
    assert best.loss_after == pytest.approx(float(loss), rel=1e-3)


def test_what_is_trained_takes_one_of_the_stages(
    built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    words = ["train", str(built.parent / "digits.onnx"), "--device", "s20", "--trainable", "head", "--json"]
    words += ["-o", str(tmp_path / "x.splitload")]
    assert main([*words, "--max-stages", "2"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["plan"]["num_stages"] == 2
    assert printed["value"]["learned"] == printed["value"]["exact"], "with that cut there is one plan of two stages"
    assert main([*words, "--max-stages", "1"]) == 2
    assert "--trainable needs two stages" in capsys.readouterr().err

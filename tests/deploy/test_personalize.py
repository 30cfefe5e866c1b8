"""Personalization on a real bundle: trained, written beside the original, gone back from, and never half of it."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save_model

from splitload import ParallelLoader
from splitload.bundle import read_manifest
from splitload.cli import main
from splitload.deploy import features
from splitload.deploy import personalize as script
from splitload.deploy.arguments import Settings
from splitload.deploy.personalize import personalize
from splitload.errors import BundleError, TrainingError, UsageError
from splitload.tails import current_version, names, revert

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch

CLASSES = 4
QUICK = Settings(epochs=6, batch_size=16, learning_rate=0.01)


def model(path: Path, *, samples: int | str = 1) -> Path:
    """Write a small network of convolutions, of which `head.conv` and `head.linear` come last."""
    rng = np.random.default_rng(0)
    sizes = {
        "body.conv1.weight": (6, 1, 3, 3),
        "body.conv1.bias": (6,),
        "body.conv2.weight": (8, 6, 3, 3),
        "body.conv2.bias": (8,),
        "head.conv.weight": (8, 8, 3, 3),
        "head.conv.bias": (8,),
        "head.linear.weight": (CLASSES, 8),
        "head.linear.bias": (CLASSES,),
    }
    weights = {name: rng.normal(0, 0.4 if len(size) > 1 else 0.1, size).astype("f4") for name, size in sizes.items()}

    def conv(name: str, x: str, y: str) -> list[Any]:
        return [
            helper.make_node("Conv", [x, f"{name}.weight", f"{name}.bias"], [f"{y}/c"], name=name, pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"{y}/c"], [y]),
        ]

    nodes = [
        *conv("body.conv1", "image", "a"),
        helper.make_node("MaxPool", ["a"], ["b"], kernel_shape=[2, 2], strides=[2, 2]),
        *conv("body.conv2", "b", "c"),
        *conv("head.conv", "c", "d"),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Reshape", ["e", "flat"], ["f"]),
        helper.make_node("Gemm", ["f", "head.linear.weight", "head.linear.bias"], ["logits"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [samples, 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [samples, CLASSES])],
        [
            *(numpy_helper.from_array(value, name) for name, value in weights.items()),
            numpy_helper.from_array(np.array([1 if samples == 1 else -1, 8], dtype=np.int64), "flat"),
        ],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


def build(folder: Path, *, samples: int | str = 1, trainable: str = "head") -> Path:
    bundle = folder / "digits.splitload"
    file = model(folder / "digits.onnx", samples=samples)
    assert main(["train", str(file), "--device", "s20", "--trainable", trainable, "-o", str(bundle), "--json"]) == 0
    return bundle


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    patch = pytest.MonkeyPatch()
    folder = tmp_path_factory.mktemp("built")
    patch.setenv("SPLITLOAD_CACHE", str(folder / "cache"))
    made = build(folder)
    patch.undo()
    return made


@pytest.fixture
def bundle(built: Path, tmp_path: Path) -> Path:
    copy = tmp_path / built.name
    subprocess.run(["cp", "-r", str(built), str(copy)], check=True)
    return copy


def data(path: Path, seed: int = 0, count: int = 120, **changes: Any) -> Path:
    """Write images whose class is the quarter of the image that is bright."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, count)
    x = 0.3 * rng.standard_normal((count, 1, 8, 8)).astype("f4")
    for row, quarter in enumerate(y):
        down, right = divmod(int(quarter), 2)
        x[row, 0, 4 * down : 4 * down + 4, 4 * right : 4 * right + 4] += 0.5 + quarter
    arrays = {"x": x, "y": y} | changes
    np.savez(path, **{name: value for name, value in arrays.items() if value is not None})
    return path


def answer(bundle: Path, tail: str | None = "default", count: int = 5) -> Any:
    images = np.random.default_rng(9).standard_normal((count, 1, 1, 8, 8)).astype("f4")
    with ParallelLoader(bundle, tail=tail, upgrade=False) as loader:
        return np.concatenate([loader.run(None, {"image": image})[0] for image in images])


def frozen(bundle: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(bundle.iterdir()) if file.is_file()}


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
def test_training_is_that_of_torch(bundle: Path, tmp_path: Path, optimizer: str) -> None:
    """The same samples in the same order, by torch in one process: the same weights."""
    import torch
    from torch.nn import functional

    file = data(tmp_path / "train.npz")
    settings = Settings(epochs=2, batch_size=16, optimizer=optimizer, learning_rate=0.01, patience=9)
    result = personalize(bundle, file, settings=settings)
    stored = np.load(file)
    import onnx

    source = onnx.load(str(Path(read_source(bundle))))
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


def read_source(bundle: Path) -> str:
    """Return the model that the bundle was built from: the fixture's folder holds it."""
    return str(SOURCES[bundle.name])


SOURCES: dict[str, Path] = {}


@pytest.fixture(autouse=True)
def _sources(built: Path) -> None:
    SOURCES[built.name] = built.parent / "digits.onnx"


def test_a_tail_is_learned_versioned_and_gone_back_from(bundle: Path, tmp_path: Path) -> None:
    train, valid = data(tmp_path / "train.npz"), data(tmp_path / "valid.npz", seed=1)
    before, files = answer(bundle), frozen(bundle)
    first = personalize(bundle, train, valid, settings=QUICK)
    assert first.best.valid_accuracy is not None
    assert first.best.valid_accuracy > 0.9
    assert first.epochs[-1].loss < first.epochs[0].loss
    after = answer(bundle)
    assert not np.allclose(after, before)
    np.testing.assert_array_equal(answer(bundle, tail=None), before)
    second = personalize(bundle, train, settings=QUICK)
    assert (first.version, second.version) == (1, 2)
    assert second.epochs[0].loss < first.epochs[0].loss, "it goes on where the tail stands"
    assert frozen(bundle) == files
    assert read_manifest(bundle, "hashes")
    assert revert(bundle, "default") == 1
    np.testing.assert_array_equal(answer(bundle), after)
    assert revert(bundle, "default") == 0
    np.testing.assert_array_equal(answer(bundle), before)
    with pytest.raises(UsageError, match="no personalized tail 'default'"):
        revert(bundle, "default")
    assert personalize(bundle, train, settings=QUICK).version == 3, "what was gone back from stays"


def test_tails_of_several_users_lie_side_by_side(bundle: Path, tmp_path: Path) -> None:
    for number, name in enumerate(("anna", "bert")):
        flipped = np.random.default_rng(number).integers(0, CLASSES, 120)
        personalize(bundle, data(tmp_path / f"{name}.npz", seed=number, y=flipped), settings=QUICK, tail=name)
    assert names(bundle) == ["anna", "bert"]
    answers = [answer(bundle, tail) for tail in ("anna", "bert", None)]
    assert not np.allclose(answers[0], answers[1])
    np.testing.assert_array_equal(answer(bundle, "default"), answers[2])


def test_the_best_epoch_is_kept_and_training_ends_early(bundle: Path, tmp_path: Path) -> None:
    noise = data(tmp_path / "valid.npz", seed=3, y=np.random.default_rng(4).integers(0, CLASSES, 120))
    settings = Settings(epochs=40, batch_size=8, learning_rate=0.02, patience=2)
    result = personalize(bundle, data(tmp_path / "train.npz"), noise, settings=settings)
    judged = [epoch.valid_loss for epoch in result.epochs]
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
        on_epoch=lambda epoch: happened.append("epoch"),
    )
    assert happened == [
        "load", *((done, 45) for done in range(1, 17)), "close", "step 1",
        "load", *((done, 45) for done in range(17, 46)), "close", "step 2", "step 3", "epoch",
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
    for file, message in ((bad, "is no .npz file"), (tmp_path / "none.npz", "cannot read"), (pickled, "is no .npz")):
        with pytest.raises(UsageError, match=message):
            personalize(bundle, file)
    for tail in ("../x", "", "a b", ".x"):
        with pytest.raises(UsageError, match="a tail's name"):
            personalize(bundle, good, tail=tail)
    with pytest.raises(UsageError, match="the loss is 'cross-entropy' or 'mse', not 'hinge'"):
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


def test_going_back_leads_to_what_counted_before(bundle: Path, tmp_path: Path) -> None:
    train = data(tmp_path / "train.npz")
    personalize(bundle, train, settings=QUICK)
    first = answer(bundle)
    personalize(bundle, train, settings=QUICK)
    assert revert(bundle, "default") == 1
    shutil.copytree(bundle / "tails" / "default" / "0002", bundle / "tails" / "default" / "0003")  # a writer was killed
    assert personalize(bundle, train, settings=QUICK).version == 4
    assert revert(bundle, "default") == 1, "neither what was gone back from nor what never counted"
    np.testing.assert_array_equal(answer(bundle), first)
    assert revert(bundle, "default") == 0


def test_tails_that_are_written_at_the_same_time_are_all_kept(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert manifest.training is not None
    code = (
        "import sys; from pathlib import Path; from splitload.bundle import read_manifest; "
        "from splitload.tails import read_weights, write_tail; bundle = Path(sys.argv[1]); m = read_manifest(bundle); "
        "stage = m.variants[-1].stages[-1]; weights = read_weights(bundle / stage.weights.name, m.training); "
        "[write_tail(bundle, 'anna', stage, m.training, weights, {}) for _ in range(10)]"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(bundle)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert (bundle / "tails" / "anna" / "current").read_text().split() == [str(number) for number in range(1, 31)]


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
    weights = row["training"]["weights"]
    if change == "missing":
        del weights[0]
    else:
        weights[0].update({"name": "other"} if change == "name" else {"shape": [1]})
    path.write_text(json.dumps(row))
    with pytest.raises(BundleError, match=r"do not fit its weights|and no such weight"):
        personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("current", "x", "is damaged: it should hold numbers of versions"),
        ("current", "7\n", "goes back"),
        ("0001/tail.json", "{", "not JSON"),
        ("0001/tail.json", "{}", "is not version 1 of a tail|is missing"),
    ],
)
def test_a_damaged_tail_is_told_apart(bundle: Path, tmp_path: Path, file: str, text: str, message: str) -> None:
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)
    (bundle / "tails" / "default" / file).write_text(text)
    with pytest.raises(BundleError, match=message):
        ParallelLoader(bundle)
    assert answer(bundle, tail=None).shape == (5, CLASSES)


def test_the_tail_of_another_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK)
    path = bundle / "tails" / "default" / "0001" / "tail.json"
    row = json.loads(path.read_text())
    row["base"][1] = "0" * 64
    path.write_text(json.dumps(row))
    with pytest.raises(BundleError, match="the tail of another bundle"):
        ParallelLoader(bundle)


def test_the_command_and_the_script(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = data(tmp_path / "train.npz")
    words = [str(bundle), "--data", str(train), "--epochs", "2", "--batch-size", "16"]
    assert main(["finetune", *words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert (printed["version"], len(printed["epochs"])) == (1, 2)
    assert script.main([*words, "--tail", "anna", "--valid", str(train)]) == 0
    *epochs, last = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert (len(epochs), last["tail"], last["version"]) == (2, "anna", 1)
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


def test_a_personalized_bundle_is_not_replaced(
    bundle: Path, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    personalize(bundle, data(tmp_path / "train.npz"), settings=QUICK, tail="anna")
    model_file = str(built.parent / "digits.onnx")
    for words in (["train", model_file, "--device", "s20", "-o", str(bundle)], ["specialize", str(bundle)]):
        assert main(words) == 1
        assert "holds personalized tails (anna), which a new bundle would lose" in capsys.readouterr().err
    assert names(bundle) == ["anna"]


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


KILLS = int(os.environ.get("SPLITLOAD_TEST_KILLS", "8"))


def test_a_kill_at_any_moment_leaves_a_bundle_that_loads(bundle: Path, tmp_path: Path) -> None:
    train = data(tmp_path / "train.npz")
    words = [sys.executable, "-m", "splitload.deploy.personalize", str(bundle), "--data", str(train), "--epochs", "3"]
    start = time.perf_counter()
    subprocess.run(words, check=True, capture_output=True)
    whole_s = time.perf_counter() - start
    rng = random.Random(0)  # noqa: S311 - not for secrets
    files, seen = frozen(bundle), {1: answer(bundle)}
    for _ in range(KILLS):
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.1) * whole_s)
        running.send_signal(signal.SIGKILL)
        running.wait()
        version, output = current_version(bundle, "default"), answer(bundle)
        assert version >= max(seen), "what was made current stays so"
        if version in seen:
            np.testing.assert_array_equal(output, seen[version])
        seen[version] = output
        assert frozen(bundle) == files
    subprocess.run(words, check=True, capture_output=True)
    assert not list(bundle.rglob(".new-*"))
    assert not list(bundle.rglob(".features-*"))

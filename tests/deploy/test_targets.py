"""Whole paths: models trained by the loss of their own outputs, whatever stands behind logits and what it is called."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitload import ParallelLoader
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.deploy.arguments import Settings
from splitload.deploy.personalize import personalize

pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
RATE_0 = Settings(learning_rate=0.0, epochs=1)
Node = tuple[str, str, str, dict[str, Any]]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))


def written(folder: Path, *ending: Node, units: int = 4, output: str = "out", feature: str = "r", x: str = "x") -> Path:
    """Write a body, a head, and what comes behind its logits."""
    rng = np.random.default_rng(0)
    sizes = {"body.weight": (8, 16), "head.weight": (16, units), "head.bias": (units,)}
    logits = "logits" if ending else output
    nodes = [
        helper.make_node("MatMul", [x, "body.weight"], ["a"], name="body", doc_string="/home/someone/model.py"),
        helper.make_node("Relu", ["a"], [feature]),
        helper.make_node("Gemm", [feature, "head.weight", "head.bias"], [logits], name="head"),
        *(helper.make_node(kind, inputs.split(), [out], **settings) for kind, inputs, out, settings in ending),
    ]
    for node in nodes:
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/someone/model.py", line 1')
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["n", 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["n", units])],
        [numpy_helper.from_array(rng.normal(0, 0.4, size).astype("f4"), name) for name, size in sizes.items()],
    )
    path = folder / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def trained(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, dict[str, Any]]:
    bundle = path.with_suffix(".splitload")
    capsys.readouterr()
    words = ["train", str(path), "--device", "s20", "--trainable", "head", "-o", str(bundle)]
    assert main([*words, "--json"]) == 0
    return bundle, json.loads(capsys.readouterr().out)["trained"]


def original(path: Path, x: Any) -> Any:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def test_probabilities_are_trained_by_their_own_loss(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, ("Softmax", "logits", "p", {}), ("Identity", "p", "out", {}))
    bundle, told = trained(path, capsys)
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((40, 8)).astype("f4"), rng.integers(0, 4, 40)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    expected = float(-np.log(original(path, x)[np.arange(40), y]).mean())
    assert personalize(bundle, tmp_path / "d.npz", settings=RATE_0).before.loss_after == pytest.approx(
        expected, rel=1e-5
    )
    training = read_manifest(bundle).training
    assert training is not None
    assert (training.output_kind, training.output_doubt) == ("probabilities", None)
    assert told == {
        "layers": [{"name": "head", "weights": ["head.weight", "head.bias"], "num_weights": 68}],
        "num_weights": 68,
        "output": "out",
        "output_kind": "probabilities",
        "output_doubt": None,
        "steps": [[step.loss, step.optimizer] for step in training.steps],
    }
    for step in training.steps:
        content = (bundle / step.file.name).read_bytes()
        assert b"someone" not in content
        assert str(tmp_path).encode() not in content


@pytest.mark.parametrize("ending", [(), (("Sigmoid", "logits", "out", {}),)], ids=["logit", "probability"])
def test_one_unit_learns_two_classes(
    ending: tuple[Node, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, *ending, units=1)
    bundle, told = trained(path, capsys)
    assert told["output_kind"] == ("probabilities" if ending else "logits")
    assert ["binary-cross-entropy", "adam"] in told["steps"]
    x = np.random.default_rng(1).standard_normal((80, 8)).astype("f4")
    y = (x[:, 0] > 0).astype(int)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    file = tmp_path / "d.npz"
    result = personalize(bundle, file, file, settings=Settings(learning_rate=0.1, epochs=30))
    chance = original(path, x)[:, 0].astype("f8")
    chance = chance if ending else 1 / (1 + np.exp(-chance))
    assert result.before.valid_loss == pytest.approx(-np.log(np.where(y, chance, 1 - chance)).mean(), rel=1e-5)
    assert result.before.valid_accuracy == pytest.approx(((chance > 0.5) == y).mean())
    assert result.best.valid_accuracy is not None
    assert (result.before.valid_accuracy or 1) < 0.5 < 0.8 < result.best.valid_accuracy
    with ParallelLoader(bundle) as model:
        outputs = model.run(None, {"x": x})[0][:, 0]
    assert ((outputs > (0.5 if ending else 0)) == y).mean() == pytest.approx(result.best.valid_accuracy)


def as_version_1(bundle: Path, **kept: Any) -> None:
    """Have a bundle say no more of its output than version 1 did, which had no step for one unit."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    training = {key: manifest["training"][key] for key in ("features", "output", "weights")}
    manifest = manifest | {"version": 1, "training": {**training, "steps": [], **kept}}
    manifest.pop("sha256", None)
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize("ending", [(), (("Sigmoid", "logits", "out", {}),)], ids=["logit", "probability"])
def test_what_version_1_does_not_say_of_one_unit_is_told_by_the_graph(
    ending: tuple[Node, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, *ending, units=1)
    bundle, _ = trained(path, capsys)
    as_version_1(bundle)
    x = np.random.default_rng(1).standard_normal((80, 8)).astype("f4")
    y = (x[:, 0] > 0).astype(int)
    np.savez(tmp_path / "d.npz", x=x, y=y)
    words = ["--data", str(tmp_path / "d.npz"), "--valid", str(tmp_path / "d.npz"), "--epochs", "1", "--json"]
    assert main(["finetune", str(bundle), *words]) == 0
    before = json.loads(capsys.readouterr().out)["before"]
    chance = original(path, x)[:, 0].astype("f8")
    chance = chance if ending else 1 / (1 + np.exp(-chance))
    assert before["valid_accuracy"] == pytest.approx(((chance > 0.5) == y).mean())
    assert before["valid_loss"] == pytest.approx(-np.log(np.where(y, chance, 1 - chance)).mean(), rel=1e-5)


def test_what_nothing_tells_of_one_unit_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, _ = trained(written(tmp_path, ("HardSigmoid", "logits", "out", {}), units=1), capsys)
    steps = json.loads((bundle / "manifest.json").read_text())["training"]["steps"]
    as_version_1(bundle)
    x = np.random.default_rng(1).standard_normal((80, 8)).astype("f4")
    np.savez(tmp_path / "d.npz", x=x, y=(x[:, 0] > 0).astype(int))
    assert main(["finetune", str(bundle), "--data", str(tmp_path / "d.npz")]) == 1
    assert "whether its output 'out' holds logits or probabilities" in capsys.readouterr().err
    as_version_1(bundle, steps=[step for step in steps if step["loss"] == "binary-cross-entropy"])
    assert main(["finetune", str(bundle), "--data", str(tmp_path / "d.npz")]) == 1
    assert "has a step of binary-cross-entropy, and no output_kind" in capsys.readouterr().err


def test_a_doubt_is_told_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, ("Sigmoid", "logits", "out", {}))
    bundle = tmp_path / "m.splitload"
    assert main(["train", str(path), "--device", "s20", "--trainable", "1", "-o", str(bundle)]) == 0
    printed = capsys.readouterr()
    text = " ".join(printed.out.split())
    assert "to be trained on the device: 68 weights in head (68)" in text
    assert "a loss of classes takes the output 'out' as logits" in text
    doubt = "'out' is taken as logits: in 4 samples all lie between 0 and 1, but do not add up to 1"
    assert doubt in " ".join(printed.err.split())
    training = read_manifest(bundle).training
    assert training is not None
    assert training.output_doubt == doubt
    assert main(["inspect", str(bundle)]) == 0
    shown = capsys.readouterr()
    assert "trained on the device: the output 'out'; a loss of classes takes it as logits" in shown.out
    assert doubt in " ".join(shown.err.split())
    assert main(["inspect", str(bundle), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["training"]
    assert (told["output_kind"], told["output_doubt"]) == ("logits", doubt)


def test_a_bundle_of_version_1_does_not_say_what_its_output_is(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Path(__file__).with_name("golden") / "v1-trainable.splitload"
    assert main(["inspect", str(bundle)]) == 0
    assert "trained on the device: the output 'logits'\n" in capsys.readouterr().out
    assert main(["inspect", str(bundle), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["training"]
    assert (told["output"], told["output_kind"], told["output_doubt"]) == ("logits", None, None)


NAMES = (
    "target",
    "loss",
    "step",
    "learning_rate",
    "momentum",
    "weight_decay",
    "new/head.weight",
    "momentum/head.weight",
)


@pytest.mark.parametrize("place", range(0, len(NAMES), 2))
def test_values_may_be_called_as_a_training_step_calls_its_own(
    place: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, output=NAMES[place], feature=NAMES[place + 1], x="y")
    bundle, told = trained(path, capsys)
    assert len(told["steps"]) == 4
    x = np.random.default_rng(1).standard_normal((20, 8)).astype("f4")
    np.savez(tmp_path / "d.npz", y=x, c=(x[:, 0] > 0).astype(int))
    words = ["finetune", str(bundle), "--data", str(tmp_path / "d.npz"), "--epochs", "2", "--json"]
    assert main(words) == 2
    assert "--labels NAME" in capsys.readouterr().err
    assert main([*words, "--labels", "c", "--optimizer", "sgd", "--lr", "0.05"]) == 0
    assert json.loads(capsys.readouterr().out)["improved"] is True


def test_names_that_begin_as_ours_do_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle, told = trained(written(tmp_path, feature="splitload/target"), capsys)
    assert (told["output"], told["steps"]) == ("out", []), "torch trains it"
    assert read_manifest(bundle).training is not None


def test_an_original_that_does_not_run_on_made_up_inputs_is_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Classes are known by the graph then, and that nothing was compared is told."""
    path = written(tmp_path, ("Softmax", "logits", "out", {}))
    model = onnx.load(path)
    picky = [helper.make_node("Gather", ["table", "i"], ["t"]), helper.make_node("Mul", ["r0", "t"], ["r"])]
    model.graph.node[1].output[0] = "r0"
    for place, node in enumerate(picky):
        model.graph.node.insert(2 + place, node)
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 16), "f4"), "table"))
    model.graph.input.append(helper.make_tensor_value_info("i", TensorProto.INT64, ["n"]))  # 1 is made up, 0 is legal
    onnx.save(model, path)
    _, told = trained(path, capsys)
    assert told["output_kind"] == "probabilities"
    assert told["output_doubt"].startswith("not compared with the unsplit model's outputs: the model does not run on")

"""A fresh last layer: what it replaces, what it leaves alone, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitload import ParallelLoader
from splitload.base.errors import ModelError, UsageError
from splitload.cli import main
from splitload.frontends.onnx import Source
from splitload.training.head import with_new_head

RNG = np.random.default_rng(0)
ENDS: dict[
    str, tuple[list[Any], dict[str, Any], list[int]]
] = {  # nodes from "x" of shape (2, 8, 4, 4), weights, output
    "Gemm": (
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["y"], transB=1),
        ],
        {"fc.weight": RNG.normal(size=(6, 8)), "fc.bias": RNG.normal(size=6)},
    ),
    "MatMul and Add": (
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("MatMul", ["f", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["a"]),
            helper.make_node("Softmax", ["a"], ["y"]),
        ],
        {"w": RNG.normal(size=(8, 6)), "b": RNG.normal(size=6)},
    ),
    "a bias that is a Constant, and one behind an Identity": (
        [
            helper.make_node("GlobalAveragePool", ["x"], ["p"]),
            helper.make_node("Flatten", ["p"], ["f"]),
            helper.make_node("Constant", [], ["b"], value=numpy_helper.from_array(np.ones(6, "f4"))),
            helper.make_node("Identity", ["b"], ["same"]),
            helper.make_node("Gemm", ["f", "fc.weight", "same"], ["y"]),
        ],
        {"fc.weight": RNG.normal(size=(8, 6))},
    ),
    "Conv and Add": (
        [
            helper.make_node("Conv", ["x", "head.weight"], ["c"]),
            helper.make_node("Add", ["c", "b"], ["a"]),
            helper.make_node("GlobalAveragePool", ["a"], ["p"]),
            helper.make_node("Flatten", ["p"], ["y"]),
        ],
        {"head.weight": RNG.normal(size=(6, 8, 1, 1)), "b": RNG.normal(size=(6, 1, 1))},
    ),
    "Conv and Reshape": (
        [
            helper.make_node("Conv", ["x", "head.weight", "head.bias"], ["c"]),
            helper.make_node("GlobalAveragePool", ["c"], ["p"]),
            helper.make_node("Reshape", ["p", "sizes"], ["y"]),
        ],
        {"head.weight": RNG.normal(size=(6, 8, 1, 1)), "head.bias": RNG.normal(size=6), "sizes": np.array([-1, 6])},
    ),
}


def model(path: Path, nodes: list[Any], weights: dict[str, Any], shape: tuple[int, ...] = (2, 6)) -> Source:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["image", "body.weight"], ["x"], name="body"), *nodes],
        "g",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [shape[0], 3, 4, 4])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(value if value.dtype.kind == "i" else value.astype("f4"), key)
            for key, value in {"body.weight": RNG.normal(size=(8, 3, 1, 1)), **weights}.items()
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save_model(made, str(path), save_as_external_data=True, location="weights.bin", size_threshold=128)
    return Source.open(path, "model")


@pytest.mark.parametrize("name", ENDS)
def test_the_last_layer_is_replaced_and_nothing_else(name: str, tmp_path: Path) -> None:
    source = model(tmp_path / "model.onnx", *ENDS[name])
    changed = with_new_head(source, 9, tmp_path / "cache")
    image = RNG.normal(size=(2, 3, 4, 4)).astype("f4")
    session = ort.InferenceSession(changed.path, providers=["CPUExecutionProvider"])
    assert session.get_outputs()[0].shape == [2, 9]
    (output,) = session.run(None, {"image": image})
    assert output.shape == (2, 9)
    assert np.ptp(output) > 0
    before, after = (onnx.load(str(each.path)) for each in (source, changed))
    old = {each.name: numpy_helper.to_array(each) for each in before.graph.initializer}
    new = {each.name: numpy_helper.to_array(each) for each in after.graph.initializer}
    np.testing.assert_array_equal(new["body.weight"], old["body.weight"])
    fresh = [key for key in new if ".new." in key]
    assert len(fresh) == 2
    assert all(0.1 < np.abs(new[key]).max() <= 8**-0.5 for key in fresh), "uniform within 1/sqrt(8)"
    assert with_new_head(source, 9, tmp_path / "cache").sha256 == changed.sha256


def test_weights_that_others_read_stay(tmp_path: Path) -> None:
    nodes, weights = ENDS["Gemm"]
    early = helper.make_node("Gemm", ["f", "fc.weight", "fc.bias"], ["early"], transB=1)
    last = helper.make_node("Gemm", ["early", "fc.weight", "none"], ["y"])
    source = model(tmp_path / "model.onnx", [*nodes[:2], early, last], {**weights, "none": np.zeros(8)}, (2, 8))
    changed = onnx.load(str(with_new_head(source, 3, tmp_path / "cache").path))
    assert {"fc.weight", "fc.new.weight"} <= {each.name for each in changed.graph.initializer}


@pytest.mark.parametrize("classes", [0, 1, 1 << 21])
def test_so_many_classes_cannot_be(classes: int, tmp_path: Path) -> None:
    source = model(tmp_path / "model.onnx", *ENDS["Gemm"])
    with pytest.raises(UsageError, match=f"takes 2 to 1048576 classes, not {classes}"):
        with_new_head(source, classes, tmp_path / "cache")


def test_weights_behind_the_last_layer_are_refused(tmp_path: Path) -> None:
    nodes, weights = ENDS["Gemm"]
    scaled = helper.make_node("Mul", ["y", "scale"], ["z"])
    source = model(tmp_path / "model.onnx", [*nodes, scaled], {**weights, "scale": np.ones(6)})
    with pytest.raises(UsageError, match="Mul reads the weights 'scale', which are for the old classes"):
        with_new_head(source, 3, tmp_path / "cache")


def test_what_needs_the_old_number_of_classes_is_refused(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "head.weight"], ["y"]),
        helper.make_node("DepthToSpace", ["y"], ["z"], blocksize=2),
    ]
    source = model(tmp_path / "model.onnx", nodes, {"head.weight": np.ones((8, 8, 1, 1))}, (2, 2, 8, 8))
    with pytest.raises(ModelError, match="does not run with its new head"):
        with_new_head(source, 3, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "heads").iterdir())


def test_a_model_without_a_linear_layer_is_refused(tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="has no Gemm, MatMul or Conv with stored weights"):
        with_new_head(Source.open(tmp_path / "m.onnx", "m"), 3, tmp_path / "cache")


def test_a_new_head_is_what_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "model.onnx"
    model(path, *ENDS["Gemm"], (1, 6))
    bundle = tmp_path / "m.splitload"
    assert main(["train", str(path), "--device", "s20", "--new-head", "3", "-o", str(bundle)]) == 0
    capsys.readouterr()
    kinds = RNG.integers(0, 3, 60)
    images = RNG.normal(size=(60, 3, 4, 4)).astype("f4") + 3 * np.eye(3, dtype="f4")[kinds][:, :, None, None]
    np.savez(tmp_path / "train.npz", image=images, y=kinds)
    words = ["finetune", str(bundle), "--data", str(tmp_path / "train.npz"), "--epochs", "20", "--lr", "0.05", "--json"]
    assert main(words) == 0
    epochs = json.loads(capsys.readouterr().out)["epochs"]
    assert epochs[-1]["loss"] < 0.5 * epochs[0]["loss"]
    with ParallelLoader(bundle) as loaded:
        answers = [loaded.run(None, {"image": image[None]})[0].argmax() for image in images]
    assert np.mean(answers == kinds) > 0.9

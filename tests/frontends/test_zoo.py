"""The zoo: what it lists, that its files are what they say, and how it fails."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from splitload.base.errors import MissingPackageError, OutputError, UsageError
from splitload.frontends import mobilenet, zoo

BIG = ["densenet201", "resnet152", "inception_v3", "vgg19", "convnext_tiny", "distilbert", "lowlight"]


@pytest.fixture(scope="module")
def mobilenet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return zoo.path("mobilenet_v1", tmp_path_factory.mktemp("cache"))


def random_inputs(session: Any, seed: int) -> dict[str, Any]:
    """Random feeds for a zoo model; the mask of a text model is ones, then zeros, shorter for higher seeds."""
    rng = np.random.default_rng(seed)
    feeds: dict[str, Any] = {}
    for value in session.get_inputs():
        shape = [1 if isinstance(size, str) else size for size in value.shape]
        if value.name == "attention_mask":
            feeds[value.name] = (np.arange(shape[1]) < shape[1] - 10 * seed).astype(np.int64)[None]
        elif value.type == "tensor(int64)":
            feeds[value.name] = rng.integers(30_000, size=shape)
        else:
            feeds[value.name] = rng.normal(size=shape).astype(np.float32)
    return feeds


def assert_every_input_matters(file: Path) -> None:
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    feeds, others = random_inputs(session, 1), random_inputs(session, 2)
    (output,) = session.run(None, feeds)
    assert np.isfinite(output).all()
    assert output.std() > 0
    for name in feeds:
        (changed,) = session.run(None, {**feeds, name: others[name]})
        assert np.abs(changed - output).max() > 1e-2 * np.abs(output).max(), name


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_names_have_one_line_each() -> None:
    assert set(zoo.names()) == {"mobilenet_v1", "squeezenet1_1", *BIG}
    for text in zoo.names().values():
        assert text
        assert "\n" not in text


def test_import_is_light() -> None:
    heavy = {"torch", "torchvision", "transformers", "onnx", "onnxruntime"}
    code = f"import sys, splitload.frontends.zoo; print({heavy} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_unknown_name_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"zoo model 'mobilenet_v2'.*mobilenet_v1"):
        zoo.path("mobilenet_v2", tmp_path)


def test_mobilenet_is_the_published_network(mobilenet_file: Path) -> None:
    model = onnx.load(mobilenet_file)
    operators = [node.op_type for node in model.graph.node]
    counts = {kind: operators.count(kind) for kind in set(operators)}
    repeated = {"Conv": 27, "BatchNormalization": 27, "Relu": 27}
    assert counts == {**repeated, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1}
    assert model.graph.node[0].name == "conv1/conv"
    assert {"block3/depthwise/conv", "block13/pointwise/relu", "fc"} <= {node.name for node in model.graph.node}

    # The trained weights: convolutions, batch normalization's scale and bias, the last layer's weight and bias.
    # 4.2 million in the paper's table 8; the same count as Keras's MobileNet reports as trainable.
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    statistics = {name for name in sizes if name.endswith(("bn/mean", "bn/variance"))}
    assert sum(size for name, size in sizes.items() if name not in statistics) == 4_231_976
    assert sum(sizes[name] for name in statistics) == 21_888

    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    shapes = {
        v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info
    }
    assert shapes["block13/pointwise/relu/y"] == ["batch", 1024, 7, 7]


def test_mobilenet_answers(mobilenet_file: Path) -> None:
    assert_every_input_matters(mobilenet_file)


def test_mobilenet_batch_is_free(mobilenet_file: Path) -> None:
    session = ort.InferenceSession(mobilenet_file, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(3, 3, 224, 224)).astype(np.float32)
    (together,) = session.run(None, {"x": x})
    alone = np.concatenate([session.run(None, {"x": x[i : i + 1]})[0] for i in range(3)])
    assert together.shape == (3, 1000)
    np.testing.assert_allclose(together, alone, atol=1e-4 * np.abs(alone).max())


def test_mobilenet_keeps_activations_at_one_scale(mobilenet_file: Path) -> None:
    model = onnx.load(mobilenet_file)
    normalized = [node.output[0] for node in model.graph.node if node.op_type == "BatchNormalization"]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in normalized)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for name, value in zip(normalized, session.run(normalized, random_inputs(session, 1)), strict=True):
        assert abs(value.mean()) < 0.3, name
        assert 0.5 < value.std() < 1.5, name


def test_mobilenet_is_deterministic(mobilenet_file: Path, tmp_path: Path) -> None:
    assert sha256(zoo.path("mobilenet_v1", tmp_path)) == sha256(mobilenet_file)
    assert mobilenet.build(seed=1).SerializeToString() != mobilenet.build(seed=2).SerializeToString()


def test_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = zoo.path("mobilenet_v1", tmp_path)
    monkeypatch.setattr(mobilenet, "build", None)
    assert zoo.path("mobilenet_v1", tmp_path) == first


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["^C", "full disk"])
def test_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: BaseException) -> None:
    def write_half(file: Path, data: bytes) -> int:
        with file.open("wb") as out:
            out.write(data[: len(data) // 2])
        raise stop

    monkeypatch.setattr(Path, "write_bytes", write_half)
    with pytest.raises((KeyboardInterrupt, OutputError)) as caught:
        zoo.path("mobilenet_v1", tmp_path)
    if isinstance(stop, OSError):
        assert isinstance(caught.value, OutputError)
        assert "No space left on device" in str(caught.value)
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == []


def test_cache_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(OutputError, match=r"cannot write zoo:mobilenet_v1 to "):
        zoo.path("mobilenet_v1", tmp_path / "cache")


def test_missing_torch_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, "version", version)
    with pytest.raises(MissingPackageError, match=r"torch==2\.13\.0.*--no-deps torchvision==0\.28\.0"):
        zoo.path("squeezenet1_1", tmp_path)
    assert zoo.path("mobilenet_v1", tmp_path).exists()  # the default model needs none of it


def test_broken_torch_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"'torch'.*--no-deps torchvision==0\.28\.0"):
        zoo.path("lowlight", tmp_path)


def test_squeezenet(tmp_path: Path) -> None:
    for package in ("torch", "torchvision", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    file = zoo.path("squeezenet1_1", tmp_path)
    assert_every_input_matters(file)
    model = onnx.load(file)
    floats = [weight for weight in model.graph.initializer if weight.data_type == onnx.TensorProto.FLOAT]
    assert sum(int(np.prod(weight.dims)) for weight in floats) == 1_235_496  # as torchvision publishes
    assert [node.name for node in model.graph.node if b".py" in node.SerializeToString()] == []  # no local paths
    assert not (file.parent / "model.onnx.data").exists()


@pytest.mark.slow
def test_torch_models_are_deterministic(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    for name in ("squeezenet1_1", "lowlight"):
        assert sha256(zoo.path(name, tmp_path / "a")) == sha256(zoo.path(name, tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.parametrize("name", BIG)
def test_big_models(name: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    assert_every_input_matters(zoo.path(name, tmp_path))

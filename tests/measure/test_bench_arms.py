"""The arms of the benchmark: which apply, that their files are kept, and that they compute the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bench_tools import skip_without
from runtime_models import INPUTS, feeds

from splitload.base.errors import MissingPackageError, ModelError, UsageError
from splitload.bundle.manifest import TensorSpec
from splitload.frontends import deep, open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.measure import __main__ as child
from splitload.measure.arm_names import ARM_NAMES
from splitload.measure.arms import ARMS, Subject, make_arm
from splitload.measure.sampling import Arm, compare, outputs_of, run_arms

FACTORY = """
import torch

class Scaled(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 300)
        self.register_buffer("scale", torch.arange(8.0), persistent=False)

    def forward(self, left, right):
        return {"sum": self.layer(left * self.scale), "right": right * 2}

def scaled():
    torch.manual_seed(1)
    return Scaled(), {"right": torch.ones(1, 4), "left": torch.randn(1, 8)}

def plain():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(8, 300), torch.nn.ReLU()).eval(), (torch.ones(2, 8),)
"""


def subject_of(path: Path, cache: Path, model: str | None = None, **more: Any) -> Subject:
    source = Source.open(path, path.stem)
    return Subject(model or str(path), source, load_graph(source, "native", cache), None, {}, cache, **more)


def test_environment_and_command_line_know_the_same_arms() -> None:
    assert tuple(ARMS) == ARM_NAMES == tuple(child.ARMS)


def test_arms_on_an_onnx_file(chain_model: Path, tmp_path: Path) -> None:
    subject = subject_of(chain_model, tmp_path)
    stock = outputs_of(make_arm("stock", subject), INPUTS, feeds())
    for name in ("tuned", "ort-format"):
        arm = make_arm(name, subject)
        assert arm.all_files()
        assert compare(name, stock, outputs_of(arm, INPUTS, feeds())) < 1e-5
    assert {file.name for file in make_arm("tuned", subject).all_files()} == {"model.onnx", "model.bin"}
    before = make_arm("ort-format", subject).path.stat()
    assert make_arm("ort-format", subject).path.stat().st_mtime_ns == before.st_mtime_ns  # kept


@pytest.mark.parametrize("name", ["torch", "torch-mmap", "ncnn"])
def test_arms_that_need_a_module(chain_model: Path, tmp_path: Path, name: str) -> None:
    subject = subject_of(chain_model, tmp_path)
    with pytest.raises(UsageError, match=r"an \.onnx file is no torch module"):
        make_arm(name, subject)
    with pytest.raises(UsageError, match="zoo:mobilenet_v1 is no torch module"):
        make_arm(name, subject_of(chain_model, tmp_path, "zoo:mobilenet_v1"))


@pytest.mark.parametrize("name", ["torch", "torch-mmap", "openvino", "ncnn"])
def test_arms_on_a_synthetic_graph(chain_model: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="within onnxruntime only"):
        make_arm(name, subject_of(chain_model, tmp_path, synthetic=True))


@pytest.mark.parametrize("name", ["torch", "torch-mmap", "openvino", "ncnn"])
def test_arms_whose_packages_are_missing(
    chain_model: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = subject_of(chain_model, tmp_path, "some.module:factory")
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(MissingPackageError, match=r"^needs the package '\w+'\. Install it: pip install "):
        make_arm(name, subject)


@pytest.fixture(scope="module")
def torch_subject(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """A module of `FACTORY`, exported, in its folder."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("factory")
    (folder / f"factory_{request.param}.py").write_text(FACTORY)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        word = f"factory_{request.param}:{request.param}"
        source = open_source(word, folder / "cache")
        yield Subject(word, source, load_graph(source, "native", folder / "cache"), None, {}, folder / "cache")


@pytest.mark.parametrize(
    ("torch_subject", "name"),
    [
        ("scaled", "torch"),
        pytest.param("scaled", "torch-mmap", marks=pytest.mark.slow),
        ("plain", "openvino"),
        ("plain", "ncnn"),
    ],
    indirect=["torch_subject"],
)
def test_engines_compute_what_the_module_does(torch_subject: Subject, name: str) -> None:
    skip_without(name)
    inputs = torch_subject.graph.input_tensors()
    stock = outputs_of(make_arm("stock", torch_subject), inputs, {})
    arm = make_arm(name, torch_subject)
    assert compare(name, stock, outputs_of(arm, inputs, {})) < 1e-2
    assert arm.all_files()
    if name == "openvino":  # a sample fails where the model does not come from the model cache
        (row,) = run_arms([arm], inputs, {}, 1)[name]
        assert row["process_s"] >= row["ttfo_s"]


def test_a_model_that_cannot_be_converted(chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_factory.py").write_text("def factory():\n    raise OSError('no\\nweights')")
    with pytest.raises(ModelError, match=r"^the model cannot be converted: OSError: no weights$"):
        make_arm("torch", subject_of(chain_model, tmp_path, "broken_factory:factory"))
    assert not list((tmp_path / "bench").iterdir())


@pytest.mark.parametrize("num_nodes", [1, 2, 7])
def test_the_deep_graph_computes_a_chain(num_nodes: int) -> None:
    import onnx
    import onnxruntime as ort
    from onnx import numpy_helper

    model = deep.build(num_nodes)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == (["MatMul", "Add"] * 4)[:num_nodes]
    x = y = np.arange(16, dtype=np.float32)[None]
    for number, weight in enumerate(map(numpy_helper.to_array, model.graph.initializer)):
        y = y + weight if number % 2 else y @ weight
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(session.run(None, {"x": x})[0], y, rtol=1e-4)


def test_the_deep_graph_is_cached(tmp_path: Path) -> None:
    path = deep.path(3000, tmp_path)
    before = path.stat().st_mtime_ns
    assert deep.path(3000, tmp_path) == path
    assert path.stat().st_mtime_ns == before
    assert path.read_bytes() == deep.build(3000).SerializeToString(deterministic=True)
    (output,) = outputs_of(Arm("stock", path), [TensorSpec("x", "tensor(float)", (1, 16))], {})
    assert np.isfinite(output).all()
    assert 0.1 < np.abs(output).max() < 100

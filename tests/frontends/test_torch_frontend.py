"""Exporting `package.module:factory`: what works, and one test per way to be wrong."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from splitload.base.errors import MissingPackageError, ModelError, OutputError, UsageError
from splitload.frontends.torch import export, export_module, written_beside
from splitload.frontends.torch_packages import declare_torchvision_ops

FACTORIES = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
        self.dropout = torch.nn.Dropout()

    def forward(self, left, right):
        return self.dropout(self.layer(left)), left * right

def by_position():
    return Net(), (torch.ones(1, 4), torch.ones(1, 4))

def by_name():
    return Net(), {"right": torch.ones(1, 4), "left": torch.ones(1, 4)}

def open_sizes():
    return Net(), {"left": torch.ones(2, 4), "right": torch.ones(2, 4)}, {"left": {0: "n"}, "right": {0: "n"}}

def no_module():
    return "net", (torch.ones(1),)

def no_pair():
    return Net()

def no_tuple():
    return Net(), torch.ones(1, 4)

def no_tensors():
    return Net(), (1, 2)

def fails():
    raise RuntimeError("out of weights")

def fails_at_length():
    raise RuntimeError("\\x1b[31mfirst\\x1b[0m\\nsecond")

def exits():
    raise SystemExit(5)

def wrong_shape():
    return Net(), (torch.ones(1, 5), torch.ones(1, 5))

number = 3
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder that holds a module of factories and two that do not import."""
    pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    (tmp_path / "own_factories.py").write_text(FACTORIES)
    (tmp_path / "own_broken.py").write_text("import no_such_package_at_all\n")
    (tmp_path / "own_raising.py").write_text("raise ValueError('not today')\n")
    monkeypatch.chdir(tmp_path)
    for name in ("own_factories", "own_broken", "own_raising"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.parametrize("factory", ["by_position", "by_name"])
def test_export_computes_the_same_in_evaluation_mode(folder: Path, factory: str) -> None:
    path_before = list(sys.path)
    examples = export(f"own_factories:{factory}", folder / "made" / "net.onnx")
    assert sys.path == path_before
    assert {name: value.tolist() for name, value in examples.items()} == {"left": [[1.0] * 4], "right": [[1.0] * 4]}

    session = ort.InferenceSession(folder / "made" / "net.onnx", providers=["CPUExecutionProvider"])
    assert {value.name for value in session.get_inputs()} == {"left", "right"}
    left, right = np.full((1, 4), 2, np.float32), np.full((1, 4), 3, np.float32)
    first, again = (session.run(None, {"left": left, "right": right}) for _ in range(2))
    np.testing.assert_array_equal(first[0], again[0])  # dropout is off
    np.testing.assert_array_equal(first[1], left * right)
    assert sorted(file.name for file in (folder / "made").iterdir()) == ["net.onnx", "net.onnx.data"]


def test_a_factory_may_leave_sizes_open(folder: Path) -> None:
    export("own_factories:open_sizes", folder / "net.onnx")
    session = ort.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    assert [value.shape for value in session.get_inputs()] == [["n", 4], ["n", 4]]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module:f", "no module 'no_such_module'"),
        ("own_factories.inner:f", "no module 'own_factories.inner'|own_factories.inner failed"),
        ("own_broken:f", "importing own_broken failed: No module named 'no_such_package_at_all'"),
        ("own_raising:f", "importing own_raising failed: ValueError: not today"),
        ("own_factories:nothing", "module 'own_factories' has no 'nothing'"),
        ("own_factories:number", "expected a function without arguments, got int"),
        ("own_factories:fails", "calling it failed: RuntimeError: out of weights"),
        ("own_factories:fails_at_length", "calling it failed: RuntimeError: first$"),
        ("own_factories:exits", "calling it failed: SystemExit: 5"),
        ("own_factories:no_pair", "expected a pair .*got Net"),
        ("own_factories:no_module", "expected a pair .*the first is str"),
        ("own_factories:no_tuple", "expected a pair .*the second is Tensor$"),
        ("own_factories:no_tensors", "expected a pair .*the second is tuple with int, int"),
        ("own_factories:wrong_shape", "cannot be exported to ONNX: RuntimeError"),
    ],
)
def test_one_error_per_mistake(folder: Path, spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        export(spec, folder / "out.onnx")
    assert not (folder / "out.onnx").exists()


@pytest.mark.parametrize("spec", ["", "module", ":factory", "module:"])
def test_malformed_spec_is_a_usage_error(spec: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"package\.module:factory"):
        export(spec, tmp_path / "out.onnx")


def test_missing_torch_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"'torch'.*pip install torch==.*--no-deps torchvision=="):
        export("module:factory", tmp_path / "out.onnx")


def test_different_outputs_are_an_error(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")

    class Counter(torch.nn.Module):  # type: ignore[misc, name-defined]
        calls = 0

        def forward(self, x: object) -> object:
            Counter.calls += 1
            return x * Counter.calls  # type: ignore[operator]

    with pytest.raises(ModelError, match="counter was exported, but output 0 differs from torch's by"):
        export_module(Counter(), (torch.ones(2),), tmp_path / "out.onnx", name="counter")


def test_torchvision_can_be_imported_any_number_of_times() -> None:
    pytest.importorskip("torch")
    declare_torchvision_ops()
    declare_torchvision_ops()
    torchvision = pytest.importorskip("torchvision")
    assert torchvision.models.get_model("squeezenet1_1", weights=None)


def test_written_beside_moves_all_files(tmp_path: Path) -> None:
    out = tmp_path / "new" / "a.onnx"
    with written_beside(out) as file:
        file.write_text("graph")
        file.with_name("a.onnx.data").write_text("weights")
        assert not out.exists()
    assert sorted(p.name for p in out.parent.iterdir()) == ["a.onnx", "a.onnx.data"]


def test_written_beside_leaves_the_old_file_after_an_error(tmp_path: Path) -> None:
    out = tmp_path / "a.onnx"
    out.write_text("old")
    with pytest.raises(ZeroDivisionError), written_beside(out) as file:
        file.write_text("half")
        raise ZeroDivisionError
    assert out.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]


def test_written_beside_says_what_could_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot write .*a\.onnx"), written_beside(tmp_path / "file" / "a.onnx"):
        pass

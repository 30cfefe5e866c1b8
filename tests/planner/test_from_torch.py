"""`splitload.from_torch`: torch modules of many kinds become bundles that compute the same."""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import splitload
from splitload import ParallelLoader
from splitload.base.errors import ModelError, OutputError, UsageError
from splitload.frontends.torch import export_given
from splitload.frontends.torch_packages import quiet

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    return tmp_path / "cache"


class Counting(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Changes a buffer whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return self.layer(x)


class Shared(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Tied weights, a layer that is called twice, and buffers of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 8)
        self.second = torch.nn.Linear(8, 8)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.full((8,), 2.0))
        self.register_buffer("shift", torch.arange(8.0), persistent=False)

    def forward(self, x: Any) -> Any:
        return self.first(torch.relu(self.second(self.first(x) * self.scale) + self.shift))


def network() -> Any:
    layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, torch.nn.Dropout(), torch.nn.Linear(8 * 36, 5))


def test_a_bundle_with_open_sizes_computes_the_same(tmp_path: Path, cache: Path) -> None:
    module = network().train()
    example = (torch.randn(2, 3, 8, 8),)
    bundle = splitload.from_torch(
        module,
        example,
        tmp_path / "net.splitload",
        device="s20",
        dynamic_shapes=({0: "batch"},),
        trainable=1,
        max_stages=2,
    )
    assert module.training
    assert module[4].training
    assert not list((cache / "exports").iterdir()), "what was exported is in the bundle"
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert manifest["inputs"][0]["shape"] == ["batch", 3, 8, 8]
    assert manifest["model"] == "Sequential"
    assert [stage["trainable"] for stage in manifest["variants"][0]["stages"]] == [False, True]
    module.eval()
    with ParallelLoader(bundle) as loaded, torch.no_grad():
        for samples in (1, 2, 5):
            x = torch.randn(samples, 3, 8, 8)
            (output,) = loaded.run(None, {"input": x.numpy()})
            np.testing.assert_allclose(output, module(x).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_narrow_types(dtype: str, tmp_path: Path) -> None:
    kind = getattr(torch, dtype)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)).to(kind)
    x = torch.randn(1, 8).to(kind)
    bundle = splitload.from_torch(module, (x,), tmp_path / "net.splitload", device="s20", max_stages=2)
    assert all(weight.dtype == kind for weight in module.parameters()), "the module stays as it is"
    with ParallelLoader(bundle) as loaded, torch.no_grad():
        given = x.float().numpy() if dtype == "bfloat16" else x.numpy()
        (output,) = loaded.run(None, {"input": given})
        np.testing.assert_allclose(output, module(x).float().numpy(), rtol=0, atol=2e-2)


def test_tied_weights_shared_layers_and_buffers(tmp_path: Path) -> None:
    module = Shared().eval()
    bundle = splitload.from_torch(module, {"x": torch.randn(1, 8)}, tmp_path / "net.splitload", device="s20")
    x = torch.randn(1, 8)
    with ParallelLoader(bundle) as loaded, torch.no_grad():
        np.testing.assert_allclose(loaded.run(None, {"x": x.numpy()})[0], module(x).numpy(), rtol=0, atol=1e-4)


def test_buffers_stay_as_they_are(tmp_path: Path) -> None:
    module = Counting()
    export_given(module, (torch.randn(1, 8),), tmp_path / "x.onnx", name="counting")
    assert module.calls == 0


@pytest.mark.filterwarnings("ignore")  # torch's own, of quantization that it will drop
def test_quantised_layers_are_refused_by_name(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.ReLU(), torch.nn.Sequential(torch.nn.Linear(8, 8)))
    made = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear})
    with pytest.raises(ModelError, match=r"its module '1\.0' is quantised, .*\(torch\.ao\.nn\.quantized"):
        splitload.from_torch(made, (torch.randn(1, 8),), tmp_path / "net.splitload", device="s20")
    assert not (tmp_path / "net.splitload").exists()


def test_a_size_that_is_not_really_open_is_an_error(tmp_path: Path) -> None:
    class Odd(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            return x + (1 if torch.compiler.is_exporting() else x.shape[0] // 2)  # as in the example, and never else

    with pytest.raises(ModelError, match=r"with open sizes one longer than the example's.* differs from torch's"):
        export_given(Odd(), (torch.randn(3, 4),), tmp_path / "x.onnx", name="odd", dynamic_shapes=({0: "n"},))
    assert not list(tmp_path.glob("x.onnx*"))


BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "device": ({"device": "nope"}, UsageError, "unknown device 'nope'"),
    "trainable": ({"trainable": "zz"}, UsageError, "matches no layer with weights; the last ones are: 0, 5"),
    "seed": ({"seed": -1}, UsageError, "--seed: it must be a whole number"),
    "objective": ({"objective": "x"}, UsageError, "unknown objective 'x'"),
    "example": ({"example_inputs": torch.ones(1, 3, 8, 8)}, ModelError, "but the second is Tensor"),
    "shape": ({"example_inputs": (torch.ones(1, 4, 8, 8),)}, ModelError, "cannot be exported to ONNX: RuntimeError"),
    "sizes": ({"dynamic_shapes": ({0: "n"}, {0: "m"})}, ModelError, "Detected mismatch between the structure"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name: str, tmp_path: Path) -> None:
    changes, kind, message = BAD[name]
    arguments: dict[str, Any] = {"example_inputs": (torch.randn(2, 3, 8, 8),), "device": "s20", **changes}
    with pytest.raises(kind, match=message):
        splitload.from_torch(network(), bundle=tmp_path / "net.splitload", **arguments)
    assert not (tmp_path / "net.splitload").exists()


def test_what_is_no_bundle_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        splitload.from_torch(network(), (torch.randn(1, 3, 8, 8),), tmp_path / "notes.txt", device="s20")
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("bundle", [None, b"b.splitload", 3])
def test_what_is_no_path_is_no_bundle(bundle: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TypeError):
        splitload.from_torch(torch.nn.Linear(4, 4), (torch.rand(1, 4),), bundle, device="s20")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_that_the_exporter_turns_into_another_error_stays_one(tmp_path: Path) -> None:
    class Interrupted(torch.nn.Module):  # type: ignore[misc, name-defined]
        def forward(self, x: Any) -> Any:
            try:
                raise KeyboardInterrupt
            except BaseException:
                raise AttributeError("partially initialised module") from None

    with pytest.raises(KeyboardInterrupt):
        splitload.from_torch(Interrupted(), (torch.rand(1, 4),), tmp_path / "b.splitload", device="s20")


def test_threads_that_keep_torch_quiet_take_turns_and_leave_the_streams(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    inside, most = [], []

    def work() -> None:
        for _ in range(20):
            with quiet(), quiet():
                inside.append(1)
                most.append(len(inside))
                sys.stdout.write("unheard")
                time.sleep(0.001)
                inside.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sys.stdout, sys.stderr) == before
    assert max(most) == 1
    assert capsys.readouterr().out == ""

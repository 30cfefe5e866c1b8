"""Last stages that torch alone can train: `splitload finetune` falls back to it, the script of the device says so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import splitload
from splitload import ParallelLoader
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.deploy import personalize as script

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
SAMPLES = 48


class Recurrent(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.body = torch.nn.Linear(6, 6)
        self.rnn = kind(6, 5, batch_first=True, bidirectional=True)
        self.fc = torch.nn.Linear(10, 3)

    def forward(self, x: Any) -> Any:
        hidden, _ = self.rnn(torch.relu(self.body(x)))
        return self.fc(hidden[:, -1])


def build(folder: Path, kind: Any) -> tuple[Any, Path]:
    torch.manual_seed(0)
    module = Recurrent(kind)
    example = (torch.randn(1, 7, 6),)
    return module, splitload.from_torch(module, example, folder / "net.splitload", device="s20", trainable="rnn|fc")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(SAMPLES, 7, 6)).astype("f4")
    np.savez(tmp_path / "train.npz", x=x, y=(x[:, :, 0].sum(1) > 0).astype(int))
    return tmp_path / "train.npz"


@pytest.mark.parametrize("kind", [pytest.param(torch.nn.LSTM, marks=pytest.mark.slow), torch.nn.GRU])
def test_torch_trains_what_has_no_step(
    kind: Any, tmp_path: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module, bundle = build(tmp_path, kind)
    training = read_manifest(bundle).training
    assert training is not None
    assert training.steps == ()
    capsys.readouterr()
    words = [str(bundle), "--data", str(data), "--epochs", "4", "--batch-size", str(SAMPLES), "--lr", "0.01"]
    assert main(["finetune", *words, "--json"]) == 0
    printed = capsys.readouterr()
    assert "no training step for cross-entropy with adam: torch trains it" in printed.err
    losses = [epoch["loss"] for epoch in json.loads(printed.out)["epochs"]]

    arrays = np.load(data)
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    module.body.requires_grad_(False)
    optimizer = torch.optim.Adam([*module.rnn.parameters(), *module.fc.parameters()], lr=0.01)
    expected = []
    for _ in range(4):
        loss = torch.nn.functional.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected.append(float(loss.detach()))
    np.testing.assert_allclose(losses, expected, rtol=1e-3)
    with ParallelLoader(bundle) as loaded, torch.no_grad():
        answers = np.concatenate([loaded.run(None, {"x": each[None]})[0] for each in arrays["x"][:4]])
        np.testing.assert_allclose(answers, module(x[:4]).numpy(), rtol=0, atol=5e-3)

    assert script.main(words) == 2, "the script of a device trains by steps alone"
    assert "'splitload finetune' trains without one where torch is installed" in capsys.readouterr().err


class Flip(torch.nn.Module):  # type: ignore[misc, name-defined]
    def forward(self, x: Any) -> Any:
        return torch.flip(x, [2])


class Image(torch.nn.Module):  # type: ignore[misc, name-defined]
    def __init__(self, middle: Any, size: int) -> None:
        super().__init__()
        self.body, self.head = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 2, 3, padding=1)
        self.middle, self.fc = middle, torch.nn.Linear(size, 3)

    def forward(self, x: Any) -> Any:
        return self.fc(self.middle(torch.relu(self.head(torch.relu(self.body(x))))).flatten(1))


@pytest.mark.parametrize(
    ("middle", "size", "operator"),
    [
        (torch.nn.AvgPool2d(3, 2, ceil_mode=True), 18, "AveragePool"),
        (torch.nn.ConvTranspose2d(2, 2, 3, 2, 1, output_padding=1), 288, "ConvTranspose"),
        (Flip(), 72, "Slice"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, torch.nn.Module) else str(each),
)
def test_an_operator_without_a_gradient_is_named_and_torch_trains_it(
    middle: Any,
    size: int,
    operator: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    torch.manual_seed(0)
    example = (torch.randn(1, 1, 6, 6),)
    bundle = splitload.from_torch(
        Image(middle, size).eval(), example, tmp_path / "net.splitload", device="s20", trainable="head|middle|fc"
    )
    note = " ".join(record.getMessage() for record in caplog.records if record.name == "splitload")
    assert "the last stage can only be trained where torch is installed" in note
    assert operator in note
    x = np.random.default_rng(0).normal(size=(12, 1, 6, 6)).astype("f4")
    np.savez(tmp_path / "d.npz", x=x, y=(x.mean((1, 2, 3)) > 0).astype(int))
    assert main(["finetune", str(bundle), "--data", str(tmp_path / "d.npz"), "--epochs", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["improved"] is True

"""Models that were exported for one sample are trained on many: how torch writes attention and means over images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import splitload
from splitload.bundle.read import read_manifest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")


class Attention(torch.nn.Module):  # type: ignore[misc, name-defined]
    """Attention of two heads, with a bias for keys that has no effect, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Linear(4, 8)
        self.query, self.key, self.value = (torch.nn.Linear(8, 8) for _ in range(3))
        self.norm = torch.nn.LayerNorm(8)
        self.fc = torch.nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        x = torch.relu(self.embed(x))
        parts = [each(x).unflatten(2, (2, 4)).transpose(1, 2) for each in (self.query, self.key, self.value)]
        mixed = torch.nn.functional.scaled_dot_product_attention(*parts)
        return self.fc(self.norm(x + mixed.transpose(1, 2).flatten(2))[:, 0])


class Image(torch.nn.Module):  # type: ignore[misc, name-defined]
    """A mean over an image, which the exporter writes with as_strided, between a convolution and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Conv2d(3, 8, 3)
        self.last = torch.nn.Conv2d(8, 8, 3)
        self.norm = torch.nn.LayerNorm(8)
        self.fc = torch.nn.Linear(8, 3)

    def forward(self, x: Any) -> Any:
        x = torch.nn.functional.adaptive_avg_pool2d(self.last(torch.relu(self.body(x))), 1)
        return self.fc(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2).flatten(1))


@pytest.mark.parametrize(
    ("kind", "shape", "trainable"),
    [(Attention, (1, 5, 4), "query|key|value|norm|fc"), (Image, (1, 3, 8, 8), "last|norm|fc")],
)
def test_every_step_can_be_exported(
    kind: Any, shape: tuple[int, ...], trainable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    torch.manual_seed(0)
    bundle = splitload.from_torch(
        kind(), (torch.randn(shape),), tmp_path / "net.splitload", device="s20", trainable=trainable
    )
    training = read_manifest(bundle).training
    assert training is not None
    assert {(step.loss, step.optimizer) for step in training.steps} == {
        (loss, optimizer) for loss in ("cross-entropy", "mse") for optimizer in ("sgd", "adam")
    }

"""The torch side of the study of digits: a small network, its pretraining, and its last layers tuned in PyTorch."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

SIZE = 32  # pixels on a side
CLASSES = 10
_CHANNELS = (1, 16, 32, 64)
_HIDDEN = 64
Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Images and what they show.

    Attributes:
        x: Float32 of shape `(samples, 1, SIZE, SIZE)`.
        y: Classes, int64 of shape `(samples,)`.
    """

    x: Array
    y: Array


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the last layers are trained: with Adam, by cross-entropy, keeping the epoch with the least validation loss.

    Attributes:
        epochs: Times that all samples are gone through, at most.
        batch_size: Samples of a step.
        learning_rate: Of Adam.
        patience: Epochs without a smaller validation loss after which training ends.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    patience: int


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it.

    Attributes:
        predicted: The class of each test sample.
        best: The epoch that was kept, from 1.
        losses: Mean training loss of each epoch, each sample before its step.
        valid_losses: Validation loss after each epoch.
    """

    predicted: list[int]
    best: int
    losses: list[float]
    valid_losses: list[float]


def resized(images: Array) -> Array:
    """Return images of shape `(samples, height, width)` as `Labelled.x`, interpolated linearly."""
    import torch
    from torch.nn import functional

    small = torch.from_numpy(images.astype(np.float32))[:, None]
    large: Array = functional.interpolate(small, size=(SIZE, SIZE), mode="bilinear", align_corners=False).numpy()
    return large


def build() -> torch.nn.Module:
    """Return the network, weights drawn from torch's global generator: three convolutions and two linear layers."""
    import torch
    from torch import nn

    class Digits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.conv2, self.conv3 = (
                nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(_CHANNELS)
            )
            self.bn1, self.bn2, self.bn3 = (nn.BatchNorm2d(each) for each in _CHANNELS[1:])
            self.pool = nn.MaxPool2d(2)
            self.fc1 = nn.Linear(_CHANNELS[-1] * (SIZE // 8) ** 2, _HIDDEN)
            self.fc2 = nn.Linear(_HIDDEN, CLASSES)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            x = self.pool(torch.relu(self.bn1(self.conv1(image))))
            x = self.pool(torch.relu(self.bn2(self.conv2(x))))
            x = self.pool(torch.relu(self.bn3(self.conv3(x))))
            logits: torch.Tensor = self.fc2(torch.relu(self.fc1(x.flatten(1))))
            return logits

    return Digits()


def example() -> dict[str, torch.Tensor]:
    """Return the inputs that the network is exported with: one image."""
    import torch

    return {"image": torch.zeros(1, 1, SIZE, SIZE)}


def pretrained(data: Labelled, *, epochs: int, batch_size: int, learning_rate: float, seed: int) -> torch.nn.Module:
    """Return the network with all layers trained on the data, in evaluation mode."""
    import torch
    from torch.nn import functional

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().train()
        optimizer = torch.optim.Adam(module.parameters(), lr=learning_rate)
        x, y = torch.from_numpy(data.x), torch.from_numpy(data.y)
        for _ in range(epochs):
            order = torch.randperm(len(y))
            for start in range(0, len(y), batch_size):
                rows = order[start : start + batch_size]
                optimizer.zero_grad()
                loss: Any = functional.cross_entropy(module(x[rows]), y[rows])
                loss.backward()
                optimizer.step()
    return module.eval()


def predicted(module: torch.nn.Module, x: Array) -> list[int]:
    """Return the class that a network sees in each image."""
    import torch

    with torch.inference_mode():
        found: list[int] = module(torch.from_numpy(x)).argmax(-1).tolist()
    return found


def fine_tuned(
    module: torch.nn.Module,
    layers: str,
    train: Labelled,
    valid: Labelled,
    test: Array,
    tuning: Tuning,
    orders: Iterator[Array],
    *,
    fold: bool = False,
) -> Tuned:
    """Train some layers of a copy of a network, as one would in PyTorch; the others and all statistics are frozen.

    Args:
        module: The network.
        layers: A regular expression for whole words of the names of the layers that are trained.
        train: What is trained on.
        valid: What chooses the epoch.
        test: Images to classify in the end.
        tuning: How it is trained.
        orders: The order of the training samples in each epoch.
        fold: Whether the last normalization is folded into its convolution first, as exporters do: the convolution's
            weights are then those in a bundle.
    """
    import torch
    from torch.nn import functional

    module = copy.deepcopy(module).eval()
    if fold:
        module.conv3 = torch.nn.utils.fusion.fuse_conv_bn_eval(module.conv3, module.bn3)  # type: ignore[arg-type, type-var]
        module.bn3 = torch.nn.Identity()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(re.search(rf"(?<!\w)(?:{layers})(?!\w)", name) is not None)
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=tuning.learning_rate)
    x, y = torch.from_numpy(train.x), torch.from_numpy(train.y)
    losses: list[float] = []
    valid_losses: list[float] = []
    best, kept = 0, {}
    for epoch in range(1, tuning.epochs + 1):
        total = 0.0
        order = next(orders)
        for start in range(0, len(y), tuning.batch_size):
            rows = torch.from_numpy(order[start : start + tuning.batch_size])
            optimizer.zero_grad()
            loss: Any = functional.cross_entropy(module(x[rows]), y[rows])
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(y))
        with torch.inference_mode():
            valid_losses.append(
                functional.cross_entropy(module(torch.from_numpy(valid.x)), torch.from_numpy(valid.y)).item()
            )
        if valid_losses[-1] == min(valid_losses):
            best, kept = epoch, copy.deepcopy(module.state_dict())
        elif epoch - best >= tuning.patience:
            break
    module.load_state_dict(kept)
    return Tuned(predicted(module, test), best, losses, valid_losses)

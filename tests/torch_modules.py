"""Small torch modules, each with something that a loader may get wrong, and how to load them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import splitload.torch
from splitload.torch.reads import Watched


class Chain(nn.Module):
    """Four linear layers and a buffer; runs them in any order, or leaves some out."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        self.register_buffer("scale", torch.arange(8.0), persistent=False)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, order: tuple[int, ...] = (0, 1, 2, 3)) -> torch.Tensor:
        for index in order:
            x = self.dropout(torch.tanh(self.layers[index](x)))
        return x * self.scale if 3 in order else x


class Tied(nn.Module):
    """An embedding whose weights are the last layer's, and a module that stands in two places."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(16, 8)
        self.first = nn.Linear(8, 8)
        self.second = nn.Linear(8, 8)
        self.again = self.first
        self.head = nn.Linear(8, 16, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.again(self.second(self.first(self.embedding(x)))))


class Reader(nn.Module):
    """Reads tensors of modules that it never calls, or calls later, and has one that a run does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(64, 64)
        self.late = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.bias = nn.Parameter(torch.randn(8))
        self.table = nn.Embedding(3, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x @ self.late.weight + self.table.weight[1]
        x, _ = self.attention(x, x, x)
        return self.late(x) + self.bias


class Recurrent(nn.Module):
    """An LSTM keeps its weights in a list besides."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8)
        self.cell = nn.LSTM(8, 8, num_layers=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.cell(self.before(x))[0]


class Mirror(nn.Linear):
    """Keeps its tensors in a list besides, and reads them there."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name in ("weight", "bias"):
            vars(self).setdefault("kept", {})[name] = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, *vars(self)["kept"].values())


class Mixed(nn.Module):
    """Tensors of many types and odd sizes, a number among them and an empty one."""

    def __init__(self) -> None:
        super().__init__()
        self.in_half = nn.Parameter(torch.randn(3, dtype=torch.float16), requires_grad=False)
        self.in_brain = nn.Parameter(torch.randn(5, 3, dtype=torch.bfloat16))
        self.in_double = nn.Parameter(torch.randn(7, dtype=torch.float64))
        self.register_buffer("flags", torch.tensor([True, False, True]))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("empty", torch.empty(0, 4))
        self.register_buffer("wide", torch.arange(3.0).expand(2, 3))
        self.register_buffer("across", torch.arange(6, dtype=torch.int16).reshape(2, 3).t())
        self.register_buffer("none", None)
        self.register_parameter("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = (
            x * self.in_half * self.flags
            + (self.in_brain.sum(0) * self.count)
            + self.in_double.sum()
            + self.empty.sum()
        )
        return y + self.wide.sum() + self.across[1, 0]


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """Return a module without memory, in eval mode."""
    with torch.device("meta"):
        return build().eval()


def loaded(build: Callable[[], nn.Module], bundle: Path, **settings: Any) -> nn.Module:
    """Return a new module that is being loaded."""
    module = on_meta(build)
    assert splitload.torch.load(module, bundle, **settings) is module
    return module


class Gates:
    """Holds stages back until they are let through."""

    def __init__(self) -> None:
        self.events: dict[int, threading.Event] = {}

    def hold(self, *stages: int) -> None:
        self.events |= {stage: threading.Event() for stage in stages}

    def open(self, *stages: int) -> None:
        for stage in stages or tuple(self.events):
            self.events[stage].set()


def is_plain(module: nn.Module) -> bool:
    """Return whether nothing of splitload is left in a module."""
    held = [vars(each)[kind] for each in module.modules() for kind in ("_parameters", "_buffers")]
    hooks = [each._forward_pre_hooks for each in module.modules()]
    return not any(isinstance(each, Watched) for each in held) and not any(hooks)

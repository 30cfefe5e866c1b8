"""Operators as PyTorch calls them: of a module, of a model of the zoo, and of what is no module."""

from __future__ import annotations

import importlib.util

import pytest

torch = pytest.importorskip("torch")

from splitload.frontends.torch_calls import calls_of, count_calls  # noqa: E402


def test_each_call_is_an_operator_and_global_is_what_gives_one_place() -> None:
    class Small(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.drop, self.fc = torch.nn.Conv2d(3, 4, 3), torch.nn.Dropout(), torch.nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found = self.drop(torch.relu(self.conv(x)) + x.shape[0])
            return self.fc(torch.flatten(found.mean((2, 3), keepdim=True), 1))

    module = Small().train()
    found = count_calls(module, (torch.zeros(1, 3, 8, 8),))
    assert dict(found.local) == {"conv2d": 1, "relu": 1, "add": 1, "dropout": 1}
    assert dict(found.whole) == {"mean": 1, "flatten": 1, "linear": 1}
    assert module.training and module.drop.training, "the module stays as it was"


def test_models_of_the_zoo_that_are_modules_are_counted() -> None:
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    found = calls_of("zoo:squeezenet1_1")
    assert found is not None
    assert found.local["conv2d"] == 26 and found.local["cat"] == 8
    assert calls_of("zoo:mobilenet_v1") is None
    assert calls_of("some.onnx") is None

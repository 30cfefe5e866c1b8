"""A bundle of a torch module calls inputs and outputs as the module does, whatever the exporter makes of them."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from splitload.base.errors import ModelError  # noqa: E402
from splitload.frontends.torch import export_given  # noqa: E402
from splitload.frontends.torch_names import cache_hint, output_names  # noqa: E402

Pair = collections.namedtuple("Pair", "first second")


class Module(torch.nn.Module):
    """One that returns what a function makes of a layer and its inputs."""

    def __init__(self, returned: Any) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 4)
        self.returned = returned

    def forward(self, x: Any, mask: Any) -> Any:
        return self.returned(self.fc, x, mask)


@pytest.mark.parametrize(
    ("returned", "expected", "by_name"),
    [
        (lambda fc, x, mask: {"logits": fc(x) * mask, "both": (x + mask, x - mask)}, ["logits", "both.0", "both.1"], 0),
        (lambda fc, x, mask: {"mask": mask, "y": fc(x)}, ["mask_output", "y"], 1),
        (lambda fc, x, mask: Pair(fc(x), mask), ["first", "second"], 0),
    ],
    ids=["dict", "returned input", "named tuple"],
)
def test_names(returned: Any, expected: list[str], by_name: bool, tmp_path: Path) -> None:
    import onnxruntime as ort

    x, mask = torch.randn(2, 8), torch.ones(2, 1)
    example = {"x": x, "mask": mask} if by_name else (x, mask)
    examples = export_given(Module(returned), example, tmp_path / "m.onnx", name="m")
    session = ort.InferenceSession(tmp_path / "m.onnx")
    assert [value.name for value in session.get_outputs()] == expected
    assert list(examples) == [value.name for value in session.get_inputs()] == ["x", "mask"]


def test_what_no_node_makes_and_what_is_returned_twice(tmp_path: Path) -> None:
    """`export_given` compares with the module."""

    def returned(fc: Any, x: Any, mask: Any) -> Any:
        y = fc(x) * mask
        return y, mask, torch.arange(3), fc.weight, y

    example = {"x": torch.randn(2, 8), "mask": torch.ones(2, 1)}
    assert set(export_given(Module(returned), example, tmp_path / "m.onnx", name="m")) == {"x", "mask"}


def test_an_example_of_size_0(tmp_path: Path) -> None:
    module = Module(lambda fc, x, mask: torch.cat([mask, fc(x)], 0))
    examples = export_given(module, (torch.randn(2, 8), torch.zeros(0, 4)), tmp_path / "m.onnx", name="m")
    np.testing.assert_array_equal(examples["mask"], np.zeros((0, 4), np.float32))


def test_tensors_without_a_name() -> None:
    tensor = torch.zeros(1)
    assert output_names(tensor) == [""]
    assert output_names([tensor, {"a": tensor, "n": None}]) == ["", "a"]


def test_a_decoder_is_told_about_its_cache(tmp_path: Path) -> None:
    class Cache:
        pass

    class Decoder(Module):
        config = type("Config", (), {"use_cache": True})()

    module = Decoder(lambda fc, x, mask: {"logits": fc(x), "cache": Cache()})
    with pytest.raises(ModelError, match=r"set module.config.use_cache = False"):
        export_given(module, (torch.randn(2, 8), torch.ones(2, 1)), tmp_path / "m.onnx", name="m")
    module.config.use_cache = False
    assert cache_hint(module, {"cache": Cache()}) == ""


def test_a_decoder_that_fails_otherwise_is_told_why(tmp_path: Path) -> None:
    class Decoder(Module):
        config = type("Config", (), {"use_cache": True})()

    module = Decoder(lambda fc, x, mask: fc(mask))
    with pytest.raises(ModelError, match="mat1 and mat2 shapes cannot be multiplied") as raised:
        export_given(module, (torch.randn(2, 8), torch.ones(2, 1)), tmp_path / "m.onnx", name="m")
    assert "use_cache" not in str(raised.value)

"""Saving a torch module: its stages, what it refuses, and the format of its bundle."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch_modules import Chain, Mixed, Tied

import splitload.torch
from splitload.base.errors import BundleError, ModelError, OutputError, UsageError
from splitload.base.regular import sha256_of
from splitload.bundle.manifest import MANIFEST
from splitload.torch.format import ALIGNMENT, read_manifest, validate
from splitload.torch.order import default_num_stages, equal_cut


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    splitload.torch.save(Chain(), torch.ones(1, 8), tmp_path / "m.splitload", num_stages=2)
    return tmp_path / "m.splitload"


def test_each_stage_is_a_safetensors_file(tmp_path: Path) -> None:
    for module, inputs in ((Mixed(), torch.ones(3)), (Tied(), torch.tensor([[1]]))):
        splitload.torch.save(module, inputs, tmp_path / "m.splitload")
        for stage in read_manifest(tmp_path / "m.splitload", "hashes").stages:
            assert stage.file.sha256[:12] in stage.file.name
            with safe_open(tmp_path / "m.splitload" / stage.file.name, "pt") as file:
                assert sorted(file.keys()) == sorted(tensor.names[0] for tensor in stage.tensors)
                for tensor in stage.tensors:
                    for name in tensor.names:
                        value = module.get_parameter(name) if tensor.parameter else module.get_buffer(name)
                        assert torch.equal(file.get_tensor(tensor.names[0]), value)
                    if tensor.size_bytes % ALIGNMENT == 0:
                        assert tensor.offset % ALIGNMENT == 0


def test_stages_follow_the_order_of_use(bundle: Path) -> None:
    splitload.torch.save(Chain(), {"x": torch.ones(1, 8), "order": (2, 0, 3)}, bundle, num_stages=4)
    assert [stage.name for stage in read_manifest(bundle).stages] == ["layers.2", "layers.0", "layers.3", "layers.1"]


def test_split_points_are_modules(bundle: Path) -> None:
    splitload.torch.save(Chain(), (torch.ones(1, 8),), bundle, split_points=["layers.3", "layers.1"])
    assert [stage.name for stage in read_manifest(bundle).stages] == ["layers.0", "layers.1", "layers.3"]


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"num_stages": 0}, "num_stages must be a whole number from 1 to 5, it is 0"),
        ({"num_stages": 6}, "from 1 to 5, it is 6"),
        ({"num_stages": True}, "it is True"),
        ({"split_points": ["layers.7"]}, "'layers.7' is no module that holds tensors"),
        ({"split_points": ["layer"]}, "'layer' is no module that holds tensors"),
        ({"split_points": ["layers"]}, "'layers' begins where a stage begins already"),
        ({"split_points": ["layers.1", "layers.1"]}, "begins where a stage begins already"),
        ({"num_stages": 2, "split_points": []}, "not both"),
    ],
)
def test_stages_that_cannot_be(bundle: Path, settings: dict[str, Any], text: str) -> None:
    before = (bundle / MANIFEST).read_bytes()
    with pytest.raises(UsageError, match=text):
        splitload.torch.save(Chain(), torch.ones(1, 8), bundle, **settings)
    assert (bundle / MANIFEST).read_bytes() == before


def test_equal_cut_is_the_best_there_is() -> None:
    generator = torch.Generator().manual_seed(0)
    for count in range(1, 8):
        sizes = torch.randint(0, 30, (count,), generator=generator).tolist()
        for stages in range(1, count + 1):
            cuts = [(0, *points, count) for points in combinations(range(1, count), stages - 1)]
            best = min(max(sum(sizes[a:b]) for a, b in pairwise(cut)) for cut in cuts)
            made = equal_cut(sizes, stages)
            assert made.num_stages == stages
            assert max(sum(sizes[a:b]) for a, b in made.stages()) == best


def test_default_stages() -> None:
    assert [default_num_stages([size << 20] * 40) for size in (0, 1, 8, 1000)] == [1, 1, 10, 32]
    assert default_num_stages([1 << 40] * 3) == 3


class Counting(nn.Module):
    """Counts its calls, and is called in eval mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert not self.training
        assert not torch.is_grad_enabled()
        self.calls += 1
        y: torch.Tensor = self.layer(x)
        return y


def test_the_module_is_left_as_it_was(tmp_path: Path) -> None:
    module = nn.Sequential(Counting(), nn.Dropout(), nn.LSTM(8, 8))
    module[1].eval()
    seen: list[int] = []
    module[0].register_forward_pre_hook(lambda *_: seen.append(1))
    held = [vars(each)["_parameters"] for each in module.modules()]
    flags = [each.training for each in module.modules()]
    splitload.torch.save(module, torch.ones(2, 8), tmp_path / "m.splitload")
    with pytest.raises(ModelError, match="cannot be run on the example inputs: RuntimeError"):
        splitload.torch.save(module, torch.ones(2, 9), tmp_path / "m.splitload")
    assert [each.training for each in module.modules()] == flags == [True, True, True, False, True]
    assert module.get_buffer("0.calls").item() == 0
    assert [vars(each)["_parameters"] for each in module.modules()] == held
    assert all(type(vars(each)["_buffers"]) is dict for each in module.modules())
    assert len(seen) == 2
    assert not module[2]._forward_pre_hooks


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def get_extra_state(self) -> Any:
        return {"a": 1}


class Wrapped(nn.Parameter):
    pass


def odd(tensor: torch.Tensor) -> nn.Module:
    module = nn.Linear(1, 1)
    module.register_buffer("odd", tensor)
    return module


def quantized() -> nn.Module:
    import torch.ao.nn.quantized.dynamic as quantized_modules

    return quantized_modules.Linear(4, 4)


def wrapped() -> nn.Module:
    module = nn.Linear(1, 1)
    module.weight = Wrapped(torch.ones(1, 1))
    return module


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize(
    ("build", "text"),
    [
        (quantized, r"module 'fc' \(Linear\) keeps .* besides its parameters and buffers, as quantised modules do"),
        (Extra, r"module 'fc' \(Extra\) keeps '_extra_state'"),
        (lambda: torch.jit.script(nn.Linear(1, 1)), r"module 'fc' \(.*\) is compiled by TorchScript"),
        (wrapped, r"'fc.weight' of module 'fc' \(Linear\) is a Wrapped"),
        (lambda: nn.LazyLinear(2), r"'fc.weight' of module 'fc' \(LazyLinear\) is a Uninit"),
        (lambda: nn.Linear(1, 1, device="meta"), r"'fc.weight' .* is on the meta device, without values"),
        (lambda: odd(torch.ones(2, dtype=torch.complex64)), r"'fc.odd' .* is of torch.complex64"),
        (lambda: odd(torch.eye(2).to_sparse()), r"'fc.odd' .* torch.sparse_coo"),
        (lambda: odd(torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)), r"'fc.odd' .* is of torch.qint8"),
    ],
    ids=["quantized", "extra", "script", "wrapped", "lazy", "meta", "complex", "sparse", "qint8"],
)
def test_what_a_bundle_cannot_hold_is_named(build: Callable[[], nn.Module], text: str, tmp_path: Path) -> None:
    module = nn.Sequential()
    module.add_module("first", nn.Linear(1, 1))
    module.add_module("fc", build())
    with pytest.raises(ModelError, match=text):
        splitload.torch.save(module, torch.ones(1), tmp_path / "m.splitload")
    with pytest.raises(ModelError, match="holds no tensors"):
        splitload.torch.save(nn.ReLU(), torch.ones(1), tmp_path / "m.splitload")
    assert not list(tmp_path.iterdir())


def test_nothing_but_a_torch_bundle_is_replaced(bundle: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.splitload"
    other.mkdir()
    (other / MANIFEST).write_text('{"format": "splitload-bundle"}')
    with pytest.raises(OutputError, match="exists and is not a bundle"):
        splitload.torch.save(Chain(), torch.ones(1, 8), other)
    assert [path.name for path in other.iterdir()] == [MANIFEST]
    splitload.torch.save(Chain(), torch.ones(1, 8), bundle, num_stages=1)
    assert len(list(bundle.iterdir())) == 2


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        ((), [], "manifest must be an object"),
        (("format",), "splitload-bundle", "not a torch bundle's: format is 'splitload-bundle'.*ParallelLoader"),
        (("version",), 3, "version 3, this splitload reads versions 1 and 2"),
        (("version",), True, "version True"),
        (("more",), 1, "unknown keys"),
        (("module",), 1, "module must be a string"),
        (("stages",), [], "stages has 0 entries"),
        (("stages", 0, "tensors"), [], "tensors has 0 entries"),
        (("stages", 0, "file", "name"), "../a", "not a plain file name"),
        (("stages", 0, "file", "sha256"), "0", "must be a SHA-256"),
        (("stages", 0, "file", "bytes"), 100, "its tensors end at byte .*, its file has 100"),
        (("stages", 0, "tensors", 0, "names"), [], "names must be one or more names"),
        (("stages", 0, "tensors", 0, "names"), [1], "names must be one or more names"),
        (("stages", 0, "tensors", 0, "names"), ["layers.3.weight"], "'layers.3.weight' is there twice"),
        (("stages", 0, "tensors", 0, "dtype"), "qint8", "dtype must be one of"),
        (("stages", 0, "tensors", 0, "shape"), [-1], "shape must be sizes"),
        (("stages", 0, "tensors", 0, "shape"), [1] * 65, "shape must be sizes"),
        (("stages", 0, "tensors", 0, "shape"), [1 << 40, 1 << 40], "begins inside the tensor before it"),
        (("stages", 0, "tensors", 0, "parameter"), 1, "parameter must be true or false"),
        (("stages", 0, "tensors", 0, "offset"), 2, "offset 2 is not where a float32 can begin"),
    ],
)
def test_a_manifest_that_is_wrong(bundle: Path, path: tuple[Any, ...], value: Any, text: str) -> None:
    data = json.loads((bundle / MANIFEST).read_bytes())
    validate(data)
    if path:
        at = data
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = value
    else:
        data = value
    with pytest.raises(BundleError, match=text):
        validate(data)


def test_the_same_module_makes_the_same_files(bundle: Path, tmp_path: Path) -> None:
    module = Chain()
    for name in ("a", "b"):
        splitload.torch.save(module, torch.ones(1, 8), tmp_path / name)
    assert sorted(sha256_of(path) for path in (tmp_path / "a").iterdir()) == sorted(
        sha256_of(path) for path in (tmp_path / "b").iterdir()
    )

"""Loading a torch module: what is refused, what fails, and what is left of it when the module or the process ends."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_modules
from torch import nn
from torch_modules import Chain, Gates, is_plain, loaded, on_meta

import splitload.torch
from splitload.base.errors import BundleError, ModelError, SplitloadError, StageError, UsageError
from splitload.torch.format import read_manifest

WAIT_S = 20


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def test_a_bundle_that_is_incomplete(chain: tuple[Chain, Path]) -> None:
    _, bundle = chain
    path = bundle / read_manifest(bundle).stages[2].file.name
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)  # files of a bundle are read-only
    path.write_bytes(data)
    with pytest.raises(BundleError, match="SHA-256 differs"):
        loaded(Chain, bundle, verify="hashes")
    path.write_bytes(data[:-1])
    with pytest.raises(BundleError, match="the manifest says"):
        loaded(Chain, bundle)
    path.unlink()
    with pytest.raises(BundleError, match="is missing"):
        loaded(Chain, bundle)
    with pytest.raises(BundleError, match="there is no such folder"):
        loaded(Chain, bundle / "no")


@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_a_stage_that_fails_fails_every_call(chain: tuple[Chain, Path], how: str, gates: Gates) -> None:
    _, bundle = chain
    path = bundle / read_manifest(bundle).stages[2].file.name
    gates.hold(2)
    made = loaded(Chain, bundle, threads=1)
    path.chmod(0o644)
    os.truncate(path, 10) if how == "truncated" else path.unlink()
    gates.open()
    for _ in range(2):
        with pytest.raises(StageError, match=r"stage 3 of .* cannot be loaded") as caught:
            made(torch.ones(1, 8))
        assert isinstance(caught.value, SplitloadError)
    with pytest.raises(StageError, match="stage 3 of"):
        splitload.torch.wait(made)
    with pytest.raises(StageError, match="stage 3 of"):
        made.state_dict()


def with_bias(bias: bool) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8, bias=bias), nn.Linear(8, 8))


def tied() -> nn.Module:
    module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    module[1].weight = module[0].weight
    return module


class Buffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(8, 8))
        self.bias = nn.Parameter(torch.ones(8))


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: with_bias(False), r"the bundle holds '0.bias', which the module has not"),
        (
            lambda: nn.Sequential(*with_bias(True), nn.Linear(1, 1)),
            r"has '2.weight', which the bundle does not.*\(2 such",
        ),
        (
            lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 9)),
            r"'1.weight' .*shape \(9, 8\), in the bundle \(8, 8\)",
        ),
        (lambda: with_bias(True).half(), r"'0.weight' .*type torch.float16, in the bundle torch.float32.*module.to\("),
        (lambda: nn.Sequential(Buffer(), nn.Linear(8, 8)), r"'0.weight' .*kind a buffer, in the bundle a parameter"),
        (tied, r"'0.weight' and '1.weight' are one tensor in the module and two in the bundle"),
    ],
    ids=["missing", "more", "shape", "type", "kind", "tied"],
)
def test_another_module_is_refused(build: Callable[[], nn.Module], text: str, tmp_path: Path) -> None:
    splitload.torch.save(with_bias(True), torch.ones(1, 8), tmp_path / "m.splitload")
    made = on_meta(build)
    with pytest.raises(ModelError, match=text):
        splitload.torch.load(made, tmp_path / "m.splitload")
    assert is_plain(made)
    with pytest.raises(UsageError, match="was not loaded by"):
        splitload.torch.wait(made)


class Plain(nn.Module):
    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.table = [torch.ones(8)] if inside else torch.ones(8)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x)


@pytest.mark.parametrize("inside", [False, True])
def test_tensors_out_of_reach_are_refused(inside: bool, tmp_path: Path) -> None:
    splitload.torch.save(Plain(inside), torch.ones(1, 8), tmp_path / "m.splitload")
    with pytest.raises(ModelError, match=r"the module \(Plain\) keeps a tensor in its attribute 'table'"):
        loaded(lambda: Plain(inside), tmp_path / "m.splitload")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"threads": 0}, "threads must be"),
        ({"threads": True}, "threads must be"),
        ({"device": "meta"}, "device must be"),
        ({"device": "cuda:99"}, "torch finds"),
    ],
)
def test_what_cannot_be_meant(chain: tuple[Chain, Path], settings: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        loaded(Chain, chain[1], **settings)


def test_a_module_is_loaded_once_at_a_time(chain: tuple[Chain, Path], gates: Gates) -> None:
    gates.hold(0)
    made = loaded(Chain, chain[1])
    with pytest.raises(UsageError, match="is being loaded already"):
        splitload.torch.load(made, chain[1])
    gates.open()
    assert splitload.torch.wait(made)
    splitload.torch.load(made, chain[1])  # anew
    assert torch.equal(made(torch.ones(1, 8)), chain[0](torch.ones(1, 8)))


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_kept_of_a_module_that_is_gone(chain: tuple[Chain, Path], gates: Gates, fails: bool) -> None:
    _, bundle = chain
    gates.hold(3)
    made = loaded(Chain, bundle)
    if fails:
        (bundle / read_manifest(bundle).stages[3].file.name).unlink()
    gates.open()
    with contextlib.suppress(StageError):
        splitload.torch.wait(made)
    gone = weakref.ref(made)
    del made
    for _ in range(100):  # a thread of the pool may be about to let go
        gc.collect()
        if gone() is None:
            break
        time.sleep(0.01)
    assert gone() is None


FORK = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import torch
from torch_modules import Chain, loaded
import splitload.torch
from splitload.torch.sources import Mapped

gate, real = threading.Event(), Mapped._map
begun = threading.Event()

def slow(self, index):
    begun.set()
    if index > 0:
        gate.wait(30)
    return real(self, index)

Mapped._map = slow
made = loaded(Chain, sys.argv[2], threads=2)
assert begun.wait(30)
child = os.fork()
if child == 0:
    status = 1
    try:
        signal.alarm(60)
        try:
            made(torch.ones(1, 8))
        except splitload.SplitloadError as error:
            assert "forked" in str(error)
            Mapped._map = real
            again = loaded(Chain, sys.argv[2])
            assert splitload.torch.wait(again, 30)
            status = 0
    finally:
        os._exit(status)
assert os.waitpid(child, 0)[1] == 0
timer = threading.Timer(0.1, gate.set)  # the process ends while stages are loaded
timer.daemon = True
timer.start()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system cannot fork")
def test_a_process_that_forks_or_ends_meanwhile(chain: tuple[Chain, Path]) -> None:
    folder = str(Path(torch_modules.__file__).parent)
    done = subprocess.run(
        [sys.executable, "-c", FORK, folder, str(chain[1])], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr

"""Loading a torch module from its bundle while it runs: the same answers, each stage waited for by itself."""

from __future__ import annotations

import contextlib
import copy
import gc
import io
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch_modules
from torch import nn
from torch.utils import _pytree as pytree
from torch_modules import Chain, Mirror, Mixed, Reader, Recurrent, Tied, loaded, on_meta

import splitload.torch
from splitload.base.errors import BundleError, ModelError, SplitloadError, StageError, UsageError
from splitload.frontends.torch_packages import declare_torchvision_ops
from splitload.torch.format import read_manifest
from splitload.torch.reads import Watched
from splitload.torch.sources import Arrival, Mapped

WAIT_S = 20


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def chain(tmp_path: Path) -> tuple[Chain, Path]:
    """A module of four stages, and its bundle."""
    module = Chain().eval()
    splitload.torch.save(module, torch.ones(1, 8), tmp_path / "chain.splitload", num_stages=4)
    return module, tmp_path / "chain.splitload"


class Gates:
    """Holds stages back until they are let through."""

    def __init__(self) -> None:
        self.events: dict[int, threading.Event] = {}

    def hold(self, *stages: int) -> None:
        self.events |= {stage: threading.Event() for stage in stages}

    def open(self, *stages: int) -> None:
        for stage in stages or tuple(self.events):
            self.events[stage].set()


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gates]:
    made = Gates()
    real = Mapped._map

    def held(self: Mapped, index: int) -> Arrival:
        if index in made.events and not made.events[index].wait(WAIT_S):
            raise TimeoutError(f"stage {index} was never let through")
        return real(self, index)

    monkeypatch.setattr(Mapped, "_map", held)
    yield made
    made.open()


def is_plain(module: nn.Module) -> bool:
    """Return whether nothing of splitload is left in a module."""
    held = [vars(each)[kind] for each in module.modules() for kind in ("_parameters", "_buffers")]
    hooks = [each._forward_pre_hooks for each in module.modules()]
    return not any(isinstance(each, Watched) for each in held) and not any(hooks)


def check_same(build: Callable[[], nn.Module], inputs: Any, bundle: Path, stages: int | None) -> nn.Module:
    """Save a module, load it, and compare what both compute, bit for bit; return the loaded one."""
    module = build().eval()
    splitload.torch.save(module, inputs, bundle, num_stages=stages)
    made = loaded(build, bundle)
    with torch.no_grad():
        if isinstance(inputs, dict):
            outputs = [each(**inputs)[0] for each in (module, made)]
        else:
            outputs = [each(inputs) for each in (module, made)]
    assert torch.equal(*outputs)
    assert splitload.torch.wait(made, WAIT_S)
    assert is_plain(made)
    for (name, tensor), (same, other) in zip(
        [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)],
        [*made.named_parameters(remove_duplicate=False), *made.named_buffers(remove_duplicate=False)],
        strict=True,
    ):
        assert (name, tensor.requires_grad) == (same, other.requires_grad)
        assert torch.equal(tensor, other)
    return made


@pytest.mark.parametrize(
    ("build", "inputs", "most"),
    [
        (Chain, torch.ones(2, 8), 4),
        (Tied, torch.tensor([[1, 2, 3]]), 3),
        (Reader, torch.ones(1, 4, 8), 6),
        (Recurrent, torch.ones(3, 2, 8), 2),
        (Mixed, torch.ones(3), 1),
        (lambda: Chain().to(torch.bfloat16), torch.ones(2, 8, dtype=torch.bfloat16), 4),
        (lambda: Chain().half(), torch.ones(2, 8, dtype=torch.float16), 4),
        (lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), torch.ones(1, 3, 8), 6),
        (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(8, 8)), torch.ones(1, 8), 2),
    ],
    ids=["chain", "tied", "reader", "recurrent", "mixed", "bfloat16", "float16", "fused", "parametrized"],
)
@pytest.mark.parametrize("as_many", [False, True], ids=["one stage", "many stages"])
def test_the_same_answer(
    build: Callable[[], nn.Module], inputs: torch.Tensor, most: int, as_many: bool, tmp_path: Path
) -> None:
    check_same(build, inputs, tmp_path / "m.splitload", most if as_many else None)


def test_a_vision_model(tmp_path: Path) -> None:
    declare_torchvision_ops()
    import torchvision

    made = check_same(torchvision.models.resnet18, torch.randn(1, 3, 64, 64), tmp_path / "m.splitload", 5)
    assert made.get_buffer("layer4.1.bn2.num_batches_tracked").item() == 0


@pytest.mark.parametrize("kind", ["gpt2", "distilbert", "llama"])
def test_hugging_face_models(kind: str, tmp_path: Path) -> None:
    declare_torchvision_ops()
    import transformers

    config, build = {
        "gpt2": (
            transformers.GPT2Config(
                n_layer=2, n_embd=32, n_head=2, vocab_size=64, n_positions=16, bos_token_id=0, eos_token_id=0
            ),
            transformers.GPT2LMHeadModel,
        ),
        "distilbert": (
            transformers.DistilBertConfig(n_layers=2, dim=32, n_heads=2, hidden_dim=64, vocab_size=64),
            transformers.DistilBertForMaskedLM,
        ),
        "llama": (
            transformers.LlamaConfig(
                num_hidden_layers=2, hidden_size=32, num_attention_heads=2, intermediate_size=64, vocab_size=64,
                bos_token_id=0, eos_token_id=0,
            ),
            transformers.LlamaForCausalLM,
        ),
    }[kind]  # fmt: skip
    made: Any = check_same(lambda: build(config), {"input_ids": torch.arange(6)[None]}, tmp_path / "m.splitload", 4)
    if kind != "llama":
        assert made.get_output_embeddings().weight is made.get_input_embeddings().weight


def test_ties_and_shared_modules_stay_and_are_stored_once(tmp_path: Path) -> None:
    made = check_same(Tied, torch.tensor([[1, 2]]), tmp_path / "m.splitload", 3)
    assert isinstance(made, Tied)
    assert made.head.weight is made.embedding.weight
    assert made.again is made.first
    names = [tensor.names for stage in read_manifest(tmp_path / "m.splitload").stages for tensor in stage.tensors]
    assert ("embedding.weight", "head.weight") in names
    assert ("first.weight", "again.weight") in names
    assert len(names) == 5


def test_inference_begins_before_the_next_stage_is_loaded(chain: tuple[Chain, Path], gates: Gates) -> None:
    module, bundle = chain
    gates.hold(1, 2, 3)  # each until the one before has inferred
    made = loaded(Chain, bundle, threads=1)
    assert isinstance(made, Chain)
    for index in range(3):
        made.layers[index].register_forward_hook(lambda *_, then=index + 1: gates.open(then))
    assert torch.equal(made(torch.ones(1, 8)), module(torch.ones(1, 8)))


def test_another_order_waits_for_its_own_stages_only(chain: tuple[Chain, Path], gates: Gates) -> None:
    module, bundle = chain
    gates.hold(0, 2)
    made = loaded(Chain, bundle, threads=4)
    assert torch.equal(made(torch.ones(1, 8), (1,)), module(torch.ones(1, 8), (1,)))
    assert not splitload.torch.wait(made, 0.0)
    gates.open()
    for order in ((3, 2, 1, 0), (2, 0)):
        assert torch.equal(made(torch.ones(1, 8), order), module(torch.ones(1, 8), order))


def test_what_is_read_late_or_never_comes_late(tmp_path: Path) -> None:
    bundle = tmp_path / "m.splitload"
    splitload.torch.save(Reader(), torch.ones(1, 4, 8), bundle, num_stages=4)
    order = [name for stage in read_manifest(bundle).stages for tensor in stage.tensors for name in tensor.names]
    assert order[0] == "late.weight"
    assert {"unused.weight", "unused.bias"} == set(order[-2:])


def test_many_threads_at_once(chain: tuple[Chain, Path], gates: Gates) -> None:
    module, bundle = chain
    gates.hold(0, 1, 2, 3)
    made = loaded(Chain, bundle, threads=2)
    orders = [(0, 1, 2, 3), (3, 2, 1, 0), (1,), (2, 2)] * 2
    inputs = [torch.randn(2, 8) for _ in orders]
    found: dict[int, torch.Tensor] = {}

    def infer(number: int) -> None:
        with torch.no_grad():
            found[number] = made(inputs[number], orders[number])

    threads = [threading.Thread(target=infer, args=(number,)) for number in range(len(orders))]
    for thread in threads:
        thread.start()
    for stage in (1, 0, 3, 2):
        gates.open(stage)
    for thread in threads:
        thread.join(WAIT_S)
    for number, order in enumerate(orders):
        assert torch.equal(found[number], module(inputs[number], order))


@pytest.mark.parametrize("ask", ["state_dict", "to", "deepcopy", "save"])
def test_asking_for_all_tensors_waits_for_them(chain: tuple[Chain, Path], gates: Gates, ask: str) -> None:
    module, bundle = chain
    gates.hold(3)
    made: Any = loaded(Chain, bundle)
    threading.Timer(0.05, gates.open).start()
    if ask == "state_dict":
        found = made.state_dict()
        assert all(torch.equal(found[name], value) for name, value in module.state_dict().items())
    elif ask == "to":
        made.to(torch.float64)
        assert {each.dtype for each in (*made.parameters(), *made.buffers())} == {torch.float64}
        assert splitload.torch.wait(made)
        assert {each.dtype for each in (*made.parameters(), *made.buffers())} == {torch.float64}
    elif ask == "deepcopy":
        twin = copy.deepcopy(made)
        assert torch.equal(twin(torch.ones(1, 8)), module(torch.ones(1, 8)))
    else:
        torch.save(made.state_dict(), io.BytesIO())


def test_what_the_user_replaces_meanwhile_stays(chain: tuple[Chain, Path], gates: Gates) -> None:
    _, bundle = chain
    gates.hold(3)
    made: Any = loaded(Chain, bundle)
    mine = nn.Linear(8, 8)
    layer, made.layers[3] = made.layers[3], mine
    made.layers[2].register_parameter("more", nn.Parameter(torch.ones(1)))
    made._buffers["scale"] = torch.ones(8)
    gates.open()
    assert splitload.torch.wait(made, WAIT_S)
    assert made.layers[3] is mine
    assert not layer.weight.is_meta
    assert torch.equal(made.layers[2].more, torch.ones(1))
    assert torch.equal(made.scale, torch.ones(8))


@pytest.mark.parametrize("build", [lambda: nn.LSTM(8, 8), lambda: Mirror(8, 8)], ids=["torch's", "a user's"])
def test_a_module_that_keeps_its_tensors_twice(build: Callable[[], nn.Module], tmp_path: Path, gates: Gates) -> None:
    def both() -> nn.Module:
        return nn.Sequential(nn.Linear(8, 8), build())

    module, bundle = both().eval(), tmp_path / "m.splitload"
    splitload.torch.save(module, torch.ones(1, 8), bundle, num_stages=2)
    assert read_manifest(bundle).stages[1].name == "1"
    gates.hold(1)
    made: Any = loaded(both, bundle)
    made[0].register_forward_hook(lambda *_: threading.Timer(0.1, gates.open).start())
    outputs = [each(torch.ones(1, 8)) for each in (made, module)]
    assert all(torch.equal(a, b) for a, b in zip(*(pytree.tree_leaves(each) for each in outputs), strict=True))


def test_hooks_of_the_user_stay(tmp_path: Path) -> None:
    splitload.torch.save(Recurrent(), torch.ones(1, 1, 8), tmp_path / "m.splitload", num_stages=2)
    made: Any = on_meta(Recurrent)
    seen: list[str] = []
    made.cell.register_forward_pre_hook(lambda *_: seen.append("mine"))
    splitload.torch.load(made, tmp_path / "m.splitload")
    made(torch.ones(1, 1, 8))
    assert splitload.torch.wait(made)
    assert (seen, len(made.cell._forward_pre_hooks)) == (["mine"], 1)


def test_writing_to_a_tensor_changes_no_file_and_no_other_tensor(chain: tuple[Chain, Path]) -> None:
    module, bundle = chain
    made: Any = loaded(Chain, bundle)
    with torch.no_grad():
        made.layers[0].weight.zero_()
        made.scale.add_(1)
    assert torch.equal(made.layers[0].bias, module.layers[0].bias)  # type: ignore[arg-type]
    read_manifest(bundle, "hashes")
    loss = made(torch.ones(1, 8)).sum()
    with torch.no_grad():
        made.layers[3].bias.add_(1)  # which the backward pass does not read, other than the weights beside it
    loss.backward()
    assert made.layers[1].weight.grad is not None


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

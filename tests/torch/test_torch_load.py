"""Loading a torch module from its bundle while it runs: the same answers, each stage waited for by itself."""

from __future__ import annotations

import copy
import io
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree
from torch_modules import Chain, Gates, Mirror, Mixed, Reader, Recurrent, Tied, is_plain, loaded, on_meta

import splitload.torch
from splitload.frontends.torch_packages import declare_torchvision_ops
from splitload.torch.format import read_manifest

WAIT_S = 20


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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

"""Real models of transformers, tiny: a bundle's outputs are called as theirs, and advice about a cache works."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
if find_spec("transformers") is None:  # it takes seconds to import, which only who needs it is to pay
    pytest.skip("transformers is not installed", allow_module_level=True)

import splitload  # noqa: E402
from splitload import ParallelLoader  # noqa: E402
from splitload.base.errors import ModelError  # noqa: E402
from splitload.cli import main  # noqa: E402
from splitload.frontends.torch import declare_torchvision_ops, export_given  # noqa: E402

TEXT = {
    "vocab_size": 99, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 16, "pad_token_id": 0,
}  # fmt: skip
TOKENS = torch.ones(1, 4, dtype=torch.int64)
ENCODERS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "Bert": (TEXT, {"input_ids": TOKENS}, ["last_hidden_state", "pooler_output"]),
    "DistilBert": (
        {"vocab_size": 99, "dim": 16, "hidden_dim": 16, "n_layers": 1, "n_heads": 2},
        {"input_ids": TOKENS},
        ["last_hidden_state"],
    ),
    "ViT": (
        {key: TEXT[key] for key in TEXT if key not in ("vocab_size", "pad_token_id")} | {"image_size": 32},
        {"pixel_values": torch.ones(1, 3, 32, 32)},
        ["last_hidden_state", "pooler_output"],
    ),
}
DECODERS: dict[str, tuple[str, dict[str, Any], list[str]]] = {
    "GPT2": (
        "Model",
        {"vocab_size": 99, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2, "bos_token_id": 1},
        ["module.config"],
    ),
    "Llama": ("ForCausalLM", {**TEXT, "num_key_value_heads": 2}, ["module.config"]),
    "T5": (
        "Model",
        {"vocab_size": 99, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2},
        ["module.config", "module.decoder.config"],
    ),
}


def quickly(one: str, names: Iterable[str]) -> list[Any]:
    """Return names as parameters, all but one of them slow."""
    return [name if name == one else pytest.param(name, marks=pytest.mark.slow) for name in names]


def made(name: str, ending: str, settings: dict[str, Any]) -> Any:
    declare_torchvision_ops()
    import transformers

    torch.manual_seed(0)
    return getattr(transformers, f"{name}{ending}")(getattr(transformers, f"{name}Config")(**settings)).eval()


@pytest.mark.parametrize("name", quickly("Bert", ENCODERS))
def test_outputs_are_called_as_the_modules(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    settings, example, expected = ENCODERS[name]
    bundle = splitload.from_torch(made(name, "Model", settings), example, tmp_path / "m.splitload", device="s20")
    with ParallelLoader(bundle) as model:
        assert [value.name for value in model.get_outputs()] == expected
        assert [value.name for value in model.get_inputs()] == list(example)
    assert main(["run", str(bundle), "-o", str(tmp_path / "out"), "--json"]) == 0
    capsys.readouterr()
    assert list(json.loads((tmp_path / "out" / "outputs.json").read_text())) == expected
    assert {file.stem for file in (tmp_path / "out").glob("*.npy")} == set(expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_that_returns_its_cache_is_told_what_helps(name: str, tmp_path: Path) -> None:
    ending, settings, configurations = DECODERS[name]
    module = made(name, ending, {**settings, "use_cache": True})
    example = {"input_ids": TOKENS} | ({"decoder_input_ids": TOKENS} if name == "T5" else {})
    with pytest.raises(ModelError, match="it returns a cache of keys and values") as raised:
        export_given(module, example, tmp_path / "m.onnx", name=name)
    advice = re.findall(r"(module[.\w]*) = False", str(raised.value))
    assert advice == [f"{each}.use_cache" for each in configurations]
    assert "build it with use_cache=False" in str(raised.value)
    for path in configurations:
        module.get_submodule(path.removeprefix("module").removesuffix("config").strip(".")).config.use_cache = False
    assert set(export_given(module, example, tmp_path / "m.onnx", name=name)) == set(example)

"""Models for the study of memory: weights that are shared, and values that are large beside the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from splitload.base.entries import is_whole, making
from splitload.frontends.torch_packages import declare_torchvision_ops

LAYERS, CHANNELS, SIDE = 24, 8, 1024
TOKENS = 64
_PICTURES = "pictures.onnx"
_VERSION = 1  # raise it when a change here changes a file


def pictures(cache: Path) -> Path:
    """Return the .onnx file of small convolutions on a picture of 1024 x 1024, made unless the cache holds it.

    Each of its 48 values takes 32 MiB, all of its weights 56 KB.

    Raises:
        OutputError: If it cannot be written.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    entry = cache / "memory" / f"v{_VERSION}"
    if is_whole(entry):
        return entry / _PICTURES
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(LAYERS):
        filters = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)).astype(np.float32) / 10
        weights.append(numpy_helper.from_array(filters, f"w{layer}"))
        before, after = f"t{layer}" if layer else "x", f"t{layer + 1}" if layer + 1 < LAYERS else "y"
        nodes.append(helper.make_node("Conv", [before, f"w{layer}"], [f"c{layer}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Tanh", [f"c{layer}"], [after]))
    shape = [1, CHANNELS, SIDE, SIDE]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "pictures", ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with making(entry, "the model") as made:
        (made / _PICTURES).write_bytes(model.SerializeToString(deterministic=True))
    return entry / _PICTURES


def albert() -> tuple[Any, Any]:
    """Return an ALBERT with random weights, whose 12 layers are one, and its inputs."""
    declare_torchvision_ops()
    from transformers import AlbertConfig, AlbertModel

    config = AlbertConfig(hidden_size=768, num_attention_heads=12, intermediate_size=3072, num_hidden_layers=12)
    return _module(AlbertModel, config)


def gpt2() -> tuple[Any, Any]:
    """Return a GPT-2 of four layers with random weights, whose first and last weight are one, and its inputs."""
    declare_torchvision_ops()
    from transformers import GPT2Config, GPT2LMHeadModel

    return _module(GPT2LMHeadModel, GPT2Config(n_layer=4, use_cache=False))


def _module(kind: Any, config: Any) -> tuple[Any, Any]:
    """Return a module that gives one tensor for one row of words, and such a row."""
    import torch

    class First(torch.nn.Module):
        """Gives the first output alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = kind(config)

        def forward(self, words: Any) -> Any:
            """Return hidden states or scores of the words, an int64 tensor of shape (1, tokens)."""
            return self.model(input_ids=words)[0]

    torch.manual_seed(0)
    return First().eval(), (torch.arange(TOKENS)[None],)

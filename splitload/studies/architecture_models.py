"""Current architectures of transformers, torchvision and timm, small and with random weights, as ONNX files.

Sizes are those of tests, so that an architecture's graph is whole and its arithmetic little: what is tried on them is
whether a graph can be cut and loaded, not how fast. `python -m splitload.studies.architecture_models NAME SIZES FOLDER`
has torch's exporter write one as a user does, with "fixed" or "open" sizes.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

MODEL = "model.onnx"
LARGER = "larger"  # folder of inputs whose open sizes are larger than in the export
_TOKENS, _VOCABULARY, _HIDDEN, _IMAGE = 8, 99, 32, 64
_TEXT = {
    "vocab_size": _VOCABULARY, "hidden_size": _HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
_GROUPED = {**_TEXT, "num_key_value_heads": 2, "head_dim": 8}
_PATCHES = {
    "hidden_size": _HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "image_size": _IMAGE, "patch_size": 16,
}  # fmt: skip
_WAVES = {
    "hidden_size": _HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "conv_dim": (16, 16), "conv_stride": (5, 4), "conv_kernel": (10, 4), "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 2,
}  # fmt: skip
_HALVES = {
    "vocab_size": _VOCABULARY, "d_model": _HIDDEN, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "max_position_embeddings": 64,
}  # fmt: skip
_T5 = {
    "vocab_size": _VOCABULARY, "d_model": _HIDDEN, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_decoder_layers": 2,
    "num_heads": 4,
}  # fmt: skip
_WHISPER = _HALVES | {"num_mel_bins": 16, "max_source_positions": 32, "max_target_positions": 32, "pad_token_id": 0}

# by name: what goes in, the class without its ending, the ending of the class, and the configuration
_TRANSFORMERS: dict[str, tuple[str, str, str, Mapping[str, Any]]] = {
    "bert": ("text", "Bert", "Model", _TEXT),
    "roberta": ("text", "Roberta", "Model", _TEXT),
    "distilbert": ("text", "DistilBert", "Model",
                   {"vocab_size": _VOCABULARY, "dim": _HIDDEN, "hidden_dim": 64, "n_layers": 2, "n_heads": 4}),
    "albert": ("text", "Albert", "Model", {**_TEXT, "embedding_size": 16}),
    "electra": ("text", "Electra", "ForSequenceClassification", {**_TEXT, "embedding_size": 16}),
    "mpnet": ("text", "MPNet", "Model", _TEXT),
    "deberta_v2": ("text", "DebertaV2", "Model", {**_TEXT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "modernbert": ("text", "ModernBert", "Model", _TEXT),
    "mobilebert": ("text", "MobileBert", "Model",
                   {**_TEXT, "embedding_size": 32, "true_hidden_size": 32, "intra_bottleneck_size": 32}),
    "squeezebert": ("text", "SqueezeBert", "Model", {**_TEXT, "embedding_size": 32}),
    "fnet": ("tokens", "FNet", "Model", _TEXT),
    "gpt2": ("tokens", "GPT2", "Model",
             {"vocab_size": _VOCABULARY, "n_positions": 64, "n_embd": _HIDDEN, "n_layer": 2, "n_head": 4}),
    "gpt2_lm": ("tokens", "GPT2", "LMHeadModel",
                {"vocab_size": _VOCABULARY, "n_positions": 64, "n_embd": _HIDDEN, "n_layer": 2, "n_head": 4}),
    "llama": ("tokens", "Llama", "ForCausalLM", _GROUPED),
    "qwen3": ("tokens", "Qwen3", "Model", _GROUPED),
    "gemma2": ("tokens", "Gemma2", "Model", _GROUPED),
    "phi3": ("tokens", "Phi3", "Model", _GROUPED),
    "t5 encoder": ("text", "T5", "Model", _T5),
    "t5 decoder": ("decoder", "T5", "Model", _T5),
    "bart encoder": ("text", "Bart", "Model", _HALVES),
    "bart decoder": ("decoder", "Bart", "Model", _HALVES),
    "whisper encoder": ("mel", "Whisper", "Model", _WHISPER),
    "whisper decoder": ("decoder", "Whisper", "Model", _WHISPER),
    "vit": ("image", "ViT", "Model", _PATCHES),
    "dinov2": ("image", "Dinov2", "Model", {**_PATCHES, "mlp_ratio": 2}),
    "clip vision": ("image", "CLIPVision", "Model", _PATCHES),
    "clip text": ("text", "CLIPText", "Model", {**_TEXT, "eos_token_id": 2}),
    "swin": ("image", "Swin", "Model", {"image_size": _IMAGE, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4],
                                        "window_size": 4}),
    "convnextv2": ("image", "ConvNextV2", "Model", {"hidden_sizes": [16, 32], "depths": [1, 1], "num_stages": 2}),
    "resnet": ("image", "ResNet", "Model", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 1],
                                            "layer_type": "basic"}),
    "segformer": ("image", "Segformer", "ForSemanticSegmentation",
                  {"num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [4, 2], "hidden_sizes": [16, 32],
                   "patch_sizes": [7, 3], "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2],
                   "decoder_hidden_size": 16}),
    "wav2vec2": ("wave", "Wav2Vec2", "Model", _WAVES),
    "wavlm": ("wave", "WavLM", "Model", _WAVES),
    "ast": ("spectrogram", "AST", "Model",
            {**{key: _PATCHES[key] for key in _PATCHES if key != "image_size"}, "max_length": 32, "num_mel_bins": 16,
             "patch_size": 8, "frequency_stride": 8, "time_stride": 8}),
}  # fmt: skip
_TORCHVISION = (
    "efficientnet_b0", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_small", "regnet_y_400mf", "resnet18",
    "segmentation.lraspp_mobilenet_v3_large", "shufflenet_v2_x0_5", "squeezenet1_1", "swin_t",
)  # fmt: skip
_TIMM = (
    "convnextv2_atto", "crossvit_tiny_240", "edgenext_xx_small", "efficientvit_b0", "fastvit_t8", "ghostnet_100",
    "inception_next_atto", "lcnet_050", "levit_128s", "mobilenetv4_conv_small", "mobilevit_xxs", "pvt_v2_b0",
    "regnety_002", "repvit_m0_9", "starnet_s1", "tinynet_e", "vit_tiny_patch16_224", "xcit_nano_12_p16_224",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Built:
    """A model and what it is tried on.

    Attributes:
        module: The model, in evaluation mode.
        example: Inputs by name.
        open_sizes: Which of their sizes may be left open, as `dynamic_shapes` of torch's exporter.
    """

    module: torch.nn.Module
    example: dict[str, torch.Tensor]
    open_sizes: dict[str, dict[int, str]]


def names() -> list[str]:
    """Return the architectures, each as `package/name`."""
    return [
        *(f"transformers/{name}" for name in _TRANSFORMERS),
        *(f"torchvision/{name}" for name in _TORCHVISION),
        *(f"timm/{name}" for name in _TIMM),
    ]


def build(name: str) -> Built:
    """Return an architecture, made with the same random weights every time.

    Raises:
        KeyError: If there is none of that name.
        ImportError: If its package is not installed.
    """
    import torch

    from splitload.frontends.torch_packages import declare_torchvision_ops

    declare_torchvision_ops()
    torch.manual_seed(0)
    package, _, which = name.partition("/")
    make = {"transformers": _transformer, "torchvision": _torchvision, "timm": _timm}[package]
    module, example, open_sizes = make(which)
    return Built(module.eval(), example, open_sizes)


def export(name: str, sizes: str, folder: Path) -> None:
    """Have torch's exporter write `MODEL` into a folder, and beside it each input as `NAME.npy`.

    With "open" sizes a folder `LARGER` has inputs of larger sizes than in the export.
    """
    import torch

    from splitload.frontends.torch_packages import quiet

    with quiet(), torch.no_grad():
        built = build(name)
        # the exporter takes a size of one for a fixed one, so an open batch is shown as one of two
        example = {
            key: tensor.repeat_interleave(2, 0) if sizes == "open" else tensor for key, tensor in built.example.items()
        }
        torch.onnx.export(
            built.module,
            (),
            folder / MODEL,
            kwargs=example,
            dynamo=True,
            external_data=False,
            verbose=False,
            dynamic_shapes=built.open_sizes if sizes == "open" else None,
        )
    for key, tensor in example.items():
        np.save(folder / f"{key}.npy", tensor.numpy())
        if sizes == "open":
            larger = tensor.repeat_interleave(3, 0)
            if 1 in built.open_sizes[key]:
                larger = larger.repeat_interleave(2, 1)
            (folder / LARGER).mkdir(exist_ok=True)
            np.save(folder / LARGER / f"{key}.npy", larger.numpy())


def inputs(folder: Path) -> list[str]:
    """Return the inputs in a folder, as `--input` takes them."""
    return [f"{file.stem}={file}" for file in sorted(folder.glob("*.npy"))]


def _transformer(which: str) -> tuple[Any, dict[str, Any], dict[str, dict[int, str]]]:
    import torch
    import transformers

    kind, stem, ending, settings = _TRANSFORMERS[which]
    config = getattr(transformers, f"{stem}Config")(**settings)
    if kind in ("tokens", "decoder"):
        config.use_cache = False
    module = getattr(transformers, f"{stem}{ending}")(config)
    if which.endswith(" encoder"):
        module = module.get_encoder()
    elif which.endswith(" decoder"):
        module = module.get_decoder()
    tokens = torch.randint(3, _VOCABULARY, (1, _TOKENS))
    both = {0: "batch", 1: "sequence"}
    if kind == "text":
        mask = torch.ones_like(tokens)
        return module, {"input_ids": tokens, "attention_mask": mask}, {"input_ids": both, "attention_mask": both}
    if kind == "tokens":
        return module, {"input_ids": tokens}, {"input_ids": both}
    if kind == "decoder":
        states = torch.randn(1, 12, _HIDDEN)
        example = {"input_ids": tokens, "encoder_hidden_states": states}
        return module, example, {"input_ids": both, "encoder_hidden_states": {0: "batch", 1: "source"}}
    key, size = {
        "mel": ("input_features", (1, 16, 64)),
        "image": ("pixel_values", (1, 3, _IMAGE, _IMAGE)),
        "wave": ("input_values", (1, 400)),
        "spectrogram": ("input_values", (1, 32, 16)),
    }[kind]
    return module, {key: torch.randn(size)}, {key: {0: "batch"}}


def _torchvision(which: str) -> tuple[Any, dict[str, Any], dict[str, dict[int, str]]]:
    import torch
    import torchvision

    folder, _, function = which.rpartition(".")
    family = getattr(torchvision.models, folder) if folder else torchvision.models
    module = getattr(family, function)(weights=None, **({"weights_backbone": None} if folder else {}))
    key = "input" if folder else "x"
    return module, {key: torch.randn(1, 3, _IMAGE, _IMAGE)}, {key: {0: "batch"}}


def _timm(which: str) -> tuple[Any, dict[str, Any], dict[str, dict[int, str]]]:
    import timm
    import torch

    module = timm.create_model(which, pretrained=False)
    wanted = module.default_cfg
    size = wanted["input_size"][1] if wanted.get("fixed_input_size") else 2 * _IMAGE
    return module, {"x": torch.randn(1, 3, size, size)}, {"x": {0: "batch"}}


def main() -> int:
    """Export one architecture."""
    name, sizes, folder = sys.argv[1:]
    export(name, sizes, Path(folder))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

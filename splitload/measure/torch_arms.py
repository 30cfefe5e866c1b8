"""Torch modules as a torch user loads them: what the program of a fresh process runs for these arms, by its path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_Opened = tuple[Callable[[], list[Any]], Callable[[], dict[str, Any]]]
_Open = Callable[[], _Opened]


def _torch(job: dict[str, Any], feeds: dict[str, Any]) -> _Open:
    """The module built, and its saved state dict read into it."""
    load_module = torch_module(job)
    return lambda: (_forward(load_module(), feeds), dict)


def torch_module(job: dict[str, Any]) -> Callable[[], Any]:
    """Import what a torch module needs; return the call that builds it and reads its state dict."""
    import torch

    build = _builder(job["module"])

    def load() -> Any:
        module = build()
        module.load_state_dict(torch.load(job["path"], weights_only=True))
        return module

    return load


def _torch_mmap(job: dict[str, Any], feeds: dict[str, Any]) -> _Open:
    """The module built without memory, and the mapped tensors of a safetensors file put into it."""
    load_module = mapped_module(job)
    return lambda: (_forward(load_module(), feeds), dict)


def mapped_module(job: dict[str, Any]) -> Callable[[], Any]:
    """Import what a torch module needs; return the call that builds it empty and maps its weights."""
    import torch
    from safetensors.torch import load_file

    build = _builder(job["module"])
    if "torch._dynamo" not in sys.modules:  # building on this device may have torch import it, for a second or more
        with torch.device("meta"):
            build()

    def load() -> Any:
        with torch.device("meta"):
            module = build()
        weights = load_file(job["path"])
        module.load_state_dict({name: weights.pop(name) for name in module.state_dict()}, assign=True)
        for name, value in weights.items():  # buffers that are not in the state dict, still empty
            owner, _, key = name.rpartition(".")
            setattr(module.get_submodule(owner), key, value)
        return module

    return load


def _builder(recipe: dict[str, str]) -> Callable[[], Any]:
    """Import what the module of a torch arm needs; return the call that builds it, with fresh weights."""
    import importlib

    import torch

    if recipe["package"] in ("torchvision", "transformers"):
        try:
            import torchvision
        except RuntimeError:  # its compiled operators do not load beside a CPU-only torch; these models need none
            for name in ("nms", "qnms"):
                signature = f"torchvision::{name}"
                torch.library.define(signature, "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            import torchvision
        except ImportError:
            if recipe["package"] == "torchvision":
                raise
    if recipe["package"] == "torchvision":
        return lambda: torchvision.models.get_model(recipe["name"], weights=None).eval()
    if recipe["package"] == "transformers":
        kind = getattr(importlib.import_module("transformers"), recipe["name"])
        return lambda: kind(kind.config_class()).eval()
    sys.path.insert(0, recipe["folder"])
    try:
        factory = getattr(importlib.import_module(recipe["package"]), recipe["name"])
    finally:
        sys.path.remove(recipe["folder"])

    def build() -> Any:
        made = factory()
        return (made[0] if isinstance(made, tuple) else made).eval()

    return build


def _forward(module: Any, feeds: dict[str, Any]) -> Callable[[], list[Any]]:
    """Return the call that runs a torch module, inputs by name where its forward method knows the names."""
    import inspect

    import torch

    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    by_name = tensors.keys() <= inspect.signature(module.forward).parameters.keys()
    args, kwargs = ((), tensors) if by_name else (tuple(tensors.values()), {})

    def run() -> list[Any]:
        with torch.inference_mode():
            result = module(*args, **kwargs)
        if torch.is_tensor(result):
            return [result.numpy()]
        return [leaf.numpy() for leaf in torch.utils._pytree.tree_leaves(result) if torch.is_tensor(leaf)]

    return run


ARMS: dict[str, Callable[[dict[str, Any], dict[str, Any]], _Open]] = {"torch": _torch, "torch-mmap": _torch_mmap}

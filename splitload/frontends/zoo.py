"""The model zoo: known networks with random weights, built once into a cache as ONNX files. Imports torch lazily."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from splitload.base.entries import is_whole, making
from splitload.base.errors import MissingPackageError, unknown_name
from splitload.frontends.torch import Example, export_module
from splitload.frontends.torch_packages import INSTALL, quiet, require

if TYPE_CHECKING:
    import torch

_Factory: TypeAlias = "Callable[[], tuple[torch.nn.Module, Example]]"

_VERSION = 1  # raise it when a change here changes a file
_SEED = 0


@dataclass(frozen=True)
class _Model:
    """One model of the zoo: what it is, how its file is written, and whose versions decide what is in it."""

    description: str
    write: Callable[[Path], None]
    packages: tuple[str, ...] = ()
    make: _Factory | None = None

    def folder_name(self, name: str) -> str:
        """Return the name of the cache folder; it changes with everything that changes the file."""
        try:
            versions = [f"-{package}{importlib.metadata.version(package)}" for package in self.packages]
        except importlib.metadata.PackageNotFoundError as e:
            raise MissingPackageError(f"zoo:{name} needs the package '{e.name}'. Install it: {INSTALL}") from e
        return f"{name}-v{_VERSION}{''.join(versions)}"


def names() -> dict[str, str]:
    """Return what the zoo holds: name to a one-line description."""
    return {name: model.description for name, model in _models().items()}


def path(name: str, cache_dir: Path) -> Path:
    """Return the path of a model's .onnx file, weights inside, building it if the cache does not hold it yet.

    All weights are random and seeded: the same versions of the packages give the same bytes. Batch size is 1, except
    for mobilenet_v1, where it is free. Building takes up to 90 seconds on 2 cores.

    Args:
        name: One of `names()`.
        cache_dir: The folder that keeps built models; made if it does not exist.

    Raises:
        UsageError: The zoo has no model of that name.
        MissingPackageError: The model is built with torch, and a package is missing; the message holds the cure.
        ModelError: The export does not compute what torch does.
        OutputError: The file cannot be written; nothing half-written stays.
    """
    models = _models()
    if name not in models:
        raise unknown_name("zoo model", name, models)
    model = models[name]
    folder = cache_dir / "zoo" / model.folder_name(name)
    if not is_whole(folder):
        require(*model.packages)
        with making(folder, f"zoo:{name}") as made:
            model.write(made / "model.onnx")
    return folder / "model.onnx"


def has_module(name: str) -> bool:
    """Return whether a model is built with torch, and all that builds it is installed."""
    model = _models()[name]
    return model.make is not None and all(importlib.util.find_spec(package) for package in model.packages)


def module(name: str) -> tuple[torch.nn.Module, Example]:
    """Return a model that is built with torch, with the weights its file has, and example inputs.

    Args:
        name: One of `names()` that has a torch module.
    """
    make = _models()[name].make
    assert make is not None, f"zoo:{name} has no torch module"  # noqa: S101
    return _settled(make)


def _models() -> dict[str, _Model]:
    return {
        "mobilenet_v1": _Model("MobileNet-V1 1.0 224, 17 MB; needs no torch", _write_mobilenet),
        "squeezenet1_1": _torchvision("squeezenet1_1", "SqueezeNet 1.1, 5 MB"),
        # Fresh residual branches as strong as their shortcuts amplify rounding to 5e-4; trained ones do not.
        "resnet152": _torchvision("resnet152", "ResNet-152, 240 MB", zero_init_residual=True),
        "densenet201": _torchvision("densenet201", "DenseNet-201, 80 MB; many small operators"),
        "inception_v3": _torch("inception_v3", _inception, "logits", "Inception-V3 299, 95 MB", "torchvision"),
        "vgg19": _torchvision("vgg19", "VGG-19, 575 MB; most of it in one layer"),
        # At torchvision's initial layer scale of 1e-6 the blocks would add nothing that could be seen in the output.
        "convnext_tiny": _torchvision("convnext_tiny", "ConvNeXt-T, 114 MB", layer_scale=1.0),
        "distilbert": _torch(
            "distilbert", _distilbert, "logits", "DistilBERT classifier, 128 tokens, 266 MB", "transformers"
        ),
        "lowlight": _torch("lowlight", _lowlight, "rgb", "U-Net for low-light photographs, 256x256 raw, 31 MB"),
    }


def _torchvision(name: str, description: str, **arguments: Any) -> _Model:
    return _torch(name, functools.partial(_classifier, name, **arguments), "logits", description, "torchvision")


def _torch(name: str, factory: _Factory, output: str, description: str, *packages: str) -> _Model:
    write = functools.partial(_write_torch, name, factory, output)
    return _Model(description, write, ("torch", "onnxscript", *packages), factory)


def _write_mobilenet(file: Path) -> None:
    from splitload.frontends import mobilenet

    file.write_bytes(mobilenet.build(_SEED).SerializeToString(deterministic=True))


def _write_torch(name: str, factory: _Factory, output: str, file: Path) -> None:
    module, example = _settled(factory)
    export_module(module, example, file, name=f"zoo:{name}", output_names=[output])


def seeded_classifier(name: str) -> tuple[torch.nn.Module, Example]:
    """Return a network of torchvision that is not in the zoo, with weights like those of the zoo, and its example.

    Args:
        name: As torchvision lists it.
    """
    return _settled(functools.partial(_classifier, name))


def _settled(factory: _Factory) -> tuple[torch.nn.Module, Example]:
    import torch

    with quiet(), torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(_SEED)
        module, example = factory()
        _settle(module, example)
    return module, example


def _settle(module: torch.nn.Module, example: Example) -> None:
    """Make fresh weights behave like trained ones.

    Fresh biases and scales are all zeros or ones: exporters share or drop them. And fresh batch normalization passes
    everything on unchanged, so activations grow with depth. So give the former noise, and the latter the statistics of
    two random batches.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    for weight in module.parameters():
        if weight.numel() > 1 and bool((weight == weight.flatten()[0]).all()):
            weight.add_(torch.randn_like(weight), alpha=0.05)
    norms = [layer for layer in module.eval().modules() if isinstance(layer, _BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over the batches
        norm.train()
    if norms and isinstance(example, tuple):
        for _ in range(2):
            module(torch.randn(4, *example[0].shape[1:]))
    module.eval()


def _classifier(name: str, size: int = 224, **arguments: Any) -> tuple[torch.nn.Module, Example]:
    import torch
    import torchvision

    return torchvision.models.get_model(name, weights=None, **arguments), (torch.randn(1, 3, size, size),)


def _inception() -> tuple[torch.nn.Module, Example]:
    from torch.nn import BatchNorm2d

    module, example = _classifier("inception_v3", size=299, init_weights=True)
    for layer in module.modules():
        if isinstance(layer, BatchNorm2d):
            layer.bias.fill_(0.5)  # keeps most ReLUs open: at 0, fresh weights amplify rounding to 3e-5
    return module, example


def _distilbert() -> tuple[torch.nn.Module, Example]:
    import torch
    import transformers

    config = transformers.DistilBertConfig()
    words = torch.randint(config.vocab_size, (1, 128))
    mask = (torch.arange(128) < 96).to(torch.int64).unsqueeze(0)  # 96 words, then padding
    module = transformers.DistilBertForSequenceClassification(config)
    return module, {"input_ids": words, "attention_mask": mask}


def _lowlight() -> tuple[torch.nn.Module, Example]:
    import torch

    from splitload.frontends import lowlight

    return lowlight.build(), (torch.randn(1, 4, 256, 256),)

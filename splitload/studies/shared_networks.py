"""Networks of the study of shared inferences that are not in the zoo, as factories that the command line takes."""

from __future__ import annotations

from typing import Any

from splitload.frontends.zoo import seeded_classifier


def vgg19_bn() -> Any:
    """Return VGG-19 with batch normalisation."""
    return seeded_classifier("vgg19_bn")


def densenet121() -> Any:
    """Return DenseNet-121."""
    return seeded_classifier("densenet121")


def resnet101() -> Any:
    """Return ResNet-101."""
    return seeded_classifier("resnet101")


def resnext101() -> Any:
    """Return ResNeXt-101, 32x8d."""
    return seeded_classifier("resnext101_32x8d")


def regnet_x_400mf() -> Any:
    """Return RegNet-X of 400 megaflops."""
    return seeded_classifier("regnet_x_400mf")


def convnext_base() -> Any:
    """Return ConvNeXt-B, of 36 blocks."""
    return seeded_classifier("convnext_base")


def convnext_large() -> Any:
    """Return ConvNeXt-L."""
    return seeded_classifier("convnext_large")


def vit_b_16() -> Any:
    """Return a vision transformer, in whose attention every token looks at all."""
    return seeded_classifier("vit_b_16")

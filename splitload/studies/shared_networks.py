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


def vit_b_16() -> Any:
    """Return a vision transformer, in whose attention every token looks at all."""
    return seeded_classifier("vit_b_16")

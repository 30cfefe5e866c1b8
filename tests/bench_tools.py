"""What the tests of the benchmark share."""

from __future__ import annotations

import importlib.util

import pytest

PACKAGES = {
    "torch": ("torch",),
    "torch-mmap": ("torch", "safetensors"),
    "openvino": ("openvino",),
    "ncnn": ("torch", "ncnn", "pnnx"),
}


def skip_without(arm: str) -> None:
    """Skip the test where a package of the arm is not installed."""
    for package in PACKAGES.get(arm, ()):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")

"""Bundles with a native and a portable variant."""

from __future__ import annotations

from pathlib import Path

from splitload.bundle.manifest import Variant
from splitload.bundle.read import read_manifest


def variants(bundle: Path) -> tuple[Variant, Variant]:
    native, portable = read_manifest(bundle, "hashes").variants
    assert (native.kind, portable.kind) == ("native", "portable")
    return native, portable

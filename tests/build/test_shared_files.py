"""Files that variants share: what a manifest says wrongly of them, or what is changed or missing, is found."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from two_variants import variants

from splitload import ParallelLoader
from splitload.base.errors import BundleError
from splitload.bundle.manifest import Manifest
from splitload.bundle.read import read_manifest
from splitload.bundle.validate import validate

pytestmark = pytest.mark.filterwarnings("ignore::splitload.PortableWarning")  # what is tried here is the portable graph


def own(bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(bundle, folder / "own.splitload", copy_function=shutil.copyfile))


def shared_file(bundle: Path) -> Path:
    return bundle / next(name for stage in variants(bundle)[1].stages for name in stage.shares)


def rename(data: dict[str, Any], shares: Any) -> None:
    data["variants"][1]["stages"][0]["shares"] = shares


BROKEN: dict[str, tuple[Callable[[Manifest], Any], str]] = {
    "no such file": (lambda _: ["native-99-0123456789ab.ort"], r"shares weights of \['native-99-0123456789ab.ort'\]"),
    "one of two": (
        lambda manifest: [next(manifest.files()).name, "other.bin"],
        r"shares weights of \['other.bin'\], which is no file of the bundle",
    ),
    "outside": (lambda _: ["../model.bin"], "no file of the bundle"),
    "the manifest": (lambda _: ["manifest.json"], "no file of the bundle"),
    "no name": (lambda _: [7], "shares must be names"),
    "no list": (lambda _: "native-00.ort", "shares must be"),
    "null": (lambda _: None, "shares must be"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_manifest_that_shares_what_is_not_there_is_refused(native_bundle: Path, name: str) -> None:
    make, message = BROKEN[name]
    manifest = read_manifest(native_bundle)
    data = json.loads(json.dumps(manifest.to_json()))
    assert validate(data) == manifest
    rename(data, make(manifest))
    with pytest.raises(BundleError, match=message):
        validate(data)


@pytest.mark.usefixtures("elsewhere")
def test_a_changed_shared_file_is_found_by_its_hash(native_bundle: Path, tmp_path: Path) -> None:
    bundle = own(native_bundle, tmp_path)
    ParallelLoader(bundle, verify="hashes").close()
    file = shared_file(bundle)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    ParallelLoader(bundle, verify="sizes").close()
    with pytest.raises(BundleError, match=rf"{file.name}' is not what the manifest says \(SHA-256 differs\)"):
        ParallelLoader(bundle, verify="hashes")


@pytest.mark.usefixtures("elsewhere")
def test_a_missing_shared_file_is_found(native_bundle: Path, tmp_path: Path) -> None:
    bundle = own(native_bundle, tmp_path)
    file = shared_file(bundle)
    file.unlink()
    with pytest.raises(BundleError, match=rf"{file.name}' is missing"):
        ParallelLoader(bundle)

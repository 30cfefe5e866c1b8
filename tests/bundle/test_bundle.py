"""The bundle: one error for each way to be wrong, written whole or not at all, and version 1 pinned by a golden one."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runtime_models import feeds

import splitload.bundle.read
import splitload.bundle.replace
from splitload import ParallelLoader, PortableWarning
from splitload.base.errors import BundleError, UsageError
from splitload.base.machine import cpu_architecture
from splitload.base.sealed import KEY
from splitload.bundle.manifest import MANIFEST, MEMORY_OF_STAGE
from splitload.bundle.read import MAX_MANIFEST_BYTES, read_manifest
from splitload.bundle.validate import MAX_STAGES, validate
from splitload.bundle.write import write_manifest

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def data(chain_bundle: Path) -> Any:
    data = json.loads((chain_bundle / MANIFEST).read_text())
    del data[KEY]  # what is changed by hand has no hash of its own
    return data


def test_round_trip(chain_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(chain_bundle, "hashes")
    assert validate(json.loads(json.dumps(manifest.to_json()))) == manifest
    write_manifest(tmp_path, manifest)
    assert (tmp_path / MANIFEST).read_bytes() == (chain_bundle / MANIFEST).read_bytes()


def edit(*path: Any) -> Callable[[Any], tuple[Any, Any]]:
    """Return a function that walks to the container of the last key."""

    def walk(data: Any) -> tuple[Any, Any]:
        for key in path[:-1]:
            data = data[key]
        return data, path[-1]

    return walk


STAGE = ("variants", 0, "stages", 1)
MISSING: list[tuple[Any, ...]] = [
    *((key,) for key in ("model", "model_sha256", "model_bytes", "created_with", "cpu", "device", "plan")),
    *((key,) for key in ("inputs", "outputs", "variants")),
    *(("variants", 0, key) for key in ("kind", "cpu", "runtime", "threads", "overlap", "stages")),
    *((*STAGE, key) for key in ("name", "blocks", "graph", "weights", "weights_bytes", "inputs", "outputs")),
    *((*STAGE, key) for key in ("prepack", "trainable")),
    *((*STAGE, "graph", key) for key in ("name", "bytes", "sha256")),
    *(("inputs", 0, key) for key in ("name", "type", "shape")),
]


@pytest.mark.parametrize("path", MISSING, ids=lambda path: ".".join(map(str, path)))
def test_missing_key(data: Any, path: tuple[Any, ...]) -> None:
    place, key = edit(*path)(data)
    del place[key]
    with pytest.raises(BundleError, match=rf"\.{key} is missing"):
        validate(data)


@pytest.mark.parametrize(
    "path", [(), ("variants", 0), STAGE, (*STAGE, "graph"), ("inputs", 0)], ids=lambda path: ".".join(map(str, path))
)
def test_unknown_key(data: Any, path: tuple[Any, ...]) -> None:
    place, key = edit(*path, "surprise")(data)
    place[key] = 1
    with pytest.raises(BundleError, match=r"unknown keys \['surprise'\]"):
        validate(data)


NEEDS = {"block": None, "operators": [], "ort_format": None}


def canary(graph: int = 8, answers: int = 8) -> dict[str, Any]:
    files = {"graph": ("canary.ort", graph), "answers": ("canary.bin", answers)}
    return {key: {"name": name, "bytes": size, "sha256": "0" * 64} for key, (name, size) in files.items()}


WRONG: list[tuple[tuple[Any, ...], Any, str]] = [
    (("format",), "zip", "not a splitload bundle's: format is 'zip'"),
    (("version",), 4, "has version 4, this splitload reads versions 1, 2 and 3"),
    (("version",), 1.0, "has version 1.0"),
    (("version",), True, "has version True"),
    (("model",), 3, "model must be a string"),
    (("model_sha256",), "A" * 64, "must be a SHA-256"),
    (("model_bytes",), -1, "count of at least 0"),
    (("model_bytes",), 1.5, "count of at least 0"),
    (("model_bytes",), True, "count of at least 0"),
    (("created_with",), [], "must be an object"),
    (("plan",), "none", "must be an object"),
    (("inputs",), {}, "must be a list"),
    (("inputs", 0), "x", r"inputs\[0\] must be an object"),
    (("inputs", 0, "shape"), "x", "shape must be a list"),
    (("inputs", 0, "shape"), [-1], "shape must be a list of sizes"),
    (("inputs", 0, "shape"), [1.5], "shape must be a list of sizes"),
    (("inputs", 1, "name"), "x", "inputs has a name twice"),
    (("outputs", 1, "name"), "y", "outputs has a name twice"),
    (("outputs",), [], "outputs has 0 entries"),
    (("variants",), [], "variants has 0 entries"),
    (("variants", 0, "kind"), "fast", "kind must be one of"),
    (("variants", 0, "cpu"), 1, "cpu must be a string"),
    (("variants", 0, "threads"), 0, "threads must be a count of at least 1"),
    (("model_bytes",), 10**400, "model_bytes must be a count of at least 0"),
    (("variants", 0, "overlap"), 1, "overlap must be true or false"),
    (("variants", 0, "stages"), [], "stages has 0 entries"),
    (("variants", 0, "stages"), [{}] * (MAX_STAGES + 1), f"allowed are 1 to {MAX_STAGES}"),
    (("variants", 0, "cpu"), "x86_64", "the last one must fit every processor"),
    (("variants", 0, "runtime"), "1.0", "the last one must fit every processor"),
    (
        ("variants", 0, "needs"),
        {"block": 8, "operators": [], "ort_format": "6"},
        "the last one must fit every processor",
    ),
    (("variants", 0, "needs"), {**NEEDS, "block": 0}, "block must be a count of at least 1"),
    (("variants", 0, "needs"), {**NEEDS, "operators": [1]}, "operators must be names"),
    (("variants", 0, "needs"), {**NEEDS, "ort_format": 6}, "ort_format must be a string"),
    (("variants", 0, "needs"), {**NEEDS, "speed": 6}, r"unknown keys \['speed'\]"),
    (("variants", 0, "needs"), {**NEEDS, "canary": None}, "canary must be an object"),
    (("variants", 0, "needs"), {**NEEDS, "canary": canary(answers=12)}, "answers in pairs"),
    (("variants", 0, "needs"), {**NEEDS, "canary": canary(answers=0)}, "answers in pairs"),
    (("variants", 0, "needs"), {**NEEDS, "canary": canary(answers=(1 << 20) + 8)}, "at most 1048576 bytes"),
    (("variants", 0, "needs"), {**NEEDS, "canary": canary(graph=(1 << 20) + 1)}, "at most 1048576 bytes"),
    ((*STAGE, "blocks"), [3], "two rising counts"),
    ((*STAGE, "blocks"), [3, 3], "two rising counts"),
    ((*STAGE, "blocks"), [-1, 3], "two rising counts"),
    ((*STAGE, "blocks"), [100, 101], "starts at block 100, expected"),
    ((*STAGE, "inputs"), "t", "inputs must be a list"),
    ((*STAGE, "inputs"), [1], "inputs must be names"),
    ((*STAGE, "inputs"), ["nowhere"], r"reads \['nowhere'\], which no earlier stage makes"),
    ((*STAGE, "outputs", 0, "name"), "x", "makes 'x', which is there already"),
    (("outputs", 0, "name"), "nowhere", r"no stage makes the model's outputs \['nowhere'\]"),
    ((*STAGE, "weights"), "none", "weights must be an object"),
    ((*STAGE, "read_order"), 1, "read_order must be a list"),
    ((*STAGE, "read_order"), [1, 1 << 40], "read_order must be places in a file of"),
    ((*STAGE, "read_order"), [0, 1], "read_order must be places in a file of"),
    ((*STAGE, "read_order"), [2, 2, 3], "read_order must rise"),
    ((*STAGE, "prepack"), None, "prepack must be true or false"),
    *(((*STAGE, name), -1, f"{name} must be a count") for name in MEMORY_OF_STAGE),
    *(
        (("variants", 0, "residency"), value, "residency must be 'stage' or a count")
        for value in (0, "all", None, True)
    ),
    *(
        ((*STAGE, "graph", "name"), name, "not a plain file name")
        for name in (
            "../x.onnx",
            "/etc/passwd",
            "a/b.onnx",
            "a\\b",
            "..",
            ".hidden",
            "",
            "a\n",
            "manifest.json",
            "n" * 129,
        )
    ),
]


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_wrong_value(data: Any, path: tuple[Any, ...], value: Any, message: str) -> None:
    place, key = edit(*path)(data)
    place[key] = value
    with pytest.raises(BundleError, match=message):
        validate(data)


def test_what_a_variant_needs_reads_back_and_its_files_are_the_bundles(data: Any) -> None:
    native = {**data["variants"][0], "kind": "native", "cpu": "x86_64+avx2", "runtime": "1.31.1"}
    native["needs"] = {**NEEDS, "block": 8, "operators": ["com.microsoft.nchwc:Conv"], "canary": canary()}
    data["variants"].insert(0, native)
    manifest = validate(data)
    assert manifest.to_json() == data
    assert {"canary.ort", "canary.bin"} <= {file.name for file in manifest.files()}


@pytest.mark.parametrize(
    ("path", "value"), [(("variants", 0, "residency"), 40_000_000), ((*STAGE, "working_bytes"), 0)]
)
def test_what_is_said_of_memory_makes_version_3_and_reads_back(data: Any, path: tuple[Any, ...], value: Any) -> None:
    assert validate(data).to_json()["version"] == 2
    place, key = edit(*path)(data)
    place[key] = value
    written = validate({**data, "version": 3}).to_json()
    assert written == {**data, "version": 3}
    assert validate(written) == validate(data)


def test_version_1_reads_as_version_2_with_nothing_said(data: Any) -> None:
    assert validate({**data, "version": 1}) == validate(data)


@pytest.mark.parametrize("data", [None, [], "bundle", 1])
def test_not_an_object(data: Any) -> None:
    with pytest.raises(BundleError, match="must be an object"):
        validate(data)


NO_JSON = {
    "empty": b"", "cut": b"{", "deep": b"[" * 100_000, "binary": b"\xff\xfe", "digits": b"9" * 10_000,
    "comma": b'{"a": 1,}', "no colon": b'{"a" 1}', "no comma": b'{"a": 1 "b": 2}', "open string": b'{"a',
    "escape": b'["\\q"]', "tab": b'["\t"]', "surrogate": b'["\\ud8', "list": b"[1", "more": b"{} {}", "word": b"nul",
    "key": b"{1: 2}",
}  # fmt: skip


@pytest.mark.parametrize("content", NO_JSON.values(), ids=NO_JSON)
def test_manifest_that_is_no_json(own_bundle: Path, content: bytes) -> None:
    (own_bundle / MANIFEST).write_bytes(content)
    with pytest.raises(BundleError, match=r"not JSON"):
        read_manifest(own_bundle)


def test_manifest_that_is_no_json_without_the_module_for_it(own_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "contents"
    folder.mkdir()
    for name, content in NO_JSON.items():
        (folder / name).write_bytes(content)
    code = """
import sys
from pathlib import Path
from splitload.base.errors import BundleError
from splitload.bundle.read import read_manifest
manifest = Path(sys.argv[1], "manifest.json")
for file in sorted(Path(sys.argv[2]).iterdir()):
    for name in [name for name in sys.modules if name.partition(".")[0] == "json"]:
        del sys.modules[name]
    manifest.write_bytes(file.read_bytes())
    try:
        read_manifest(manifest.parent)
    except BundleError as error:
        assert "not JSON" in str(error), error
        print(file.name)
"""
    words = [sys.executable, "-c", code, str(own_bundle), str(folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (done.stdout.splitlines(), done.stderr) == (sorted(NO_JSON), "")


def test_oversize_manifest_is_not_even_read(own_bundle: Path) -> None:
    with (own_bundle / MANIFEST).open("r+b") as file:
        file.truncate(MAX_MANIFEST_BYTES + 1)
    with pytest.raises(BundleError, match="is larger than"):
        read_manifest(own_bundle)


def test_what_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"there is no such folder"):
        read_manifest(tmp_path / "nothing")
    with pytest.raises(BundleError, match=r"it has no manifest\.json"):
        read_manifest(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match=r"it has no manifest\.json"):
        read_manifest(tmp_path / "file")


def test_missing_file(own_bundle: Path) -> None:
    next(own_bundle.glob("*-02-*.onnx")).unlink()
    with pytest.raises(BundleError, match="is missing"):
        read_manifest(own_bundle)
    read_manifest(own_bundle, "none")


def test_wrong_size(own_bundle: Path) -> None:
    with next(own_bundle.glob("*-02-*.onnx")).open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match="bytes, the manifest says"):
        read_manifest(own_bundle)


def test_wrong_hash(own_bundle: Path) -> None:
    path = next(own_bundle.glob("*-02-*.onnx"))
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    read_manifest(own_bundle, "sizes")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        read_manifest(own_bundle, "hashes")


def test_unreadable_file(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(splitload.bundle.read, "sha256_of", fail)
    with pytest.raises(BundleError, match="cannot read .*: Input/output error"):  # noqa: RUF043
        read_manifest(own_bundle, "hashes")


def test_unknown_verify(chain_bundle: Path) -> None:
    with pytest.raises(UsageError, match="verify is 'none', 'sizes' or 'hashes'"):
        read_manifest(chain_bundle, "all")  # type: ignore[arg-type]


@pytest.mark.parametrize("change", [{"cpu": "pdp11"}, {"runtime": "0.1.0", "needs": None}])
def test_made_for_another_machine_falls_back_to_the_portable_variant(
    native_bundle: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    other = Path(shutil.copytree(native_bundle, tmp_path / "other.splitload", copy_function=shutil.copyfile))
    manifest = read_manifest(native_bundle)
    first, last = manifest.variants
    write_manifest(other, manifest._replace(variants=(first._replace(**change), last)))  # type: ignore[arg-type]
    with pytest.warns(PortableWarning, match="specialize"):
        there = ParallelLoader(other)
    with ParallelLoader(native_bundle) as here, there:
        assert here.variant.kind == "native"
        assert there.variant.kind == "portable"
        for mine, theirs in zip(here.run(None, feeds()), there.run(None, feeds()), strict=True):
            assert np.allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("version", "kinds"), [(1, ["portable"]), *((version, ["native", "portable"]) for version in (2, 3))]
)
def test_golden_bundle(version: int, kinds: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made by `golden/make.py` when the version was fixed; never made anew.

    Those of versions 2 and 3 were made by onnxruntime 1.32.0 and have no blocked layout: their native parts run on any
    x86-64.
    """
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path))
    expected = json.loads((GOLDEN / "expected.json").read_text())
    given = {name: np.array(value, np.float32) for name, value in expected["feeds"].items()}
    is_portable = "native" not in kinds or not cpu_architecture().startswith("x86_64")
    told = contextlib.nullcontext() if is_portable is ("native" not in kinds) else pytest.warns(PortableWarning)
    with told, ParallelLoader(GOLDEN / f"v{version}.splitload", verify="hashes") as model:
        assert [variant.kind for variant in model.manifest.variants] == kinds
        assert model.variant.kind == ("portable" if is_portable else "native")
        assert len(model.variant.stages) == 3
        outputs = dict(zip([arg.name for arg in model.get_outputs()], model.run(None, given), strict=True))
    assert outputs.keys() == expected["outputs"].keys()
    for name, got in outputs.items():
        assert np.allclose(got, np.array(expected["outputs"][name], np.float32), atol=1e-5)

"""`splitload inspect --runtime`: what a bundle is loaded and run by here, and why, with a bundle or without one."""

from __future__ import annotations

import json
from pathlib import Path

import onnxruntime as ort
import pytest
from command_line import Run, json_of, one_line, process

from splitload.runtime.capi.find import VARIABLE, beside_module
from splitload.runtime.capi.table import API_VERSION


@pytest.fixture(autouse=True)
def no_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def test_what_there_is_here(cache: Path, tmp_path: Path) -> None:
    place = beside_module()
    told = json.loads(process(cache, tmp_path, "inspect", "--runtime", "--json").stdout)
    assert told == {
        "runtime": {
            "engine": "library",
            "why": f"{place} is onnxruntime {ort.__version__}",
            "library": place,
            "library_version": ort.__version__,
            "api_version": int(ort.__version__.split(".")[1]),
            "needed_api_version": API_VERSION,
            "module_version": ort.__version__,
            "variable": None,
        }
    }
    done = process(cache, tmp_path, "inspect", "--runtime")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        f"loaded by onnxruntime's C library: {place} is onnxruntime {ort.__version__}",
        f"C library: {place}, onnxruntime {ort.__version__} with version {ort.__version__.split('.')[1]} of the C API; "
        f"version {API_VERSION} is needed",
        f"Python module: {ort.__version__}",
        "SPLITLOAD_ORT_LIBRARY: not set",
    ]


def test_a_library_that_cannot_be_used(
    cache: Path, chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = str(tmp_path / "missing.so")
    monkeypatch.setenv(VARIABLE, missing)
    for words in (["--runtime"], [chain_bundle, "--runtime"]):
        done = process(cache, tmp_path, "inspect", *words, "--json")
        assert (done.returncode, done.stderr.count("\n")) == (0, 1)
        told = json.loads(done.stdout)["runtime"]
        assert told["why"].startswith(f"'{missing}' cannot be opened as onnxruntime's C library")
        expected = {"engine": "python", "library": missing, "library_version": None, "api_version": None}
        assert told == told | expected | {"variable": missing}
    assert f"C library: {missing}; version {API_VERSION} is needed\n" in process(
        cache, tmp_path, "inspect", "--runtime"
    ).stdout  # fmt: skip


def test_beside_what_a_bundle_holds(cli: Run, chain_bundle: Path) -> None:
    plain, told = (json_of(cli("inspect", chain_bundle, *words, "--json")) for words in ([], ["--runtime"]))
    assert told == plain | {"runtime": told["runtime"]}
    assert told["runtime"]["why"] == "onnxruntime is imported already"
    assert cli("inspect", chain_bundle, "--runtime")[1].startswith(cli("inspect", chain_bundle)[1])


@pytest.mark.parametrize("words", [[], ["--why"], ["--why", "--runtime"], ["--json"]], ids=" ".join)
def test_without_a_bundle_it_says_what_is_missing(cli: Run, words: list[str]) -> None:
    line = one_line(cli("inspect", *words), 2)
    assert "the following arguments are required: BUNDLE (see 'splitload inspect --help')" in line


def test_a_bundle_that_is_none_is_one_line(cli: Run) -> None:
    assert "is not a bundle" in one_line(cli("inspect", "nothing", "--runtime"), 1)

"""A C library that is named and cannot be used: the Python module takes over and says so, or the request is refused."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import runtime_models

from splitload import ParallelLoader
from splitload.base.errors import LibraryWarning, UsageError
from splitload.bundle.read import read_manifest
from splitload.runtime import engine
from splitload.runtime.capi import library as module
from splitload.runtime.capi.find import VARIABLE
from splitload.runtime.capi.table import API_VERSION
from splitload.runtime.options import CallerOptions

Named = Callable[[Path], Path]


def missing(folder: Path) -> Path:
    return folder / "missing.so"


def no_library(folder: Path) -> Path:
    (folder / "none.so").write_text("no library")
    return folder / "none.so"


@pytest.fixture(autouse=True)
def nothing_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_told", set())
    monkeypatch.delenv(VARIABLE, raising=False)


def answers(bundle: Path, **settings: Any) -> tuple[str, str]:
    with ParallelLoader(bundle, **settings) as model:
        model.run(None, runtime_models.feeds())
        return model.engine, model.why_engine


@pytest.mark.parametrize("named", [missing, no_library])
def test_the_module_takes_over_and_it_is_said_once(chain_bundle: Path, tmp_path: Path, named: Named) -> None:
    path = named(tmp_path)
    why = f"'{path}' cannot be opened as onnxruntime's C library: "
    with pytest.warns(LibraryWarning) as caught:
        used, told = answers(chain_bundle, library=path)
    assert (used, told.startswith(why)) == ("python", True)
    (warning,) = caught
    text = str(warning.message)
    assert text == f"{told}; onnxruntime's Python module is used instead"
    assert "\n" not in text
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answers(chain_bundle, library=str(path)) == (used, told)


def test_one_with_an_older_interface_too(chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(GetVersionString=lambda: b"1.5.0", GetApi=lambda version: None)
    monkeypatch.setattr(module, "_entry", lambda _: old)
    monkeypatch.setattr(module.ctypes, "CDLL", lambda path: None)
    with pytest.warns(LibraryWarning, match=f"is onnxruntime 1.5.0, without version {API_VERSION} of the C API; onnx"):
        assert answers(chain_bundle, library=tmp_path / "old.so")[0] == "python"


def test_one_of_an_older_release_too(chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "library", lambda named: SimpleNamespace(version="1.24.0", path=str(named)))
    with pytest.warns(LibraryWarning, match=r"onnxruntime 1\.24\.0 is older than splitload needs"):
        assert answers(chain_bundle, library=tmp_path / "old.so")[0] == "python"


@pytest.mark.parametrize("named", [missing, no_library])
def test_asked_for_the_library_it_is_refused(chain_bundle: Path, tmp_path: Path, named: Named) -> None:
    with pytest.raises(UsageError, match=r"the engine 'library' cannot be used: .* cannot be opened as"):
        ParallelLoader(chain_bundle, engine="library", library=named(tmp_path))


def test_what_is_not_looked_at_is_not_told_of(
    chain_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert answers(chain_bundle, engine="python", library=missing(tmp_path)) == ("python", "it is asked for")
    monkeypatch.setenv(VARIABLE, str(missing(tmp_path)))
    assert answers(chain_bundle) == ("python", "onnxruntime is imported already")


def test_the_variable_is_told_of_in_a_process_of_its_own(chain_bundle: Path, tmp_path: Path) -> None:
    code = f"""
import os, sys, warnings
os.environ[{VARIABLE!r}] = {str(missing(tmp_path))!r}
from splitload import ParallelLoader
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(2):
        ParallelLoader(sys.argv[1]).close()
print([(each.category.__name__, each.filename) for each in caught])
"""
    done = subprocess.run([sys.executable, "-c", code, chain_bundle], capture_output=True, text=True, timeout=60)
    assert (done.stderr, done.stdout) == ("", "[('LibraryWarning', '<string>')]\n")


def test_the_command_line_notes_it_in_one_line(chain_bundle: Path, tmp_path: Path) -> None:
    environment = {VARIABLE: str(missing(tmp_path)), "SPLITLOAD_CACHE": str(tmp_path / "cache"), "PATH": ""}
    words = [sys.executable, "-m", "splitload", "run", str(chain_bundle)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith(f"'{missing(tmp_path)}' cannot be opened as onnxruntime's C library: ")
    assert "on 2 loading threads, by onnxruntime's Python module\n" in done.stdout


@pytest.mark.parametrize("path", ["\udcff.so", "a\0b"])
def test_a_name_that_no_file_has_is_told_of_too(chain_bundle: Path, path: str) -> None:
    with pytest.warns(LibraryWarning, match="cannot be opened as"):
        assert answers(chain_bundle, library=path)[0] == "python"


def test_an_error_that_brings_the_module_leaves_later_loaders_to_the_library(chain_bundle: Path) -> None:
    code = """
import array, sys
from splitload import ParallelLoader

def loaded():
    with ParallelLoader(sys.argv[1], arrays="buffers") as model:
        try:
            model.run(None, {"x": array.array("f", [1.0]), "z": array.array("f", [1.0])})
        except Exception as error:
            return type(error).__name__, model.engine, "onnxruntime" in sys.modules

print(loaded(), loaded())
import onnxruntime
print(ParallelLoader(sys.argv[1], engine="python").engine)
"""
    done = subprocess.run([sys.executable, "-c", code, str(chain_bundle)], capture_output=True, text=True, timeout=60)
    told = ("InvalidArgument", "library", True)
    assert (done.stdout.splitlines(), done.stderr) == ([f"{told} {told}", "python"], "")


@pytest.mark.parametrize(("kinds", "expected"), [({"tensor(float)"}, True), ({"tensor(bfloat16)"}, False)])
def test_what_the_module_cannot_return_is_left_to_the_library(
    chain_bundle: Path, monkeypatch: pytest.MonkeyPatch, kinds: set[str], expected: bool
) -> None:
    monkeypatch.setattr(engine, "_types", lambda _: kinds)
    assert (engine._obstacle("auto", read_manifest(chain_bundle), CallerOptions(), None) is not None) is expected

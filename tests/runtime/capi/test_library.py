"""The C library: found without the Python module, refused where it cannot be used, and called by name."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import onnxruntime as ort
import pytest

from splitload.runtime.capi import library as module
from splitload.runtime.capi.library import (
    Library,
    NoLibraryError,
    RuntimeFailure,
    beside_module,
    is_library,
    library,
    runtime_error,
)
from splitload.runtime.capi.table import API_VERSION, FUNCTIONS


@pytest.mark.parametrize(
    ("name", "platform", "is_one"),
    [
        ("libonnxruntime.so.1.32.0", "linux", True),
        ("libonnxruntime.so", "linux", True),
        ("libonnxruntime_providers_shared.so", "linux", False),
        ("onnxruntime_pybind11_state.cpython-311-x86_64-linux-gnu.so", "linux", False),
        ("libonnxruntime.1.32.0.dylib", "darwin", True),
        ("libonnxruntime.so.1.32.0", "darwin", False),
        ("onnxruntime.dll", "win32", True),
        ("onnxruntime_providers_shared.dll", "win32", False),
        ("onnxruntime.lib", "win32", False),
    ],
)
def test_the_library_is_known_by_its_name(name: str, platform: str, is_one: bool) -> None:
    assert is_library(name, platform) is is_one


def wheel(folder: Path, *files: str) -> Path:
    (folder / "onnxruntime" / "capi").mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").write_text("raise AssertionError('it is not imported')")
    for name in files:
        (folder / "onnxruntime" / "capi" / name).touch()
    return folder


@pytest.mark.parametrize(
    ("platform", "name"),
    [("linux", "libonnxruntime.so.9"), ("darwin", "libonnxruntime.9.dylib"), ("win32", "onnxruntime.dll")],
)
def test_it_is_found_without_importing_the_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, name: str
) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.syspath_prepend(str(wheel(tmp_path, "build_and_package_info.py", name)))
    assert Path(beside_module()) == tmp_path / "onnxruntime" / "capi" / name
    assert "onnxruntime" not in sys.modules


def test_a_module_that_is_imported_says_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    imported = ModuleType("onnxruntime")
    imported.__path__ = [str(wheel(tmp_path, "libonnxruntime.so.9") / "onnxruntime")]
    monkeypatch.setitem(sys.modules, "onnxruntime", imported)
    monkeypatch.setattr(sys, "platform", "linux")
    assert Path(beside_module()).parent == tmp_path / "onnxruntime" / "capi"


def test_a_wheel_without_the_library_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.syspath_prepend(str(wheel(tmp_path)))
    with pytest.raises(NoLibraryError, match="brings no C library"):
        beside_module()


def test_no_wheel_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "meta_path", [])
    with pytest.raises(
        NoLibraryError, match="onnxruntime is not installed, and SPLITLOAD_ORT_LIBRARY names no library"
    ):
        beside_module()


def test_it_has_the_version_of_the_module_and_is_opened_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(module.VARIABLE, raising=False)
    found = library()
    assert found is library()
    assert found.version == ort.__version__
    assert found.env is found.env


def test_a_library_that_is_named_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "another.so"
    link.symlink_to(beside_module())
    assert library(link).path == str(link)
    monkeypatch.setenv(module.VARIABLE, str(link))
    assert library().path == str(link)


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_file_that_is_no_library_is_told_of(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "lib.so").write_bytes(content)
    for path in (tmp_path / "lib.so", tmp_path / "missing.so", tmp_path):
        with pytest.raises(NoLibraryError, match="cannot be opened as onnxruntime's C library"):
            library(path)


def test_another_library_is_told_of() -> None:
    with pytest.raises(NoLibraryError, match="cannot be opened as onnxruntime's C library"):
        library(ctypes.util.find_library("c"))


def test_an_older_interface_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    old = SimpleNamespace(GetVersionString=lambda: b"1.5.0", GetApi=lambda version: None)
    monkeypatch.setattr(module, "_entry", lambda _: old)
    with pytest.raises(NoLibraryError, match=rf"is onnxruntime 1\.5\.0, without version {API_VERSION} of the C API"):
        Library(beside_module())


def test_the_installed_runtime_has_the_table_that_is_expected() -> None:
    """Fails where a newer onnxruntime has dropped the version of the interface, or moved functions that are used."""
    found = library()
    for name in {**module._RETURN_STATUS, **module._OTHERS}:
        assert name in FUNCTIONS, name
        assert callable(getattr(found, name)), name
        assert found._table[FUNCTIONS.index(name)], name
    assert FUNCTIONS[:11] == [
        "CreateStatus", "GetErrorCode", "GetErrorMessage", "CreateEnv", "CreateEnvWithCustomLogger",
        "EnableTelemetryEvents", "DisableTelemetryEvents", "CreateSession", "CreateSessionFromArray", "Run",
        "CreateSessionOptions",
    ]  # fmt: skip
    with pytest.raises(AttributeError):
        found.CreateNothing  # noqa: B018


def test_what_the_runtime_says_is_the_error_of_the_module() -> None:
    found = library()
    options = found.made(found.CreateSessionOptions)
    with pytest.raises(RuntimeFailure, match="protobuf parsing failed") as caught:
        found.made(found.CreateSessionFromArray, found.env, b"junk", 4, options)
    found.ReleaseSessionOptions(options)
    try:
        ort.InferenceSession(b"junk")
    except Exception as error:
        assert type(caught.value.error()) is type(error)
        assert str(caught.value.error()) == str(error)


@pytest.mark.parametrize("code", range(1, 12))
def test_every_code_has_its_class(code: int) -> None:
    error = RuntimeFailure(code, "why").error()
    assert type(error).__name__ == module._ERRORS[code]
    assert str(error).startswith(f"[ONNXRuntimeError] : {code} : ")
    assert str(error).endswith(" : why")


def test_without_the_module_errors_are_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime.capi", None)
    assert type(runtime_error("InvalidArgument", "why")) is RuntimeError
    assert type(RuntimeFailure(99, "why").error()) is RuntimeError


def test_a_child_that_is_forked_while_it_is_opened_opens_it_too(tmp_path: Path) -> None:
    code = """
import os, sys, threading
from splitload.runtime.capi.library import library
threads = [threading.Thread(target=lambda: library().env) for _ in range(4)]
for thread in threads:
    thread.start()
child = os.fork()
if child == 0:
    os._exit(0 if library().env else 1)
assert os.waitpid(child, 0)[1] == 0
for thread in threads:
    thread.join()
assert "onnxruntime" not in sys.modules and "numpy" not in sys.modules
print("opened")
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "opened\n", "")


def test_names_that_python_cannot_decode_are_paths_too(tmp_path: Path) -> None:
    place = os.fsencode(tmp_path) + b"/\xff.so"
    shutil.copy(beside_module(), place)
    found: Any = library(os.fsdecode(place))
    assert found.version == ort.__version__

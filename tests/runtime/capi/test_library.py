"""The C library: found without the Python module, refused where it cannot be used, and called by name."""

from __future__ import annotations

import array
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
from splitload.runtime.capi.engine import LibraryEngine
from splitload.runtime.capi.find import VARIABLE, NoLibraryError, beside_module, is_library
from splitload.runtime.capi.library import Library, RuntimeFailure, library, runtime_error
from splitload.runtime.capi.memory import memory_of
from splitload.runtime.capi.session import _path, open_session, value_of
from splitload.runtime.capi.table import API_VERSION, FUNCTIONS
from splitload.runtime.capi.tensor import tensor_of
from splitload.runtime.tiny import TINY_MODEL


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
        ("ONNXRuntime.DLL", "win32", True),
        ("libonnxruntime.so.1.32.0", "win32", False),
        ("libonnxruntime.dylib", "darwin", True),
        ("libonnxruntime_providers_shared.dylib", "darwin", False),
        ("onnxruntime.dll", "linux", False),
        ("libonnxruntime.so", "android", True),
    ],
)
def test_the_library_is_known_by_its_name(name: str, platform: str, is_one: bool) -> None:
    assert is_library(name, platform) is is_one


BESIDE = {  # what else lies in the wheel's folder
    "linux": ("build_and_package_info.py", "libonnxruntime_providers_shared.so", "onnxruntime_pybind11_state.so"),
    "darwin": ("build_and_package_info.py", "onnxruntime_pybind11_state.so"),
    "win32": ("DirectML.dll", "onnxruntime_providers_shared.dll", "onnxruntime.lib", "onnxruntime_pybind11_state.pyd"),
}


def wheel(folder: Path, *files: str) -> Path:
    (folder / "onnxruntime" / "capi").mkdir(parents=True)
    (folder / "onnxruntime" / "__init__.py").write_text("raise AssertionError('it is not imported')")
    for name in files:
        (folder / "onnxruntime" / "capi" / name).touch()
    return folder


@pytest.mark.parametrize(
    ("platform", "name"),
    [
        ("linux", "libonnxruntime.so.9"),
        ("darwin", "libonnxruntime.9.dylib"),
        ("win32", "onnxruntime.dll"),
    ],
)
def test_it_is_found_without_importing_the_module(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, platform: str, name: str
) -> None:
    monkeypatch.delitem(sys.modules, "onnxruntime")
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.syspath_prepend(str(wheel(tmp_path, *BESIDE[platform], name)))
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
    monkeypatch.delenv(VARIABLE, raising=False)
    found = library()
    assert found is library()
    assert found.version == ort.__version__
    assert found.env is found.env


def test_a_library_that_is_named_is_opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    link = tmp_path / "another.so"
    link.symlink_to(beside_module())
    assert library(link).path == str(link)
    monkeypatch.setenv(VARIABLE, str(link))
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
    assert len(FUNCTIONS) == len(set(FUNCTIONS))
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


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system does not tell what is mapped where")
def test_every_function_lies_in_the_code_of_the_library() -> None:
    """A table that is shorter than the binding expects is followed by something else."""
    found = library()
    place = os.path.realpath(found.path)
    code = [
        tuple(int(end, 16) for end in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(place) and "x" in line.split()[1]
    ]
    for name, address in zip(FUNCTIONS, found._table, strict=True):
        assert any(first <= address < last for first, last in code), name


def test_functions_do_what_their_names_say() -> None:
    """One from each part of the table, the last ones that are used among them: in another's place they would not."""
    found = library()
    info = found.made(found.CreateCpuMemoryInfo, 1, 0)
    found.ReleaseMemoryInfo(info)
    options = found.made(found.CreateSessionOptions)
    found.AddSessionConfigEntry(options, b"session.disable_prepacking", b"1")
    with pytest.raises(RuntimeFailure):
        found.AddSessionConfigEntry(options, b"", b"1")
    found.ReleaseSessionOptions(options)
    run_options = found.made(found.CreateRunOptions)
    found.AddRunConfigEntry(run_options, b"memory.enable_memory_arena_shrinkage", b"cpu:0")
    found.ReleaseRunOptions(run_options)
    session = open_session(found, TINY_MODEL, {}, threads=1)
    assert (session.input_names(), session.output_names()) == (["x"], ["y"])
    value = value_of(found, memory_of(array.array("f", [1.5])))
    (answer,) = session.run(["y"], {"x": value}, {})
    memory = answer.memory
    assert (memory.element.type, memory.shape, tensor_of(memory).tolist()) == ("tensor(float)", (1,), [1.5])


def test_a_version_that_the_library_lacks_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "API_VERSION", 9999)
    with pytest.raises(NoLibraryError, match=rf"is onnxruntime {ort.__version__}, without version 9999 of the C API$"):
        Library(beside_module())


def test_paths_are_wide_characters_on_windows_alone(tmp_path: Path) -> None:
    class Named(os.PathLike):  # type: ignore[type-arg]
        def __fspath__(self) -> str:
            return "mödel 模\U0001f40d.ort"

    for path in (Named(), "mödel 模\U0001f40d.ort", Path("mödel 模\U0001f40d.ort")):
        wide, narrow = _path(path, "win32"), _path(path, "linux")
        assert (wide.value, wide._type_) == ("mödel 模\U0001f40d.ort", ctypes.c_wchar)
        assert (narrow.value, narrow._type_) == (os.fsencode("mödel 模\U0001f40d.ort"), ctypes.c_char)


@pytest.mark.parametrize("name", ["mödel 模\U0001f40d.onnx", os.fsdecode(b"\xff.onnx")])
def test_files_of_any_name_are_opened(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(TINY_MODEL)
    for path in (file, str(file)):
        assert open_session(library(), path, {}, threads=1).output_names() == ["y"]
    with pytest.raises(RuntimeFailure):
        open_session(library(), tmp_path / "missing.onnx", {}, threads=1)


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


def test_a_file_that_is_missing_is_said_in_the_words_of_the_module(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.onnx")
    with pytest.raises(Exception, match="NO_SUCHFILE") as caught:
        ort.InferenceSession(missing)
    with pytest.raises(Exception, match="NO_SUCHFILE") as ours:
        LibraryEngine(library()).open(
            missing, prepack=False, mapped=True, optimize=False, background=False, share_memory=False
        )
    assert type(ours.value) is type(caught.value)


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

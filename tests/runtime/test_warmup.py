"""What onnxruntime sets up once a process is begun by the import of splitload, and harms nobody."""

from __future__ import annotations

import _struct
import _thread
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime.capi.onnxruntime_inference_collection as stock
import pytest

from splitload.runtime import forks, warmup
from splitload.runtime.capi import early, library
from splitload.runtime.capi.find import NoLibraryError, beside_module

WAIT_S = 60
NAME = "splitload-warm-up"


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT_S)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def warm_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == NAME]


def test_the_session_is_made_on_another_thread_and_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    real, made, go = stock.InferenceSession, [], threading.Event()

    def session(*arguments: object, **options: object) -> object:
        go.wait(WAIT_S)
        made.append((threading.current_thread().name, real(*arguments, **options)))
        return made[-1][1]

    monkeypatch.setattr(stock, "InferenceSession", session)
    warmup.warm_up()
    (thread,) = warm_threads()
    assert not thread.daemon  # the interpreter waits for it
    go.set()
    thread.join(WAIT_S)
    ((name, tiny),) = made
    assert name == NAME
    np.testing.assert_array_equal(tiny.run(None, {"x": np.ones(1, np.float32)}), [[1.0]])


def test_what_fails_is_left_to_who_needs_a_session(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stock, "InferenceSession", None)
    warmup.warm_up()
    for thread in warm_threads():
        thread.join(WAIT_S)
    monkeypatch.setattr(threading.Thread, "start", lambda _: (_ for _ in ()).throw(RuntimeError("no thread left")))
    warmup.warm_up()
    assert capsys.readouterr().err == ""


def test_the_library_begins_where_the_module_is_not_imported() -> None:
    code = """
import sys, time
from splitload import ParallelLoader
from splitload.runtime.capi.library import library
from splitload.runtime import forks
while forks._inside:
    time.sleep(0.01)
print(library()._env is not None, sorted({"numpy", "onnxruntime"} & set(sys.modules)))
"""
    assert run(code) == "True []\n"


@pytest.mark.parametrize("before", ["", "import onnxruntime\n"], ids=["alone", "after onnxruntime"])
def test_the_drop_in_class_has_the_module_begin(before: str) -> None:
    code = f"""{before}
import threading
import splitload.runtime.stock as stock
begun = threading.Event()
stock.first_session = begun.set
import splitload
splitload.InferenceSession
print(begun.wait({WAIT_S}))
"""
    assert run(code) == "True\n"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_what_may_hang_when_it_is_opened_is_not_opened_where_no_interrupt_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.mkfifo(tmp_path / "pipe")
    opened: list[tuple[str, int]] = []

    def refuse(path: str) -> None:
        opened.append((path, threading.get_ident()))
        raise NoLibraryError(path)

    monkeypatch.setattr(library, "library", refuse)
    paths = [str(tmp_path / name) for name in ("pipe", "missing", ".")]
    for path in paths:
        early.begin(path)
    assert opened == [(path, threading.get_ident()) for path in paths]
    assert not forks._inside


def environment_of(path: Path) -> int | None:
    early.begin(str(path))
    return early.environment(str(path))


def test_the_environment_is_made_before_ctypes_is_there() -> None:
    code = """
import sys
from splitload.runtime.capi import early
from splitload.runtime.capi.find import beside_module
path = beside_module()
early.begin(path)
print({"ctypes", "threading"} & set(sys.modules) or "neither")
print(early.environment(path) is not None)
from splitload.runtime.capi.library import library
print(library().env.value == early.environment(path))
"""
    assert run(code) == "neither\nTrue\nTrue\n"


def test_the_environment_of_another_file_is_left_to_who_needs_it(tmp_path: Path) -> None:
    text = tmp_path / "libonnxruntime.so"
    text.write_text("no library\n")
    assert environment_of(text) is None
    assert environment_of(Path(_struct.__file__)) is None  # a library, but another one
    with pytest.raises(NoLibraryError, match="cannot be opened"):
        library.library(text)


def test_the_environment_of_an_older_library_is_left_to_who_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "API_VERSION", 10_000)
    monkeypatch.setattr(early, "_begun", {})
    monkeypatch.setattr(library, "set_up", None)  # it would have the library complain once more
    assert environment_of(Path(beside_module())) is None
    while forks._inside:
        time.sleep(0.01)


def test_no_environment_is_waited_for_where_the_system_has_no_thread_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*_: object) -> int:
        raise RuntimeError("no thread left")

    monkeypatch.setattr(forks._thread, "start_new_thread", start)
    monkeypatch.setattr(early, "_begun", {})
    assert environment_of(Path(beside_module())) is None
    assert not forks._inside


@pytest.mark.parametrize("starts", [False, True], ids=["before the thread starts", "once it has"])
def test_an_interrupt_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch, *, starts: bool) -> None:
    real = _thread.start_new_thread

    def start(*arguments: Any) -> None:
        if starts:
            real(*arguments)
        raise KeyboardInterrupt

    path = beside_module()
    monkeypatch.setattr(early, "_begun", {})
    monkeypatch.setattr(forks._thread, "start_new_thread", start)
    with pytest.raises(KeyboardInterrupt):
        early.begin(path)
    assert early.environment(path) is None  # who needs it makes it
    monkeypatch.setattr(forks._thread, "start_new_thread", real)
    assert environment_of(Path(path)) is not None
    forks._before()  # would wait for what never ends
    forks._gate.release()
    assert not forks._inside


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_who_audits_what_is_opened_may_refuse_it() -> None:
    code = """
import sys
from splitload.runtime.capi import early
from splitload.runtime.capi.find import beside_module
def refuse(event, arguments):
    if event == "ctypes.dlopen" and "onnxruntime" in str(arguments):
        raise PermissionError(event)
sys.addaudithook(refuse)
early.begin(beside_module())
print(early.environment(beside_module()), "onnxruntime" in open("/proc/self/maps").read())
"""
    assert run(code) == "None False\n"


@pytest.mark.parametrize("event", ["ctypes.dlsym/handle", "ctypes.dlsym"])
def test_who_audits_calls_may_refuse_one(event: str) -> None:
    code = f"""
import sys
from splitload.runtime.capi import early
from splitload.runtime.capi.find import beside_module
def refuse(event, arguments):
    if event == "{event}" and "OrtGetApiBase" in arguments:
        raise RuntimeError(event)
sys.addaudithook(refuse)
early.begin(beside_module())
print(early.environment(beside_module()) is not None)
"""
    assert run(code) == f"{event == 'ctypes.dlsym'}\n"  # by which `ctypes` asks, later


def test_nothing_is_begun_by_who_does_not_load() -> None:
    assert run("import splitload, sys; print(sorted({'ctypes', 'threading', 'typing'} & set(sys.modules)))") in (
        "[]\n", "['threading', 'typing']\n",
    )  # fmt: skip


def test_the_program_may_exit_right_after_the_import() -> None:
    assert run("import onnxruntime, splitload, threading; print(threading.active_count())") in ("1\n", "2\n")


def test_a_thread_pool_of_the_callers_is_no_word_on_the_console() -> None:
    assert run("import onnxruntime; onnxruntime.set_global_thread_pool_sizes(2, 1); import splitload") == ""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_no_child_is_forked_while_the_runtime_holds_its_locks() -> None:
    code = """
import os, threading, time
import onnxruntime
from onnxruntime.capi import onnxruntime_inference_collection as stock
lock, real = threading.Lock(), stock.InferenceSession
def session(*arguments, **options):  # a child that inherits the lock taken, as one of the runtime's own, waits forever
    with lock:
        time.sleep(0.5)
        return real(*arguments, **options)
stock.InferenceSession = session
import splitload
child = os.fork()
if not child:
    os._exit(7 if lock.acquire(timeout=5) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    assert run(code) == "7\n"

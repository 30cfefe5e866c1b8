"""A Ctrl-C ends a command with 130 and at most one line, whether it starts, works or ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from splitload import cli
from splitload.base.interrupts import is_interrupt

MODULE, SCRIPT = [sys.executable, "-m", "splitload"], [str(Path(sys.executable).with_name("splitload"))]
# Python runs this before it looks for splitload. It sends the signal where a module is looked for, some time after, or
# at the exit, before or after what the command itself does there.
PRESS = """
import atexit, os, signal, sys, threading, time

module, _, delay = os.environ["PRESS_AT"].partition("+")


def press(delay=0.0):
    time.sleep(delay)
    os.kill(os.getpid(), signal.SIGINT)


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == module:
            sys.meta_path.remove(self)
            if delay:
                threading.Thread(target=press, args=(float(delay),), daemon=True).start()
            else:
                press()
        if name == "splitload.__main__" and module == "exit":
            atexit.register(press)


sys.meta_path.insert(0, Finder())
if module == "last":
    atexit.register(press)
"""


def pressed(folder: Path, at: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run a command into which a Ctrl-C comes."""
    (folder / "sitecustomize.py").write_text(PRESS)
    environment = {**os.environ, "PYTHONPATH": str(folder), "PRESS_AT": at, "SPLITLOAD_CACHE": str(folder / "cache")}
    return subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment)


@pytest.mark.parametrize("program", [MODULE, SCRIPT], ids=["module", "script"])
@pytest.mark.parametrize(
    "at", ["splitload.runtime.warmup", "splitload.cli", "splitload.commands.run", "numpy", "onnxruntime"]
)
def test_while_something_is_imported(chain_bundle: Path, tmp_path: Path, program: list[str], at: str) -> None:
    command = "specialize" if at == "numpy" else "run"  # which does without numpy
    done = pressed(tmp_path, at, *program, command, str(chain_bundle))
    assert (done.returncode, done.stderr, done.stdout) == (130, "splitload: interrupted; nothing was written\n", "")


@pytest.mark.parametrize("delay", ["0", "0.02", "0.05", "0.1", "0.2", "0.4", "0.8"])
def test_at_any_time(chain_bundle: Path, tmp_path: Path, delay: str) -> None:
    done = pressed(tmp_path, f"splitload.runtime.warmup+{delay}", *MODULE, "run", str(chain_bundle))
    assert done.returncode in (0, 130)
    assert done.stderr in ("", "splitload: interrupted; nothing was written\n")


@pytest.mark.parametrize(("at", "code"), [("exit", 130), ("last", 0)])  # Python itself ends last, and calls nobody
@pytest.mark.parametrize("words", [["run"], ["--version"]], ids=" ".join)
def test_once_all_is_said(chain_bundle: Path, tmp_path: Path, at: str, code: int, words: list[str]) -> None:
    words = [*words, str(chain_bundle)] if words == ["run"] else words
    done = pressed(tmp_path, at, *MODULE, *words)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.splitlines()[-1].startswith("output" if words[0] == "run" else "splitload ")


def test_one_that_comes_while_an_object_is_freed_is_not_forgotten() -> None:
    code = """
import sys, time
sys.argv[0] = "splitload"
import splitload
from splitload.base.interrupts import work
work()
class Freed:
    def __init__(self, error):
        self.error = error
    def __del__(self):
        raise self.error
Freed(ValueError("another"))
try:
    Freed(KeyboardInterrupt())
    time.sleep(10)
except KeyboardInterrupt:
    print("told")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "told\n")
    assert done.stderr.splitlines()[-1] == "ValueError: another"
    assert "KeyboardInterrupt" not in done.stderr


def test_the_script_for_a_device_does_so_too(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "splitload.deploy.personalize", "nothing", "--data", "nothing.npz"]
    for at in ("splitload.runtime.loader", "splitload.deploy.arguments"):
        done = pressed(tmp_path, at, *program)
        assert (done.returncode, done.stderr) == (130, "splitload: interrupted; nothing was written\n")


@pytest.mark.parametrize("how", ["-c", "-m"])
def test_a_program_that_imports_splitload_keeps_its_handler(tmp_path: Path, how: str) -> None:
    code = "import signal, splitload.cli; assert signal.getsignal(signal.SIGINT) is signal.default_int_handler"
    (tmp_path / "program.py").write_text(code)
    done = subprocess.run(
        [sys.executable, how, code if how == "-c" else "program"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_signal_that_is_ignored_stays_so(chain_bundle: Path, tmp_path: Path) -> None:
    def ignore() -> None:  # as a shell does for what it runs in the background
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    (tmp_path / "sitecustomize.py").write_text(PRESS)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PRESS_AT": "splitload.runtime.loader"}
    words = [*MODULE, "run", str(chain_bundle)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, env=environment, preexec_fn=ignore)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_import_error_that_stands_for_an_interrupt_is_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def chained(*errors: BaseException) -> BaseException:
        for error, cause in pairwise(errors):
            error.__context__ = cause
        return errors[0]

    press = KeyboardInterrupt()
    monkeypatch.setattr(cli, "_run", lambda _: (_ for _ in ()).throw(chained(ImportError("READ THIS"), press)))
    assert cli.main(["zoo"]) == 130
    assert capsys.readouterr().err == "splitload: interrupted; nothing was written\n"
    assert is_interrupt(press)
    assert is_interrupt(chained(ImportError(), ImportError(), press))
    assert not is_interrupt(chained(ImportError(), ValueError(), press))
    assert not is_interrupt(chained(ValueError(), press))
    assert not is_interrupt(ImportError())

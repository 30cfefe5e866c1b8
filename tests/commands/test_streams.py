"""What is shown never decides how a command ends: closed streams, full disks, no UTF-8, no rich."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from splitload.bundle.read import read_manifest
from splitload.cli import _not_encoded

WAIT_S = 60
PROGRAM = [sys.executable, "-m", "splitload"]
NO_UTF8: dict[str, dict[str, str]] = {
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "LANG=C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


def run(*words: str | Path, shell: str = "", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a command line, with what a shell makes of its streams."""
    inherited = {key: value for key, value in os.environ.items() if key not in ("PYTHONIOENCODING", "LC_ALL")}
    command = ["sh", "-c", f'"$@" {shell}', "sh", *PROGRAM, *map(str, words)]
    return subprocess.run(command, env={**inherited, **environment}, capture_output=True, timeout=WAIT_S)


@pytest.mark.parametrize("environment", NO_UTF8.values(), ids=NO_UTF8)
def test_terminals_without_utf8(chain_bundle: Path, tmp_path: Path, environment: dict[str, str]) -> None:
    for words in (
        ["train", chain_bundle.with_name("chain.onnx"), "--device", "s20", "-o", tmp_path / "b.splitload"],
        ["inspect", chain_bundle],
        ["run", chain_bundle],
        ["train", "--help"],
    ):
        done = run(*words, **environment, SPLITLOAD_CACHE=str(tmp_path / "cache"))
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout
    failed = run("inspect", "輸出", **environment)
    assert (failed.returncode, failed.stderr.count(b"\n")) == (1, 1)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="elsewhere names of files are Unicode in any case")
def test_names_of_files_without_utf8(chain_bundle: Path, tmp_path: Path) -> None:
    """Python stands in for what it cannot decode, and onnxruntime takes no such text."""
    place = tmp_path / "häuser"
    place.mkdir()
    model, bundle = place / "mödel.onnx", place / "bündel.splitload"
    shutil.copyfile(chain_bundle.with_name("chain.onnx"), model)
    environment = {**NO_UTF8["LANG=C"], "SPLITLOAD_CACHE": str(place / "cäche")}
    for words in (["train", model, "--device", "s20", "-o", bundle], ["run", bundle, "-o", place / "öut"]):
        done = run(*words, **environment)
        assert (done.returncode, done.stderr) == (0, b"")
    assert {path.name for path in place.iterdir()} == {"cäche", model.name, bundle.name, "öut"}
    assert read_manifest(bundle, "hashes").model == "mödel"
    beside = {"save_as_external_data": True, "location": "gewichte-ö.bin", "size_threshold": 0}
    onnx.save_model(onnx.load_model(model), place / "m.onnx", **beside)
    failed = run("train", place / "m.onnx", "--device", "s20", "-o", bundle, **environment)
    assert (failed.returncode, failed.stderr.count(b"\n")) == (1, 1)
    assert b"cannot be written in ascii, the encoding of this process; set PYTHONUTF8=1" in failed.stderr


@pytest.mark.parametrize(
    ("before", "after", "shown"), [(0, 0, 1), (300_000, 300_000, 82), (0, 300_000, 41), (300_000, 3, 45)]
)
def test_what_cannot_be_encoded_is_shown_in_part(before: int, after: int, shown: int) -> None:
    for character, encoding, cure in (("輸", "latin-1", "set PYTHONUTF8=1"), ("\udce9", "utf-8", "; rename it")):
        with pytest.raises(UnicodeEncodeError) as raised:
            ("a" * before + character + "b" * after).encode(encoding)
        told = _not_encoded(raised.value)
        assert told.endswith(cure) == (encoding == "utf-8")
        assert cure in told
        spelled = character.encode("ascii", "backslashreplace").decode()
        name = told.split("'")[1]
        assert len(name.replace(spelled, "x")) == shown
        assert spelled in name


@pytest.mark.parametrize(
    ("words", "shell", "code"),
    [
        (["devices"], ">&-", 0),
        (["devices"], "2>&-", 0),
        (["devices"], "<&- >&- 2>&-", 0),
        (["devices", "--json"], ">&-", 0),
        (["device"], "2>&-", 2),
        (["device"], "2>/dev/full", 2),
        (["inspect", "nothing"], ">&- 2>/dev/full", 1),
    ],
)
def test_streams_that_are_closed_or_full(words: list[str], shell: str, code: int) -> None:
    done = run(*words, shell=shell)
    assert done.returncode == code
    assert b"Traceback" not in done.stderr + done.stdout


def test_a_reader_that_goes_away_ends_no_work(chain_model: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b.splitload"
    words = ["train", str(chain_model), "--device", "s20", "-o", str(bundle)]
    read, write = os.pipe()
    os.close(read)
    environment = {**os.environ, "SPLITLOAD_CACHE": str(tmp_path / "cache")}
    try:
        done = subprocess.run([*PROGRAM, *words], env=environment, stdout=write, stderr=subprocess.PIPE, timeout=WAIT_S)
        assert (done.returncode, done.stderr) == (0, b"")
        assert bundle.is_dir()
        done = subprocess.run([*PROGRAM, "zoo", "--json"], stdout=write, stderr=subprocess.PIPE, timeout=WAIT_S)
        assert (done.returncode, done.stderr) == (1, b""), "a program did not get what it asked for"
    finally:
        os.close(write)


def on_a_terminal(columns: int, command: list[str], **environment: str) -> tuple[int, str]:
    """Run a command on a terminal so wide; return its exit code and all that it showed."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    import struct

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    inherited = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "NO_COLOR")}
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env={**inherited, "TERM": "xterm", **environment}
    ) as child:
        os.close(theirs)
        shown = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:  # the end, on Linux
                break
            if not piece:
                break
            shown += piece
    os.close(ours)
    return child.returncode, shown.decode(errors="replace").replace("\r\n", "\n")


def test_prose_on_a_terminal_wraps_at_words() -> None:
    code, shown = on_a_terminal(40, [*PROGRAM, "inspect", "nothing"])
    assert code == 1
    lines = shown.strip().split("\n")
    assert len(lines) > 1
    assert max(map(len, lines)) <= 40
    assert " ".join(lines).startswith("splitload: 'nothing' is not a bundle: there is no such folder; ")


WITHOUT_RICH = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError(f"No module named '{name}'", name="rich")
sys.meta_path.insert(0, Absent())
from splitload.cli import main
sys.exit(main())
"""


@pytest.mark.parametrize("start", [["-m", "splitload"], ["-c", WITHOUT_RICH]], ids=["rich", "no rich"])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_progress_on_a_terminal(chain_model: Path, tmp_path: Path, start: list[str], encoding: str) -> None:
    words: list[Any] = ["train", chain_model, "--device", "s20", "-o", tmp_path / "b.splitload", "--episodes", "200"]
    cache = str(tmp_path / "cache")
    command = [sys.executable, *start, *map(str, words)]
    code, shown = on_a_terminal(80, command, SPLITLOAD_CACHE=cache, PYTHONIOENCODING=encoding)
    assert code == 0, shown
    assert "optimising chain" in shown
    assert "writing the bundle" in shown
    assert "bundle:" in shown
    assert "\\u2026" not in shown

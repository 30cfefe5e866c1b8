"""`splitload cache`, and what works without a place for a cache."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import splitload
from splitload.base.cache import user_cache
from splitload.base.errors import UsageError
from splitload.base.scratch import scratch_folder
from splitload.cli import main
from splitload.commands.cache import ROOMS

WITHOUT_A_HOME = """
import os, pwd, sys
for name in ("HOME", "SPLITLOAD_CACHE", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
def no_entry(uid):
    raise KeyError(uid)
pwd.getpwuid = no_entry
from splitload.cli import main
bundle = sys.argv[1]
for words in (["run", bundle], ["inspect", bundle], ["verify", bundle], ["devices"], ["zoo"], ["--help"]):
    try:
        assert main(words) == 0, words
    except SystemExit as end:
        assert not end.code
for words in (["cache"], ["train", "--device", "s20"]):
    assert main(words) == 2, words
"""


def test_a_user_without_a_home(chain_bundle: Path) -> None:
    pytest.importorskip("pwd")
    command = [sys.executable, "-c", WITHOUT_A_HOME, str(chain_bundle)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("set SPLITLOAD_CACHE to a folder") == done.stderr.count("\n") == 2


def test_every_room_is_known() -> None:
    package = Path(splitload.__file__).parent
    sources = [file.read_text(encoding="utf-8") for file in package.rglob("*.py")]
    used = {name for text in sources for name in re.findall(r'\bcache / "(\w+)"', text)}
    assert "graphs" in used
    assert used <= set(ROOMS)


@pytest.mark.usefixtures("few_samples")
def test_cache(
    chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "cache"
    monkeypatch.setenv("SPLITLOAD_CACHE", str(folder))

    def found(*words: str) -> Any:
        assert main(["cache", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    nothing = {"cache": str(folder), "rooms": [], "files_bytes": 0, "cleared": False}
    assert found() == nothing
    bundle = tmp_path / "b.splitload"
    assert main(["train", str(chain_model), "--device", "host", "--agent", "exact", "-o", str(bundle)]) == 0
    assert {path.name for path in folder.iterdir()} <= set(ROOMS), "a room that 'splitload cache' does not know"
    (folder / "notes.txt").write_text("of the user")
    capsys.readouterr()
    rooms = found()["rooms"]
    for room in rooms:
        files = [path for path in (folder / room["name"]).rglob("*") if path.is_file()]
        assert room["files_bytes"] == sum({path.stat().st_ino: path.stat().st_size for path in files}.values())
    assert {"graphs", "profiles"} <= {room["name"] for room in rooms}
    assert main(["cache"]) == 0
    assert "optimised graphs" in capsys.readouterr().out
    cleared = found("clear")
    assert cleared["cleared"]
    assert cleared["files_bytes"] == sum(room["files_bytes"] for room in rooms) > 0
    assert [path.name for path in folder.iterdir()] == ["notes.txt"], "what is not ours stays"
    assert found() == nothing
    assert main(["verify", str(bundle)]) == 0


def test_a_linked_room_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "precious").touch()
    folder = tmp_path / "cache"
    folder.mkdir()
    (folder / "zoo").symlink_to(other)
    monkeypatch.setenv("SPLITLOAD_CACHE", str(folder))
    assert main(["cache", "clear"]) == 0
    assert (folder / "zoo" / "precious").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_cache_that_is_no_folder_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: str
) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"")
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / place))
    message = f"'{file}', where the cache is to be, is no folder; set SPLITLOAD_CACHE to one"
    for words in (["cache"], ["cache", "clear"], ["train", "zoo:mobilenet_v1", "--device", "s20"]):
        assert main(words) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    with pytest.raises(UsageError, match="is no folder"):
        user_cache()


@pytest.mark.skipif(sys.platform != "linux", reason="needs a place where nobody may write")
def test_a_cache_that_cannot_be_written_is_told_of_with_what_to_do(
    chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPLITLOAD_CACHE", "/proc/nowhere")
    for model in (str(chain_model), "zoo:mobilenet_v1"):
        assert main(["train", model, "--device", "s20"]) == 1
        told = " ".join(capsys.readouterr().err.split())
        assert "'/proc/nowhere/" in told
        assert told.endswith("; SPLITLOAD_CACHE=FOLDER takes another cache, one to write to")
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    assert main(["train", str(chain_model), "--device", "s20", "-o", "nowhere/x.splitload"]) == 1
    assert "SPLITLOAD_CACHE" not in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="no locks on folders")
def test_what_another_command_works_in_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path))
    for entry in ("graphs/busy", "graphs/idle", "zoo/one"):
        (tmp_path / entry).mkdir(parents=True)
        (tmp_path / entry / "file").touch()
    with scratch_folder(tmp_path / "graphs" / "busy", ".measure-") as busy:
        assert main(["cache", "clear"]) == 0
        assert busy.is_dir()
        assert sorted(tmp_path.rglob("file")) == [tmp_path / "graphs" / "busy" / "file"]
    told = capsys.readouterr()
    assert f"'{tmp_path / 'graphs' / 'busy'}' stays, as another command works in it" in told.out + told.err
    assert main(["cache", "clear"]) == 0
    assert not (tmp_path / "graphs").exists()

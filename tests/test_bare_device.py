"""A device has numpy and onnxruntime alone: what runs there does, and what does not names the package and the cure."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_bundle import build, data

import splitload
from splitload.bundle.read import read_manifest

ROOT = Path(splitload.__file__).parents[1]
# The packages that onnxruntime itself brings, protobuf and flatbuffers, are taken away too: others may drop them.
BARE = """
import sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in (
            "onnx", "flatbuffers", "google", "gymnasium", "joblib", "rich", "torch", "torchvision",
        ):
            raise ModuleNotFoundError(f"No module named '{name}'", name=name)
sys.meta_path.insert(0, Absent())
from splitload.cli import main
sys.exit(main())
"""
WORKS = ("run", "verify", "inspect", "tails", "finetune", "install", "cache", "zoo", "specialize")
NEEDS_MORE = {
    "train": ["train", "digits.onnx", "--device", "s20"],
    "profile": ["profile", "digits.onnx", "--device", "s20"],
    "bench": ["bench", "digits.onnx"],
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trainable bundle, data for it, and a cache."""
    folder = tmp_path_factory.mktemp("bare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLITLOAD_CACHE", str(folder / "cache"))
        shutil.copytree(build(folder), folder / "fresh.splitload")
    data(folder / "train.npz")
    return folder


def words_of(command: str) -> list[str]:
    """Return a command line that works in the `place`."""
    if command in ("zoo", "cache", "devices"):
        return [command]
    more = {"finetune": ["--data", "train.npz", "--epochs", "1"], "install": ["copy.splitload"]}
    return [command, "digits.splitload", *more.get(command, [])]


def run(start: list[str], place: Path, words: list[str]) -> Any:
    environment = {**os.environ, "SPLITLOAD_CACHE": str(place / "cache")}
    return subprocess.run([*start, *words], cwd=place, env=environment, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("command", WORKS)
def test_works(place: Path, command: str) -> None:
    done = run([sys.executable, "-c", BARE], place, [*words_of(command), "--json"])
    assert (done.returncode, done.stderr) == (0, "")
    assert isinstance(json.loads(done.stdout), dict)


def test_specialize_makes_a_native_part_of_the_stages_as_they_are(place: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(place / "fresh.splitload", tmp_path / "digits.splitload"))
    start = [sys.executable, "-c", BARE]
    before = read_manifest(bundle)
    found = json.loads(run(start, tmp_path, ["specialize", "digits.splitload", "--json"]).stdout)
    manifest = read_manifest(bundle, "hashes")
    assert (found["searched"], found["kept_in"]) == (False, "digits.splitload")
    assert [variant.kind for variant in manifest.variants] == ["native", *(each.kind for each in before.variants)]
    assert found["num_stages"] == len(manifest.variants[0].stages) == len(before.variants[-1].stages)
    again = run(start, tmp_path, ["specialize", "digits.splitload"])
    assert again.returncode == 0
    assert "is there already, " in again.stdout
    assert "without a search" not in again.stdout  # nothing was made
    assert json.loads(run(start, tmp_path, ["run", "digits.splitload", "--json"]).stdout)["variant"] == "native"


@pytest.mark.parametrize("words", NEEDS_MORE.values(), ids=NEEDS_MORE)
def test_says_what_it_needs(place: Path, words: list[str]) -> None:
    done = run([sys.executable, "-c", BARE], place, words)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"splitload: 'splitload {words[0]}' needs the package '")
    assert done.stderr.endswith("', which is not installed: pip install '.[desk]' (in a checkout of splitload)\n")


@pytest.mark.slow
def test_an_environment_of_its_own(place: Path, tmp_path: Path) -> None:
    """What `pip install .` brings; needs a package index."""
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "-q", "setuptools>=77", "wheel"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "--no-build-isolation", ROOT], check=True)
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    names = {row["name"] for row in json.loads(listed.stdout)}
    assert not {"onnx", "gymnasium", "joblib", "rich", "torch"} & names
    own = Path(shutil.copytree(place, tmp_path / "place"))
    for command in (*WORKS, "devices"):
        done = run([str(python), "-m", "splitload"], own, [*words_of(command), "--json"])
        assert (done.returncode, done.stderr) == (0, ""), command
        assert isinstance(json.loads(done.stdout), dict)
    for words in NEEDS_MORE.values():
        done = run([str(python), "-m", "splitload"], own, words)
        assert done.returncode == 1
        assert "pip install '.[desk]'" in done.stderr

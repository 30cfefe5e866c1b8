"""Child processes: none runs a file of the current folder, and one place builds their command lines."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import splitload
from splitload.measure import process as child

WAIT_S = 300
PACKAGES = (
    "numpy",
    "onnx",
    "onnxruntime",
    "google",
    "joblib",
    "torch",
    "rich",
    "gymnasium",
    "flatbuffers",
    "splitload",
)
COMMANDS = {  # `profile` and `train` start what `specialize` and `bench` start
    "train": ["train", "MODEL", "--device", "host", "-o", "out.splitload"],
    "train-seeds": ["train", "MODEL", "--device", "s20", "--seeds", "2", "--jobs", "2", "-o", "seeds.splitload"],
    "specialize": ["specialize", "BUNDLE"],
    "bench": ["bench", "MODEL", "--runs", "1", "--arms", "stock,tuned"],
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Path]:
    """A folder with a file for every standard module and package, and the file in which they note that they ran."""
    folder, ran = tmp_path / "planted", tmp_path / "ran.txt"
    folder.mkdir()
    for name in {*sys.stdlib_module_names, *PACKAGES}:
        (folder / f"{name}.py").write_text(
            f"open({str(ran)!r}, 'a').write('{name}\\n')\nraise ImportError('planted')\n"
        )
    return folder, ran


def environment(cache: Path) -> dict[str, str]:
    return {**os.environ, "SPLITLOAD_CACHE": str(cache)}


@pytest.mark.parametrize(
    "command",
    [pytest.param(name, marks=[pytest.mark.slow] if name in ("train", "specialize") else []) for name in COMMANDS],
)
def test_no_command_runs_a_file_of_the_current_folder(
    command: str, planted: tuple[Path, Path], cache: Path, chain_model: Path, native_bundle: Path
) -> None:
    folder, ran = planted
    bundle = shutil.copytree(native_bundle, folder / "own.splitload", copy_function=shutil.copyfile)
    words = [{"MODEL": str(chain_model), "BUNDLE": str(bundle)}.get(word, word) for word in COMMANDS[command]]
    done = subprocess.run(
        child.python("splitload.cli", *words, "--json"), cwd=folder, env=environment(cache), capture_output=True,
        text=True, timeout=WAIT_S,
    )  # fmt: skip
    assert not ran.exists(), ran.read_text()
    assert done.returncode == 0, done.stderr
    json.loads(done.stdout)


def test_python_itself_would_run_them(planted: tuple[Path, Path]) -> None:
    folder, ran = planted
    subprocess.run([sys.executable, "-c", "import json"], cwd=folder, capture_output=True, timeout=WAIT_S)
    assert "json" in ran.read_text().split()


def test_a_child_has_the_path_of_its_environment_and_the_splitload_of_its_parent(tmp_path: Path) -> None:
    (tmp_path / "shown.py").write_text("")
    (tmp_path / "here").mkdir()
    code = "import sys, splitload, shown; print(splitload.__file__, *sys.argv[1:], *sys.path, sep='\\n')"
    # a stand-in for a module of splitload, whose `main` would be called
    start = child._START.partition("if name.startswith")[0] + code
    done = subprocess.run(
        [sys.executable, "-c", start, *child.python("x")[3:], "a word"], cwd=tmp_path / "here", check=True,
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tmp_path)}, timeout=WAIT_S,
    )  # fmt: skip
    file, word, *path = done.stdout.splitlines()
    assert Path(file).samefile(splitload.__file__)
    assert word == "a word"
    assert str(tmp_path) in path
    assert str(tmp_path / "here") not in path
    assert "" not in path


def test_a_child_finds_splitload_where_only_its_parent_does(tmp_path: Path) -> None:
    package = Path(splitload.__file__).parent
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "splitload").symlink_to(package)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import subprocess; from splitload.measure.process import python\n"
        "sys.exit(subprocess.run(python('splitload.cli', 'zoo', '--json')).returncode)"
    )
    command = [sys.executable, "-S", "-c", code, str(tmp_path / "src")]  # without site: nothing is installed
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["models"]


def test_another_package_is_run_without_the_current_folder(planted: tuple[Path, Path]) -> None:
    pytest.importorskip("pip")
    folder, ran = planted
    command = child.python("pip", "--version")
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=WAIT_S)
    assert not ran.exists()
    assert done.stdout.startswith("pip "), done.stderr


def test_a_child_that_fails_gives_its_exit_code(tmp_path: Path) -> None:
    done = subprocess.run(child.python("splitload.cli", "nothing"), capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 2
    assert done.stderr.startswith("splitload: unknown command")


def test_nothing_else_builds_a_command_line() -> None:
    root = Path(splitload.__file__).parent
    starters = []
    for file in sorted(root.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "executable":
                starters.append(file.name)
    assert set(starters) == {"process.py"}


def test_workers_of_libraries_are_isolated_only_meanwhile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for before in (None, "", "1"):
        if before is None:
            monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
        else:
            monkeypatch.setenv("PYTHONSAFEPATH", before)
        with child.isolated_workers():
            assert os.environ["PYTHONSAFEPATH"] == "1"
        assert os.environ.get("PYTHONSAFEPATH") == before

"""What is installed: every module of the tree, under the import names that collide with nothing."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

from splitload.base.packages import install
from splitload.frontends import torch_packages

ROOT = Path(__file__).parents[1]
FOLDERS = {"splitload": ROOT / "splitload"} | {
    f"splitload/{name}": ROOT / name for name in ("envs", "agents", "deploy")
}


def modules():
    """Return every module of the tree by its path in a wheel."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            inside = path.relative_to(folder)
            if package == "splitload" and inside.parts[0] in ("envs", "agents", "deploy"):
                continue  # the links, for editors
            found[f"{package}/{inside.as_posix()}"] = path
    return found


def test_wheel_holds_every_module(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert set(modules()) <= names
    assert {f"splitload/devices/{path.name}" for path in (ROOT / "splitload" / "devices").glob("*.toml")} <= names
    assert "splitload/studies/whole_baseline.c" in names
    assert "splitload/py.typed" in names


def test_a_device_gets_numpy_and_onnxruntime_alone():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    required = re.search(r"^dependencies = \[(.*?)\]", text, re.M | re.S)[1]
    assert re.findall(r'"([A-Za-z0-9_-]+)', required) == ["numpy", "onnxruntime"]


def test_what_is_said_to_install_is_what_the_documentation_says():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    advised = {"torch"}
    for path in modules().values():
        source = path.read_text(encoding="utf-8")
        assert "install 'splitload" not in source, path  # no package index has it
        advised |= set(re.findall(r"""\binstall\(["'](\w+)["']""", source))
    assert advised >= {"bench", "cluster", "desk"}
    assert advised <= set(extras)
    for command in [*(install(extra) for extra in advised), torch_packages.INSTALL]:
        steps, _, where = command.partition(" (")
        assert where == "in a checkout of splitload)"
        assert all(step in page for step in steps.split(" && ")), command


def test_every_module_has_a_purpose_and_no_bare_import():
    for name, path in modules().items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), f"{name} does not say what it is for"
        for node in ast.walk(tree):
            imported = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            imported += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not {"envs", "agents", "deploy"} & {each.split(".")[0] for each in imported}, name


def test_every_folder_of_tests_is_collected(request):
    left_out = request.config.getini("norecursedirs")
    folders = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    parts = {part for folder in folders for part in folder.relative_to(ROOT / "tests").parts}
    assert "build" in parts
    assert [part for part in parts for pattern in left_out if fnmatch(part, pattern)] == []

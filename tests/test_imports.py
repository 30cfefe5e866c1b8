"""What a device needs: the runtime imports no more than it uses, and nothing of the developer's desk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import splitload

DESK = ("torch", "onnx", "gymnasium", "joblib", "splitload.frontends", "splitload.devices", "splitload.agents")
IMPORT = "import splitload"
LOADER = """
import numpy as np
from splitload import ParallelLoader
with ParallelLoader(sys.argv[1], verify="hashes") as model:
    model.run(None, {"x": np.ones((1, 16), "f"), "z": np.ones(16, "f")})
    model.wait("upgraded")
    model.get_inputs(), model.get_outputs(), model.timeline.render()
"""
COMMAND = """
from splitload.cli import main
assert main(["run", sys.argv[1], "--json"]) == 0
"""
HEAVY = ("numpy", "onnxruntime", "onnx", "torch", "gymnasium", "rich", "joblib")
LEAN_COMMAND = """
import splitload.cli
import splitload.runtime.loader
class Told(splitload.runtime.loader.ParallelLoader):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        print([name for name in {heavy!r} if name in sys.modules], self.engine, file=sys.stderr)
splitload.ParallelLoader = Told
assert splitload.cli.main({words!r}) == 0
"""
LEAN_SCRIPT = """
import splitload.deploy.frozen as frozen
from splitload.deploy.personalize import main
class Told(frozen.ParallelLoader):
    def __init__(self, *args, **settings):
        super().__init__(*args, **settings)
        print([name for name in {heavy!r} if name in sys.modules], self.engine, file=sys.stderr)
frozen.ParallelLoader = Told
assert main({words!r}) == 0
"""
LAZY = ("tempfile", "subprocess", "ctypes", "hashlib", "numpy", "onnxruntime")


def imported(code: str, bundle: Path, names: tuple[str, ...]) -> list[str]:
    code = f"import sys\n{code}\nprint([name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code, str(bundle)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return list(eval(done.stdout.splitlines()[-1]))  # noqa: S307 - a list that was just printed


@pytest.mark.parametrize(
    ("code", "names"),
    [(IMPORT, (*DESK, "rich")), (LOADER, (*DESK, "rich")), (COMMAND, DESK)],
    ids=["import splitload", "ParallelLoader", "splitload run"],
)
def test_the_runtime_stays_small(chain_bundle: Path, code: str, names: tuple[str, ...]) -> None:
    assert imported(code, chain_bundle, names) == []


def test_import_is_light(chain_bundle: Path) -> None:
    alone = imported("", chain_bundle, LAZY)  # what the interpreter's own start-up brings
    assert imported(IMPORT, chain_bundle, LAZY) == alone


def test_an_answer_needs_neither_numpy_nor_what_takes_time(chain_bundle: Path) -> None:
    code = """
from splitload import ParallelLoader
with ParallelLoader(sys.argv[1], arrays="buffers", upgrade=False) as model:
    x, z = (memoryview(bytearray(64)).cast("f", shape) for shape in ((1, 16), (16,)))
    model.run(None, {"x": x, "z": z})
    assert model.engine == "library"
"""
    names = (
        "numpy", "onnxruntime", "typing", "pathlib", "platform", "json", "re", "enum", "zlib", "asyncio", "threading",
        "functools", "collections", "contextlib", "weakref", "operator", "importlib", "warnings", "mmap",
    )  # fmt: skip
    alone = imported("", chain_bundle, names)
    assert imported(code, chain_bundle, names) == alone


@pytest.mark.parametrize("words", [["--version"], ["--help"], ["run", "--help"], ["inspect", "--help"]], ids=" ".join)
def test_what_needs_no_bundle_imports_nothing_heavy(chain_bundle: Path, words: list[str]) -> None:
    code = f"""
sys.argv[1:] = {words!r}
from splitload.__main__ import main
try:
    main()
except SystemExit as done:
    assert done.code == 0
"""
    assert imported(code, chain_bundle, HEAVY) == []
    parser = imported(code, chain_bundle, ("argparse", "splitload.planner.request"))
    assert parser == ([] if words == ["--version"] else ["argparse"])


def told(code: str, words: list[str]) -> list[str]:
    code = "import sys\n" + code.format(heavy=HEAVY, words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stderr.splitlines()


def test_run_imports_numpy_to_save_outputs_alone(chain_bundle: Path, tmp_path: Path) -> None:
    words = ["run", str(chain_bundle), "--json"]
    assert imported(LEAN_COMMAND.format(heavy=HEAVY, words=words), chain_bundle, HEAVY) == []
    np.save(tmp_path / "x.npy", np.ones((3, 16), "f"))
    words += ["--input", f"x={tmp_path / 'x.npy'}"]
    assert imported(LEAN_COMMAND.format(heavy=HEAVY, words=words), chain_bundle, HEAVY) == []
    words += ["-o", str(tmp_path / "outputs")]
    assert imported(LEAN_COMMAND.format(heavy=HEAVY, words=words), chain_bundle, HEAVY) == ["numpy"]
    assert told(LEAN_COMMAND, words) == ["[] library"]
    assert np.load(tmp_path / "outputs" / "y.npy").shape == (3, 16)


def test_personalize_has_the_frozen_stages_begin_before_its_imports(tmp_path: Path) -> None:
    """And loads them by the C library again, when training has imported the Python module."""
    pytest.importorskip("torch")  # what builds a trainable bundle checks its gradients with torch
    from small_bundle import build, data

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
        bundle = build(tmp_path)
    words = [str(bundle), "--data", str(data(tmp_path / "train.npz")), "--epochs", "1"]
    assert told(LEAN_SCRIPT, words) == ["[] library", "['numpy', 'onnxruntime'] library"]


def test_public_names() -> None:
    assert splitload.__all__ == [
        "Collaborator", "IOBinding", "InferenceSession", "LibraryWarning", "ParallelLoader", "PortableWarning",
        "SplitloadError", "Tensor", "__version__", "from_torch", "install",
    ]  # fmt: skip
    assert all(hasattr(splitload, name) for name in splitload.__all__)

"""What a device needs: the runtime imports no more than it uses, and nothing of the developer's desk."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
with ParallelLoader(sys.argv[1], arrays="buffers") as model:
    x, z = (memoryview(bytearray(64)).cast("f", shape) for shape in ((1, 16), (16,)))
    model.run(None, {"x": x, "z": z})
    assert model.engine == "library"
"""
    names = ("numpy", "onnxruntime", "typing", "pathlib", "platform", "json", "re", "enum", "zlib", "asyncio")
    alone = imported("", chain_bundle, names)
    assert imported(code, chain_bundle, names) == alone


def test_public_names() -> None:
    assert splitload.__all__ == [
        "IOBinding", "InferenceSession", "ParallelLoader", "PortableWarning", "SplitloadError", "Tensor", "__version__",
        "from_torch", "install",
    ]  # fmt: skip
    assert all(hasattr(splitload, name) for name in splitload.__all__)

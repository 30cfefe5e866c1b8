"""A lean device: Python's standard library, splitload, and onnxruntime's C library in a file of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import splitload
from splitload.runtime.capi.find import VARIABLE, beside_module

START = "import sys; sys.path.append(sys.argv.pop(1))\n"  # besides what `-S` leaves: the standard library


def lean_place(folder: Path) -> Path:
    """Return a folder with splitload and the C library, and nothing else."""
    (folder / "packages").mkdir()
    (folder / "packages" / "splitload").symlink_to(Path(splitload.__file__).parent, target_is_directory=True)
    shutil.copy(beside_module(), folder / "libonnxruntime.so")
    return folder


def alone(place: Path, code: str, *words: str | Path, named: bool = True, given: str = "") -> Any:
    """Run a program there; with `named` it is told of the library, and `given` is its standard input."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment |= {VARIABLE: str(place / "libonnxruntime.so")} if named else {}
    start = [sys.executable, "-S", "-c", START + code, place / "packages"]
    return subprocess.run(
        [*start, *words], cwd=place, env=environment, capture_output=True, text=True, timeout=60, input=given
    )  # fmt: skip

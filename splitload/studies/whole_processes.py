"""The fresh processes of the study of whole processes: which splitload they run, and what they print."""

from __future__ import annotations

import json
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import StageError, UsageError

Sample = dict[str, float]
Numbers = np.ndarray[Any, Any]  # the first of the first output

# What a Python executable imports as splitload, and what pip says of where that came from.
_ASK = """\
import json, platform, sysconfig
from importlib import metadata
import splitload
text = metadata.distribution("splitload").read_text("direct_url.json")
packages = {name: metadata.version(name) for name in ("splitload", "numpy", "onnxruntime")}
print(json.dumps({
    "package": splitload.__file__, "site": sysconfig.get_paths()["purelib"], "origin": json.loads(text or "{}"),
    "packages": packages | {"python": platform.python_version()},
}))
"""


@dataclass(frozen=True, slots=True)
class Build:
    """A splitload that a Python executable imports.

    Attributes:
        python: The executable.
        package: The file of the package.
        commit: What it was installed from, with "-dirty" where that folder has changed since; None where nobody knows.
        ordinary: Whether it lies where packages are installed, not in a checkout.
        packages: Versions of Python and of the packages that count.
    """

    python: Path
    package: Path
    commit: str | None
    ordinary: bool
    packages: Mapping[str, str]

    @property
    def command(self) -> Path:
        """The shell's command that was installed with it."""
        return self.python.with_name("splitload")

    def to_json(self) -> dict[str, Any]:
        """Return what a record says of it: no places on this machine."""
        return {key: value for key, value in asdict(self).items() if key not in ("python", "package")}


def build_of(python: Path, folder: Path) -> Build:
    """Return the splitload that a Python executable imports.

    Args:
        python: The executable.
        folder: An empty folder, for the program that asks it.

    Raises:
        UsageError: If it imports none, or has no command beside it.
    """
    program = folder / "ask.py"
    program.write_text(_ASK, encoding="utf-8")
    try:
        said = json.loads(run([str(python), str(program)]))
    except (OSError, StageError) as error:
        raise UsageError(f"'{python}' is no Python with splitload and onnxruntime installed: {error}") from error
    package = Path(said["package"])
    ordinary = package.is_relative_to(said["site"])
    build = Build(python, package, _commit(said["origin"], package), ordinary, said["packages"])
    if not build.command.exists():
        raise UsageError(f"'{build.command}' is missing: installing splitload puts it there")
    return build


def _commit(origin: Mapping[str, Any], package: Path) -> str | None:
    """Return the commit that pip took, or that the folder it took stands at."""
    if "vcs_info" in origin:
        return str(origin["vcs_info"]["commit_id"])
    folder = str(origin.get("url", package.parent)).removeprefix("file://")
    command = ["git", "-C", folder, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def run(command: Sequence[str]) -> str:
    """Return what a process prints.

    Raises:
        StageError: If it fails.
    """
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise StageError(f"a process failed: {lines[-1][:300]}")
    return done.stdout


def timed(command: Sequence[str]) -> float:
    """Return the seconds from the start of a process to its end.

    Raises:
        StageError: If it fails.
    """
    start_s = time.monotonic()
    run(command)
    return time.monotonic() - start_s


def whole(command: Sequence[str]) -> tuple[Sample, Numbers]:
    """Return the figures of a whole process, and what it answered.

    Returns:
        `process_s`, from exec to the first output; `exit_s`, to the end of the process; and `peak_memory_bytes`, its
        most resident memory at the first output. Then the numbers of the output.

    Raises:
        StageError: If it fails.
    """
    start_s = time.monotonic()  # a clock that all processes share
    said, numbers = run(command).splitlines()
    exit_s = time.monotonic() - start_s
    answered_s, peak_kib = map(float, said.split())
    sample = {"process_s": answered_s - start_s, "exit_s": exit_s, "peak_memory_bytes": peak_kib * 1024}
    return sample, _array(numbers)


def first_output(command: Sequence[str]) -> tuple[Sample, Numbers]:
    """Return `ttfo_s` and `steady_inference_s`, the median of later inferences, of a process, and what it answered.

    Raises:
        StageError: If it fails.
    """
    said, numbers = run(command).splitlines()
    ttfo_s, *steady_s = map(float, said.split())
    return {"ttfo_s": ttfo_s, "steady_inference_s": statistics.median(steady_s)}, _array(numbers)


def settled_first_output(command: Sequence[str]) -> tuple[Sample, Numbers]:
    """Return `settled_ttfo_s`, once what the imports began is done, and what a process answered.

    Raises:
        StageError: If it fails.
    """
    said, numbers = run(command).splitlines()
    return {"settled_ttfo_s": float(said)}, _array(numbers)


def _array(numbers: str) -> Numbers:
    return np.array([float(number) for number in numbers.split()], dtype=np.float32)

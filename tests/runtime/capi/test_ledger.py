"""Whatever is made of the C library's objects is released, however loads and runs end, and when the process exits."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import models
import onnx
import pytest
import runtime_models

SCRIPT = Path(__file__).with_name("ledger.py")

_log = logging.getLogger(__name__)


@pytest.fixture(scope="module")
def bundles(chain_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle for each way to load, see ledger.py."""
    folder = tmp_path_factory.mktemp("balance")
    for name in ("chain", "damaged"):
        shutil.copytree(chain_bundle, folder / name, copy_function=shutil.copyfile)
    damaged = sorted((folder / "damaged").glob("portable-02*.onnx"))[0]
    damaged.write_bytes(bytes(damaged.stat().st_size))
    names = ["x", "t0", "t1", "t2", "y"]
    lines = "\n".join(f"{after} = Sin({before})" for before, after in pairwise(names))
    large = models.text(f"g (float[1,{1 << 20}] x) => (float[1,{1 << 20}] y) {{ {lines} }}")
    for name, model in {"large": large, "breaks": runtime_models.shapeless()}.items():
        onnx.save(model, folder / f"{name}.onnx")
        runtime_models.bundle(folder / f"{name}.onnx", folder / name)
    return folder


def balance(bundles: Path, runs: int, lifetimes: int) -> dict[str, Any]:
    """Return what ledger.py prints."""
    command = [sys.executable, str(SCRIPT), str(bundles), str(runs), str(lifetimes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check(found: dict[str, Any], runs: int, lifetimes: int) -> None:
    """Check that only what a process needs once is left, of kinds that were all made."""
    left, made = found["left"], found["made"]
    assert left.pop("Env") == made["Env"] == 1
    assert left.pop("MemoryInfo") == 1
    assert made["MemoryInfo"] <= 2
    assert left == dict.fromkeys(left, 0)
    assert made.keys() == {"Env", "MemoryInfo", *left}
    assert made["Value"] > 10 * runs
    assert made["Session"] > 3 * lifetimes
    assert made["Status"] >= runs // 10


def test_what_is_made_is_released(bundles: Path) -> None:
    check(balance(bundles, 500, 48), 500, 48)


@pytest.mark.slow
def test_what_is_made_in_ten_thousand_runs_and_a_thousand_lifetimes_is_released(bundles: Path) -> None:
    """Shows the figures with `-o log_cli=true -o log_cli_level=INFO`."""
    found = balance(bundles, 10_000, 1_000)
    _log.info("%s", found)
    check(found, 10_000, 1_000)


EXIT = """
import array, builtins, gc, sys, threading, types
from splitload import ParallelLoader
def floats(*shape, size=1):
    for each in shape:
        size *= each
    return memoryview(array.array("f", [1.0]) * size).cast("B").cast("f", shape)
def answers():
    return model.run(None, {"x": floats(2, 16), "z": floats(16)})
gc.disable()
model = ParallelLoader(sys.argv[1], arrays="buffers", engine="library")
here = answers()
builtins.kept = answers()
late = sys.modules["late"] = types.ModuleType("late")
late.kept = answers()
late.views = [memoryview(each) for each in late.kept]
cycle = [answers()]
cycle.append(cycle)
class Last:
    def __init__(self):
        self.kept, self.run = answers(), model.run
    def __del__(self):
        self.kept[0].tobytes()
sys.last = Last()
if "numpy" in sys.argv:
    import numpy
    late.capsules = [each.__dlpack__() for each in here]
    late.arrays = [numpy.from_dlpack(each) for each in here]
if "thread" in sys.argv:
    thread = threading.Thread(target=lambda: [answers() for _ in range(1000000)], daemon=True)
    threading.excepthook = lambda _: None  # the loader is closed under it
    thread.start()
if "closed" in sys.argv:
    model.close()
    del model
"""


@pytest.mark.parametrize("how", ["open", "closed", "numpy", "thread"])
def test_exit_with_living_tensors_is_clean(chain_bundle: Path, how: str) -> None:
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", EXIT, str(chain_bundle), how], capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
    assert done.stderr == ""

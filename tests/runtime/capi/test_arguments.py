"""What callers give for inputs: both engines do the same, or say what is wrong, whatever it is."""

from __future__ import annotations

import array
import gc
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import runtime_models

from splitload import ParallelLoader
from splitload.runtime.capi.elements import ELEMENTS
from splitload.runtime.capi.engine import LibraryEngine
from splitload.runtime.capi.library import library

SCRIPT = Path(__file__).with_name("arguments.py")
ONNX_NAMES = {"float32": "float", "float64": "double"}


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a bundle for each type: what it is given, of any rank, as a vector."""
    folder = tmp_path_factory.mktemp("arguments")
    for element in ELEMENTS:
        word = ONNX_NAMES.get(element.name, element.name)
        model = models.text(f"g ({word} x) => ({word}[n] y) {{ y = Reshape(x, flat) }}", flat=np.array([-1]))
        onnx.save(model, folder / f"{element.name}.onnx")
        runtime_models.bundle(folder / f"{element.name}.onnx", folder / element.name)
    return folder


def faults(bundles: Path, seed: int, count: int) -> str:
    """Return what arguments.py prints."""
    command = [sys.executable, str(SCRIPT), str(bundles), str(seed), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    return done.stdout


def test_both_engines_do_the_same_with_whatever_is_given(bundles: Path) -> None:
    assert faults(bundles, 0, 1500) == "0 faults of 1500\n"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
def test_both_engines_do_the_same_with_much_more(bundles: Path, seed: int) -> None:
    assert faults(bundles, seed, 20_000) == "0 faults of 20000\n"


@pytest.mark.parametrize(
    ("dtype", "given", "error", "words"),
    [
        ("int64", [1 << 70], RuntimeError, "Could not create tensor from given input list"),
        ("float32", np.zeros(2, "c8"), RuntimeError, "Unexpected input data type for input: x"),
        ("float32", np.zeros(2, "M8[s]"), RuntimeError, "Unexpected input data type for input: x"),
    ],
)
def test_errors_are_those_of_the_module(
    bundles: Path, dtype: str, given: Any, error: type[Exception], words: str
) -> None:
    with ParallelLoader(bundles / dtype, engine="library") as model, pytest.raises(error, match=words) as caught:
        model.run(None, {"x": given})
    assert type(caught.value) is error


def test_memory_stays_for_as_long_as_a_value_reads_it() -> None:
    engine = LibraryEngine(library())
    grows, mapped = bytearray(b"abcd"), mmap.mmap(-1, 4096)
    numbers = array.array("f", [1, 2])
    values = [engine.value(None, each) for each in (grows, mapped, numbers, memoryview(grows)[1:])]
    for change in (lambda: grows.extend(b"e"), mapped.close, lambda: numbers.append(3)):
        with pytest.raises(BufferError):
            change()
    del values
    gc.collect()
    grows.extend(b"e")
    numbers.append(3)
    mapped.close()


def test_a_view_that_its_owner_releases_is_still_read() -> None:
    engine = LibraryEngine(library())
    view = memoryview(bytearray(b"abcd"))
    value = engine.value(None, view)
    view.release()
    deleted = engine.value(None, np.full(1000, 7, np.float32))
    junk = [np.zeros(1000, np.float32) for _ in range(100)]
    gc.collect()
    assert engine.answer(value).tobytes() == b"abcd"
    assert set(engine.answer(deleted).numbers()) == {7.0}
    assert len(junk) == 100
    with pytest.raises(RuntimeError, match="the buffer of memoryview cannot be read"):
        engine.value(None, view)

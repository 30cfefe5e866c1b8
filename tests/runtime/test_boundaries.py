"""Large tensors between stages lie in arrays of their run: its later tensors take them, and no other run sees them."""

from __future__ import annotations

import weakref
from itertools import pairwise
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnxruntime as ort
import pytest

from splitload import ParallelLoader
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.bundle.manifest import TensorSpec
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.partition import Partition
from splitload.runtime import session
from splitload.runtime.boundaries import LARGE_BYTES, in_arrays

pytestmark = pytest.mark.usefixtures("engine")

COLUMNS = LARGE_BYTES // 4


def spec(name: str, shape: tuple[int | str | None, ...] | None, kind: str = "tensor(float)") -> TensorSpec:
    return TensorSpec(name, kind, shape)


@pytest.mark.parametrize(
    ("output", "lent"),
    [
        (spec("y", (1, COLUMNS)), True),
        (spec("y", (COLUMNS, 2), "tensor(float16)"), True),
        (spec("y", (1, COLUMNS - 1)), False),
        (spec("y", ("batch", COLUMNS)), False),
        (spec("y", None), False),
        (spec("y", (COLUMNS, 8), "tensor(string)"), False),
        (spec("unwanted", (1, COLUMNS)), False),
    ],
)
def test_what_is_large_and_known_is_lent(output: TensorSpec, lent: bool) -> None:
    arrays = in_arrays().lend([output], ["y"])
    assert list(arrays) == (["y"] if lent else [])
    assert all(array.shape == output.shape and array.nbytes >= LARGE_BYTES for array in arrays.values())


def test_an_array_is_taken_again_once_it_is_given_back_and_not_before() -> None:
    boundaries = in_arrays()
    (first,) = boundaries.lend([spec("a", (1, COLUMNS))], ["a"]).values()
    (second,) = boundaries.lend([spec("b", (1, COLUMNS))], ["b"]).values()
    assert not np.shares_memory(first, second)
    boundaries.take_back(np.zeros(3))  # not lent: an input of the caller's
    boundaries.take_back(first)
    (third,) = boundaries.lend([spec("c", (COLUMNS, 1))], ["c"]).values()
    assert np.shares_memory(first, third)
    (fourth,) = boundaries.lend([spec("d", (1, COLUMNS))], ["d"]).values()
    assert not any(np.shares_memory(fourth, other) for other in (second, third))


def test_a_tensor_holds_no_more_than_twice_its_memory() -> None:
    boundaries = in_arrays()
    for rows in (8, 8, 4, 4, 2, 2, 1, 1):
        (array,) = boundaries.lend([spec("a", (rows, COLUMNS))], ["a"]).values()
        memory = array
        while isinstance(memory.base, np.ndarray):
            memory = memory.base
        assert array.nbytes <= memory.nbytes <= 2 * array.nbytes
        boundaries.take_back(array)


def test_memory_that_fits_nothing_is_not_kept() -> None:
    boundaries = in_arrays()
    arrays = []
    for rows in range(1, 6):
        (array,) = boundaries.lend([spec("a", (rows, COLUMNS))], ["a"]).values()
        arrays.append(weakref.ref(array))
        boundaries.take_back(array)
        del array
    assert all(kept() is None for kept in arrays)


def test_a_shape_that_is_declared_wrongly_is_met_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = f"g (float[1,{COLUMNS}] x, int64[2] s) => (float[1,{COLUMNS}] y) {{ a = Sin(x) y = Reshape(a, s) }}"
    file = models.save(models.text(text), tmp_path)
    ones = np.ones((1, COLUMNS), np.float32)
    given = {"x": ones, "s": np.array([1, COLUMNS])}
    graph = load_graph(Source.open(file, "m"), "portable", tmp_path / "cache", feeds=given)
    build_bundle(tmp_path / "b", [VariantPlan(graph, Partition.of(len(graph.blocks), [1]), 2)], device="here")
    tried: list[bool] = []
    real = session._run_into

    def run_into(*arguments: Any) -> Any:
        tried.append(False)
        result = real(*arguments)
        tried[-1] = True
        return result

    monkeypatch.setattr(session, "_run_into", run_into)
    with ParallelLoader(tmp_path / "b") as model:
        for _ in range(3):
            (answer,) = model.run(None, {"x": ones, "s": np.array([2, COLUMNS // 2])})
            assert answer.shape == (2, COLUMNS // 2)
    assert tried.count(False) <= 1


@pytest.mark.parametrize("declared", [COLUMNS, 2 * COLUMNS])
def test_answers_are_the_models_and_stay(tmp_path: Path, declared: int) -> None:
    """Also where the model declares another size than it gives."""
    names = ["x", *(f"t{number}" for number in range(4)), "y"]
    lines = "\n".join(f"{after} = Sin({before})" for before, after in pairwise(names))
    shape = f"float[1,{COLUMNS}]"
    text = f"g ({shape} x) => ({shape} y, float[1,{declared}] t2) {{ {lines} }}"
    file = models.save(models.text(text), tmp_path)
    graph = load_graph(Source.open(file, "m"), "portable", tmp_path / "cache")
    build_bundle(tmp_path / "b", [VariantPlan(graph, Partition.of(len(graph.blocks), range(1, 5)), 2)], device="here")
    stock = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = [{"x": np.full((1, COLUMNS), value, np.float32)} for value in (0.5, 1.5)]
    with ParallelLoader(tmp_path / "b") as model:
        answers = [model.run(None, each) for each in feeds]
        alone = model.run(["y"], feeds[0])[0]
    for each, answer in zip(feeds, answers, strict=True):
        for found, wanted in zip(answer, stock.run(None, each), strict=True):
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(alone, answers[0][0])

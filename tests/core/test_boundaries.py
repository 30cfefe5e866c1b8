"""Large tensors between stages lie in arrays of their run: its later tensors take them, and no other run sees them."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import models
import numpy as np
import onnxruntime as ort
import pytest

from splitload import ParallelLoader
from splitload.boundaries import LARGE_BYTES, Boundaries
from splitload.deploy.build import Plan, build_bundle
from splitload.frontends.onnx import Source, load_graph
from splitload.manifest import TensorSpec
from splitload.partition import Partition

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
    arrays = Boundaries().lend([output], ["y"])
    assert list(arrays) == (["y"] if lent else [])
    assert all(array.shape == output.shape and array.nbytes >= LARGE_BYTES for array in arrays.values())


def test_an_array_is_taken_again_once_it_is_given_back_and_not_before() -> None:
    boundaries = Boundaries()
    (first,) = boundaries.lend([spec("a", (1, COLUMNS))], ["a"]).values()
    (second,) = boundaries.lend([spec("b", (1, COLUMNS))], ["b"]).values()
    assert not np.shares_memory(first, second)
    boundaries.take_back(np.zeros(3))  # not lent: an input of the caller's
    boundaries.take_back(first)
    (third,) = boundaries.lend([spec("c", (COLUMNS, 1))], ["c"]).values()
    assert np.shares_memory(first, third)
    (fourth,) = boundaries.lend([spec("d", (1, COLUMNS))], ["d"]).values()
    assert not any(np.shares_memory(fourth, other) for other in (second, third))


def test_a_small_tensor_does_not_hold_a_large_array() -> None:
    boundaries = Boundaries()
    (large,) = boundaries.lend([spec("a", (3, COLUMNS))], ["a"]).values()
    boundaries.take_back(large)
    (small,) = boundaries.lend([spec("b", (1, COLUMNS))], ["b"]).values()
    assert not np.shares_memory(large, small)


@pytest.mark.parametrize("declared", [COLUMNS, 2 * COLUMNS])
def test_answers_are_the_models_and_stay(tmp_path: Path, declared: int) -> None:
    """Also where the model declares another size than it gives."""
    names = ["x", *(f"t{number}" for number in range(4)), "y"]
    lines = "\n".join(f"{after} = Sin({before})" for before, after in pairwise(names))
    shape = f"float[1,{COLUMNS}]"
    text = f"g ({shape} x) => ({shape} y, float[1,{declared}] t2) {{ {lines} }}"
    file = models.save(models.text(text), tmp_path)
    graph = load_graph(Source.open(file, "m"), "portable", tmp_path / "cache")
    build_bundle(tmp_path / "b", [Plan(graph, Partition.of(len(graph.blocks), range(1, 5)), 2)], device="here")
    stock = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    feeds = [{"x": np.full((1, COLUMNS), value, np.float32)} for value in (0.5, 1.5)]
    with ParallelLoader(tmp_path / "b") as model:
        answers = [model.run(None, each) for each in feeds]
        alone = model.run(["y"], feeds[0])[0]
    for each, answer in zip(feeds, answers, strict=True):
        for found, wanted in zip(answer, stock.run(None, each), strict=True):
            np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(alone, answers[0][0])

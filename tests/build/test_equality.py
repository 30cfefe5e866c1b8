"""The check that a cut model computes what the whole one does: it must pass what is right and catch what is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest

from splitload.base.errors import ModelError
from splitload.build import equality
from splitload.build.equality import Outcome, check_graph, even_splits, run_split
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.stages import StageWriter
from splitload.runtime.answers import identical, relative_error

LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def test_identical_is_about_type_shape_and_values() -> None:
    one = np.ones(3, np.float32)
    assert identical(one, one.copy())
    assert not identical(one, one.astype(np.float64))
    assert not identical(one, one.reshape(3, 1))
    assert not identical(one, np.nextafter(one, 2))
    nan = np.array([np.nan, np.inf], np.float32)
    assert identical(nan, nan.copy())
    assert not identical(nan, np.array([np.nan, -np.inf], np.float32))
    assert identical(np.array(["a"], object), np.array(["a"], object))
    assert not identical(np.array([1]), np.array([2]))
    assert identical([one, one], [one, one])
    assert not identical([one], [one, one])
    assert identical([{1: 0.5}], [{1: 0.5}])
    assert not identical([{1: 0.5}], [{1: 0.25}])
    assert not identical(None, one)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (np.array([1.0, 4.1]), np.array([1.0, 4.0]), 0.025),
        (np.array([np.nan, 2.0]), np.array([np.nan, 2.0]), 0.0),
        (np.array([np.nan, 2.0]), np.array([1.0, 2.0]), np.inf),
        (np.array([np.inf]), np.array([-np.inf]), np.inf),
        (np.array([1.0]), np.array([[1.0]]), np.inf),
        (np.array([1]), np.array([1]), 0.0),
        (np.array([1]), np.array([2]), np.inf),
        (np.zeros(0), np.zeros(0), 0.0),
        ([np.array([1.0])], [np.array([1.0])], 0.0),
        ([np.array([2.0])], [np.array([1.0])], 1.0),
        (np.array([1 + 1j]), np.array([1 + 0j]), 1.0),
        ([{"a": 0.5, "b": 0.25}], [{"b": 0.25, "a": 0.4}], 0.25),
        ([{1: 0.5}], [{2: 0.5}], np.inf),
        ([{1: "a"}], [{1: "b"}], np.inf),
    ],
)
def test_relative_error(left: Any, right: Any, expected: float) -> None:
    assert relative_error(left, right) == pytest.approx(expected)


def test_even_splits() -> None:
    assert even_splits([1, 2, 3, 4, 5, 6], (1, 2, 3)) == [(4,), (3, 5)]
    assert even_splits([3], (2, 3, 5)) == [(3,)]
    assert even_splits([], (2,)) == []


def opened(folder: Path, model: onnx.ModelProto) -> Source:
    return Source.open(models.save(model, folder), "model")


def test_all_cuts_and_partitions_are_tried(tmp_path: Path) -> None:
    source = opened(tmp_path, models.chain(10))
    calls: list[tuple[int, int]] = []
    outcome = check_graph(
        source, load_graph(source, "portable", tmp_path), on_progress=lambda done, total: calls.append((done, total))
    )
    assert outcome == Outcome(9, 4, (), outcome.original_error)
    assert outcome.passed
    assert calls == [(done, 13) for done in range(1, 14)]


def test_a_split_that_differs_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = opened(tmp_path, models.chain(4))
    graph = load_graph(source, "portable", tmp_path)

    def wrong(writer: StageWriter, graph: Any, positions: Any, feeds: Any) -> list[Any]:
        (y,) = run_split(writer, graph, positions, feeds)
        return [y + 1 if positions == (2,) else y]

    monkeypatch.setattr(equality, "run_split", wrong)
    outcome = check_graph(source, graph, num_stages=(4,))
    assert outcome.different == ((2,),)
    assert not outcome.passed


def test_an_error_against_the_original_fails() -> None:
    assert Outcome(1, 1, (), 1e-4).passed
    assert not Outcome(1, 1, (), 1.1e-4).passed
    assert not Outcome(1, 1, (), float("nan")).passed


def test_models_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    source = opened(tmp_path, models.text("g (float[3] x) => (bfloat16[3] y) { a = Tanh(x)\n y = Cast <to=16> (a) }"))
    graph = load_graph(source, "portable", tmp_path)
    with pytest.raises(ModelError, match="does not run on these inputs: No corresponding Numpy type"):
        check_graph(source, graph)
    source = opened(tmp_path, models.text("g (float[2,3] x, int64[1] to) => (float[n] y) { y = Reshape(x, to) }"))
    with pytest.raises(ModelError, match="does not run on these inputs: "):
        check_graph(source, load_graph(source, "portable", tmp_path))


def test_a_stage_that_cannot_run_alone_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = load_graph(opened(tmp_path, models.chain(4)), "portable", tmp_path)
    monkeypatch.setattr(equality, "run_stage", lambda *_: 1 / 0)
    with pytest.raises(ModelError, match="nodes 0 to 2 do not run alone: division by zero"):
        run_split(StageWriter(graph), graph, [2], {"x": models.floats(1, 4)})
    assert not list(graph.path.parent.glob(".cut-*"))


@pytest.mark.parametrize("name", ["light_squeezenet", pytest.param("light_shufflenet", marks=pytest.mark.slow)])
def test_real_topologies_that_ship_with_onnx(tmp_path: Path, name: str) -> None:
    source = Source.open(LIGHT / f"{name}.onnx", name)
    graph = load_graph(source, "native", tmp_path)
    outcome = check_graph(source, graph)
    assert outcome.passed
    assert outcome.num_cuts > 20

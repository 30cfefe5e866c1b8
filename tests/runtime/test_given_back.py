"""Inputs that are outputs too: `run` gives copies, as a session does, whatever the bundle looks like."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import models
import numpy as np
import onnxruntime as ort
import pytest

from splitload import ParallelLoader
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.partition import Partition

pytestmark = pytest.mark.usefixtures("engine")

MODEL = """g (float[1,4] x, string[2] s, seq(float[2]) q)
    => (float[1,4] y, float[1,4] x, string[2] s, seq(float[2]) q, float[4] w) <float[4] w = {1, 2, 3, 4}> {
        a = Sin(x)
        b = Mul(a, w)
        y = Sin(b)
    }"""


def feeds() -> dict[str, Any]:
    return {
        "x": np.full((1, 4), 0.5, np.float32),
        "s": np.array(["a", "b"], dtype=object),
        "q": [np.ones(2, np.float32), np.zeros(2, np.float32)],
    }


@pytest.mark.parametrize("cuts", [[], [1, 2]], ids=["one stage", "cut"])
@pytest.mark.parametrize("kind", ["portable", "native"])
def test_neither_the_caller_nor_the_model_sees_what_is_done_to_the_other(
    tmp_path: Path, kind: Literal["portable", "native"], cuts: list[int]
) -> None:
    file = models.save(models.text(MODEL), tmp_path)
    graphs = [
        load_graph(Source.open(file, "m"), each, tmp_path / "cache") for each in dict.fromkeys([kind, "portable"])
    ]
    plans = [VariantPlan(graph, Partition.of(len(graph.blocks), cuts), 2) for graph in graphs]
    build_bundle(tmp_path / "b", plans, device="host" if kind == "native" else "here")
    stock = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with ParallelLoader(tmp_path / "b") as model:
        assert len(model.variant.stages) == len(cuts) + 1
        assert model.variant.kind == kind
        for session in (stock, model):
            given, same = feeds(), feeds()
            names = ["y", "x", "s", "q", "w"]
            answers = session.run(names, given)
            x, s, q = (given[name] for name in "xsq")
            x[:], s[0], q[0][:] = 9, "changed", 9
            q.pop()
            for name, answer in zip(names[1:4], answers[1:4], strict=True):
                np.testing.assert_array_equal(answer, same[name])
                assert type(answer) is type(same[name])
            given = feeds()
            answers = session.run(names, given)
            for answer in (*answers[1:3], answers[3][0], answers[4]):
                answer[:] = "changed" if answer.dtype == object else 9
            np.testing.assert_array_equal(given["x"], same["x"])
            assert given["s"].tolist() == ["a", "b"]
            np.testing.assert_array_equal(given["q"], same["q"])
            np.testing.assert_array_equal(session.run(["w"], given)[0], [1, 2, 3, 4])
            # other forms of the same
            listed = given | {"x": [[1.0, 2.0, 3.0, 4.0]], "s": np.array(["a", "b"])}
            x, s = session.run(["x", "s"], listed)
            assert x.dtype == np.float32
            assert x.tolist() == listed["x"]
            assert (s.dtype, s.tolist()) == (object, ["a", "b"])


def test_ort_values_come_back_as_they_are_as_with_a_session(tmp_path: Path) -> None:
    file = models.save(
        models.text("g (float[1,4] x) => (float[1,4] y, float[1,4] x) { a = Sin(x)\n y = Sin(a) }"), tmp_path
    )
    graph = load_graph(Source.open(file, "m"), "portable", tmp_path / "cache")
    build_bundle(tmp_path / "b", [VariantPlan(graph, Partition.of(len(graph.blocks), [1]), 2)], device="here")
    stock = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    with ParallelLoader(tmp_path / "b") as model:
        for session in (stock, model):
            array = np.full((1, 4), 0.5, np.float32)
            value = ort.OrtValue.ortvalue_from_numpy(array)
            _, x = session.run_with_ort_values(["y", "x"], {"x": value})
            assert x.data_ptr() == array.ctypes.data
            binding = session.io_binding()
            binding.bind_cpu_input("x", array)
            binding.bind_output("x")
            session.run_with_iobinding(binding)
            assert binding.get_outputs()[0].data_ptr() == array.ctypes.data
            assert not np.shares_memory(binding.copy_outputs_to_cpu()[0], array)
            (x,) = session.run(["x"], {"x": value})
            assert not np.shares_memory(x, array)

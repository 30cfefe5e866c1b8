"""A Concat begins with what an earlier one has joined already, and outputs stay what they were to the bit."""

from __future__ import annotations

from pathlib import Path

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import floats

from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.observe import plain_options
from splitload.graphs.tidy import join_concats
from splitload.runtime.session import open_session


def joins(*nodes: str) -> list[str]:
    """Return the inputs of the last of some nodes, after all are joined."""
    graph = onnx.parser.parse_graph(f"g (float[n] a, float[n] b, float[n] c) => (float[m] z) {{ {' '.join(nodes)} }}")
    join_concats(graph)
    return list(graph.node[-1].input)


@pytest.mark.parametrize(
    ("earlier", "last", "inputs"),
    [
        (["x = Concat <axis=0> (a, b)"], "z = Concat <axis=0> (a, b, c)", ["x", "c"]),
        (
            ["x = Concat <axis=0> (a, b)", "y = Concat <axis=0> (a, b, c)"],
            "z = Concat <axis=0> (a, b, c, a)",
            ["y", "a"],
        ),
        (["x = Concat <axis=0> (a, b)"], "z = Concat <axis=0> (a, b, a, b)", ["x", "a", "b"]),
        (["x = Concat <axis=0> (a, b)", "y = Concat <axis=0> (a, b)"], "z = Concat <axis=0> (a, b, c)", ["x", "c"]),
        ([], "z = Concat <axis=0> (a, b, c)", ["a", "b", "c"]),
        (["x = Concat <axis=1> (a, b)"], "z = Concat <axis=0> (a, b, c)", ["a", "b", "c"]),
        (["x = Concat <axis=0> (b, c)"], "z = Concat <axis=0> (a, b, c)", ["a", "b", "c"]),
        (["x = Concat <axis=0> (a, c)"], "z = Concat <axis=0> (a, b, c)", ["a", "b", "c"]),
        (["x = Concat <axis=0> (a)"], "z = Concat <axis=0> (a, b)", ["a", "b"]),
        (["x = Concat <axis=0> (a, b)"], "z = Concat <axis=0> (a, b)", ["a", "b"]),
        (["x = Sum (a, b)"], "z = Concat <axis=0> (a, b, c)", ["a", "b", "c"]),
        (["x = Concat <axis=0> (a, b)"], "z = Sum (a, b, c)", ["a", "b", "c"]),
    ],
)
def test_what_is_read_from_an_earlier_join(earlier: list[str], last: str, inputs: list[str]) -> None:
    assert joins(*earlier, last) == inputs


def test_an_operator_of_another_domain_is_left_alone() -> None:
    graph = onnx.parser.parse_graph(
        "g (float[n] a, float[n] b) => (float[m] z) "
        "{ x = Concat <axis=0> (a, b) z = com.example.Concat <axis=0> (a, b, a) }"
    )
    assert join_concats(graph) == 0
    assert list(graph.node[-1].input) == ["a", "b", "a"]


DENSE = """g (float[n,3,6,6] x) => (float[n,m,6,6] y) {
    a = Relu(x)
    ab = Concat <axis=1> (x, a)
    c = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (ab, w)
    abc = Concat <axis=1> (x, a, c)
    d = Sigmoid(abc)
    y = Concat <axis=1> (x, a, c, d)
}"""


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_a_densely_connected_model_gives_the_same_bits(tmp_path: Path, kind: str) -> None:
    model = models.text(DENSE, 18, w=floats(5, 6, 3, 3))
    path = load_graph(Source.open(models.save(model, tmp_path), "m"), kind, tmp_path / "cache").path  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("splitload.graphs.optimize.join_concats", lambda _: 0)
        plain = load_graph(Source.open(models.save(model, tmp_path), "m"), kind, tmp_path / "plain").path  # type: ignore[arg-type]
    widths = [
        [len(node.input) for node in onnx.load(file, load_external_data=False).graph.node if node.op_type == "Concat"]
        for file in (plain, path)
    ]
    assert widths == [[2, 3, 4], [2, 2, 2]]
    for images in (0, 1, 2):
        feeds = {"x": floats(images, 3, 6, 6)}
        ours, theirs = (open_session(file).run(None, feeds)[0] for file in (path, plain))
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("columns", [0, 3])
def test_empty_tensors_are_refused_or_taken_as_before(columns: int) -> None:
    model = models.text(
        "g (float[p,q] a, float[r,s] b, float[t,u] c) => (float[v,w] x, float[k,l] y) "
        "{ x = Concat <axis=0> (a, b) y = Concat <axis=0> (a, b, c) }",
        18,
    )
    stock = ort.InferenceSession(model.SerializeToString(), plain_options(), providers=["CPUExecutionProvider"])
    assert join_concats(model.graph) == 1
    ours = ort.InferenceSession(model.SerializeToString(), plain_options(), providers=["CPUExecutionProvider"])
    for a, b, c in [((0, 3), (2, columns), (1, columns)), ((0, columns), (0, 3), (1, 3)), ((2, 3), (0, 1), (1, 3))]:
        feeds = {"a": floats(*a), "b": floats(*b), "c": floats(*c)}
        try:
            expected = stock.run(None, feeds)
        except Exception:
            with pytest.raises(Exception, match="Concat"):
                ours.run(None, feeds)
        else:
            for left, right in zip(ours.run(None, feeds), expected, strict=True):
                assert left.shape == right.shape
                if any(value.size for value in feeds.values()):  # otherwise onnxruntime leaves the output unset
                    np.testing.assert_array_equal(left, right)

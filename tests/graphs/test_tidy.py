"""What a graph in blocks does twice is done once, what looks like it is left alone, and outputs stay what they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from models import floats
from test_layout import ROWS, assert_answers, needs_blocks, operators, optimized

from splitload.graphs import layout
from splitload.graphs.tidy import tidy
from splitload.runtime.session import open_session

pytestmark = [needs_blocks, pytest.mark.usefixtures("accepting")]
V, W, B, C = floats(32, 48), floats(48, 32), floats(48), floats(32)
WEIGHTS = {"v": V, "w": W, "b": B, "c": C}


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rewritten graph counts as fast enough."""
    monkeypatch.setattr(layout, "is_as_fast", lambda *_: True)


def chain(between: str, source: str = "float[n,32] x", result: str = "float[n,32] y", **weights: Any) -> Any:
    """Return two products of matrices, with something between them that makes q of p."""
    text = f"g ({source}) => ({result}) {{ p = Gemm(x, v, b) {between} y = Gemm(q, w, c) }}"
    return models.text(text, 20, **{**WEIGHTS, **weights})


@pytest.mark.parametrize("between", ["q = Gelu(p)", "q = Erf(p)"])
def test_elements_are_changed_in_blocks(tmp_path: Path, between: str) -> None:
    model = chain(between)
    path = optimized(model, tmp_path, {"x": floats(ROWS, 32)})
    kind = between.split()[2].split("(")[0]
    assert operators(path) == ["Reshape", "ReorderInput", "Conv", kind, "Conv", "ReorderOutput", "Reshape"]
    assert_answers(model, path, *({"x": floats(rows, 32)} for rows in (1, 5, ROWS)))


@pytest.mark.parametrize("between", ["q = Relu(p)", "q = Tanh(p)", "q = Sigmoid(p)", "q = LeakyRelu <alpha=0.1> (p)"])
def test_fused_activations_stay_fused(tmp_path: Path, between: str) -> None:
    model = chain(between)
    path = optimized(model, tmp_path, {"x": floats(ROWS, 32)})
    assert operators(path) == ["Reshape", "ReorderInput", "Conv", "Conv", "ReorderOutput", "Reshape"]
    assert_answers(model, path, *({"x": floats(rows, 32)} for rows in (1, 5, ROWS)))


def test_reshapes_between_products_vanish(tmp_path: Path) -> None:
    model = chain(
        "a = Reshape(p, four) d = Gelu(a) q = Reshape(d, two)",
        "float[20,32] x",
        "float[20,32] y",
        four=np.array([2, -1, 2, 48]),
        two=np.array([-1, 48]),
    )
    path = optimized(model, tmp_path, {"x": floats(20, 32)})
    assert operators(path) == ["Reshape", "ReorderInput", "Conv", "Gelu", "Conv", "ReorderOutput", "Reshape"]
    assert_answers(model, path, {"x": floats(20, 32)})


def test_three_products_in_a_row(tmp_path: Path) -> None:
    model = models.text(
        """g (float[n,32] x) => (float[n,48] y) {
            p = Gemm(x, v, b) q = Gelu(p) r = Gemm(q, w, c) s = Erf(r) y = Gemm(s, u, b)
        }""",
        20,
        **WEIGHTS,
        u=floats(32, 48),
    )
    path = optimized(model, tmp_path, {"x": floats(ROWS, 32)})
    assert Counter(operators(path)) == {
        "Reshape": 2, "ReorderInput": 1, "ReorderOutput": 1, "Conv": 3, "Gelu": 1, "Erf": 1
    }  # fmt: skip
    assert_answers(model, path, {"x": floats(ROWS, 32)}, {"x": floats(3, 32)})


def test_products_of_one_input_share_its_blocks(tmp_path: Path) -> None:
    model = models.text(
        """g (float[2,20,32] x) => (float[40,48] y, float[40,48] z) {
            a = Reshape(x, to) d = Reshape(x, also)
            y = Gemm(a, v, b) z = Gemm(d, u, b)
        }""",
        **WEIGHTS,
        u=floats(32, 48),
        to=np.array([-1, 32]),
        also=np.array([-1, 32]),
    )
    path = optimized(model, tmp_path, {"x": floats(2, 20, 32)})
    assert Counter(operators(path)) == {"Reshape": 3, "ReorderInput": 1, "Conv": 2, "ReorderOutput": 2}
    assert_answers(model, path, {"x": floats(2, 20, 32)})


LEFT_IN_ROWS: dict[str, tuple[Any, Mapping[str, Any]]] = {
    "rows are compared": (chain("q = Softmax(p)"), {"x": floats(ROWS, 32)}),
    "columns differ": (chain("q = Mul(p, each)", each=floats(48)), {"x": floats(ROWS, 32)}),
    "two values meet": (chain("t = Tanh(p) q = Mul(p, t)"), {"x": floats(ROWS, 32)}),
    "used elsewhere": (
        chain("q = Gelu(p) z = ReduceSum(q)", result="float[n,32] y, float[1,1] z"),
        {"x": floats(ROWS, 32)},
    ),
    "an output of the model": (
        chain("q = Gelu(p)", result="float[n,32] y, float[n,48] q"),
        {"x": floats(ROWS, 32)},
    ),
    "other columns": (
        chain(
            "a = Reshape(p, to) q = Gelu(a)",
            "float[20,32] x",
            "float[60,32] y",
            to=np.array([-1, 16]),
            w=floats(16, 32),
        ),
        {"x": floats(20, 32)},
    ),
    "transposed": (
        chain("a = Transpose <perm=[1,0]> (p) q = Gelu(a)", "float[48,32] x", "float[48,32] y"),
        {"x": floats(48, 32)},
    ),
    "of three dimensions": (
        models.text(
            "g (float[2,n,32] x) => (float[2,n,32] y) { p = MatMul(x, v) q = Gelu(p) y = MatMul(q, w) }",
            20,
            v=V,
            w=W,
        ),
        {"x": floats(2, ROWS, 32)},
    ),
}


@pytest.mark.parametrize("name", LEFT_IN_ROWS)
def test_what_is_not_joined(tmp_path: Path, name: str) -> None:
    model, feeds = LEFT_IN_ROWS[name]
    path = optimized(model, tmp_path, feeds)
    assert Counter(operators(path))["ReorderInput"] == 2
    assert_answers(model, path, feeds)


@pytest.mark.parametrize(
    ("first", "then", "counted", "joined"),
    [
        ("-1,48", "1,-1,48", False, True),
        ("-1,48", "1,-1,96", False, True),
        ("-1,48", "2,4,48", False, True),
        ("-1,48", "0,-1,48", False, False),  # keeps a size of what it reshapes
        ("-1,48", "1,-1,24", False, False),  # the first would refuse 24 elements
        ("2,-1", "1,-1,1", False, False),
        ("8,48", "1,-1,48", False, False),  # takes 384 elements and no others
        ("8,48", "1,-1,48", True, True),
        ("0,-1", "1,-1,48", False, False),
    ],
)
def test_reshapes_are_joined_where_the_first_cannot_fail(first: str, then: str, counted: bool, joined: bool) -> None:
    graph = onnx.parser.parse_graph(
        f"""g (float[2,n,48] x) => (float[a,b,c] z) <int64[2] first = {{{first}}}, int64[3] then = {{{then}}}> {{
            y = Reshape(x, first)
            z = Reshape(y, then)
        }}"""
    )
    tidy(graph, {"x": 384} if counted else {})
    assert [node.input[0] for node in graph.node] == (["x"] if joined else ["x", "y"])


def test_what_bodies_and_outputs_use_is_kept() -> None:
    graph = onnx.parser.parse_graph(
        """g (float[n,32] x, bool go) => (float[1,n,1,32] b, float[1,n,1,32] z)
            <int64[4] to = {1,-1,1,32}> {
            a = Reshape(x, to)
            b = Reshape(x, to)
            d = Reshape(x, to)
            z = If (go) <
                then_branch = t () => (float[1,n,1,32] p) { p = Identity(d) },
                else_branch = e () => (float[1,n,1,32] q) { q = Neg(a) }
            >
        }"""
    )
    tidy(graph, {})
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in graph.node] == ["Reshape", "Reshape", "Reshape", "If"]


def test_what_a_node_takes_and_its_body_as_well_is_kept() -> None:
    graph = onnx.parser.parse_graph(
        """g (float[n,32] x, int64 m, bool go) => (float[1,k,1,32] b, float[1,j,1,32] z)
            <int64[4] to = {1,-1,1,32}> {
            a = Reshape(x, to)
            b = Identity(a)
            d = Reshape(x, to)
            z = Loop (m, go, d) <
                body = l (int64 i, bool c, float[1,j,1,32] s) => (bool o, float[1,j,1,32] t) {
                    o = Identity(c) t = Add(s, d)
                }
            >
        }"""
    )
    tidy(graph, {})
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in graph.node] == ["Reshape", "Identity", "Reshape", "Loop"]


def image(kernel: str, before: str) -> Any:
    """Return a convolution of the model's own beside products of rows, with feeds that hide nothing."""
    model = models.text(
        f"""g (float[20,48] x) => (float[20,32] y) {{
            r = Reshape(x, to) t = Transpose <perm=[0,3,1,2]> (r)
            p = Conv <{kernel}> (t, k)
            {before}
            y = MatMul(q, w)
        }}""",
        20,
        w=W,
        k=floats(48, 48, *([1, 1] if "[1,1]" in kernel else [3, 3])),
        to=np.array([1, -1, 1, 48]),
        flat=np.array([-1, 48]),
    )
    return model, {"x": floats(20, 48)}


@pytest.mark.parametrize(
    ("kernel", "before"),
    [
        ("kernel_shape=[1,1]", "q = Reshape(p, flat)"),  # leaves the blocks with channels first: other rows
        ("kernel_shape=[1,1]", "s = Transpose <perm=[0,2,3,1]> (p) q = Reshape(s, flat)"),
        ("kernel_shape=[3,3], pads=[1,1,1,1]", "s = Transpose <perm=[0,2,3,1]> (p) q = Reshape(s, flat)"),
    ],
)
def test_convolutions_of_the_model_beside_products(tmp_path: Path, kernel: str, before: str) -> None:
    model, feeds = image(kernel, before)
    assert_answers(model, optimized(model, tmp_path, feeds), feeds)


def test_an_image_that_is_padded_between_products(tmp_path: Path) -> None:
    model = models.text(
        """g (float[20,48] x) => (float[60,32] y) {
            r = Reshape(x, to) t = Transpose <perm=[0,3,1,2]> (r)
            p = Conv <kernel_shape=[1,1], pads=[0,1,0,1]> (t, k)
            s = Transpose <perm=[0,2,3,1]> (p) u = Reshape(s, to) v = Transpose <perm=[0,3,1,2]> (u)
            c = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (v, l)
            d = Transpose <perm=[0,2,3,1]> (c) q = Reshape(d, flat)
            y = MatMul(q, w)
        }""",
        20,
        w=W,
        k=floats(48, 48, 1, 1),
        l=floats(48, 48, 3, 3),
        to=np.array([1, -1, 1, 48]),
        flat=np.array([-1, 48]),
    )
    feeds = {"x": floats(20, 48)}
    assert_answers(model, optimized(model, tmp_path, feeds), feeds)


def test_reshapes_keep_refusing(tmp_path: Path) -> None:
    model = models.text(
        "g (float[n,m] x) => (float[20,48] y) { c = Reshape(x, to) y = MatMul(c, v) }", v=V, to=np.array([20, 32])
    )
    path = optimized(model, tmp_path, {"x": floats(20, 32)})
    assert "Conv" in operators(path)
    assert_answers(model, path, {"x": floats(20, 32)}, {"x": floats(32, 20)})
    with pytest.raises(Exception, match="reshape"):
        open_session(path).run(None, {"x": floats(40, 32)})

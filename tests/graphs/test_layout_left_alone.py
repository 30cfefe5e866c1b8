"""Matrix products that are left as they are, graphs that are refused, and outputs that are compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from layout_models import (
    CHANGES_OF_LAYOUT,
    REWRITTEN,
    ROWS,
    SQUARE,
    B,
    Case,
    W,
    assert_answers,
    files,
    needs_blocks,
    operators,
    optimized,
    product,
    unblocked,
)
from models import floats

from splitload.graphs import layout
from splitload.graphs.layout import DOMAIN, MIN_ROWS, block_products, to_blocks

CAPTURED = """g (float[n,32] x, bool go, float s) => (float[n,48] y, float[a,b] z) {
    y = MatMul(x, w)
    z = If (go) <
        then_branch = t () => (float[a,b] p) { p = Mul(w, s) },
        else_branch = e () => (float[a,b] q) { q = Sub(w, s) }
    >
}"""


LEFT_ALONE: dict[str, Case] = {
    "alpha": Case(product("Gemm <alpha=0.5> (x, w, b)"), {"w": W, "b": B}),
    "beta": Case(product("Gemm <beta=0.5> (x, w, b)"), {"w": W, "b": B}),
    "beta of zero": Case(product("Gemm <beta=0.0> (x, w, b)"), {"w": W, "b": B}),
    "transA": Case(product("Gemm <transA=1> (x, w)", "float[32,n] x"), {"w": W}, {"x": floats(32, ROWS)}),
    "a bias that is an input": Case(
        product("Gemm(x, w, b)", "float[n,32] x, float[48] b"), {"w": W}, {"x": floats(ROWS, 32), "b": B}
    ),
    "weights that are an input": Case(
        product("MatMul(x, w)", "float[n,32] x, float[32,48] w"), {}, {"x": floats(ROWS, 32), "w": W}
    ),
    "weights on the other side": Case(
        product("MatMul(w, x)", "float[32,48] x", "float[48,48] y"), {"w": floats(48, 32)}, {"x": floats(32, 48)}
    ),
    "weights used elsewhere": Case(
        """g (float[n,32] x, int64[k] at) => (float[n,48] y, float[k,48] z) {
            y = MatMul(x, w)
            z = Gather(w, at)
        }""",
        {"w": W},
        {"x": floats(ROWS, 32), "at": np.array([3, 1])},
    ),
    "weights used in a body": Case(
        CAPTURED, {"w": W}, {"x": floats(ROWS, 32), "go": np.array(True), "s": np.array(2, np.float32)}
    ),
    "weights used in a product with few rows": Case(
        """g (float[n,32] x, float[k,32] few) => (float[n,48] y, float[k,48] z) {
            y = MatMul(x, w)
            z = MatMul(few, w)
        }""",
        {"w": W},
        {"x": floats(ROWS, 32), "few": floats(2, 32)},
    ),
    "weights used both ways round": Case(
        """g (float[n,32] x) => (float[n,32] y, float[n,32] z) {
            y = MatMul(x, w)
            z = Gemm <transB=1> (x, w)
        }""",
        {"w": SQUARE},
    ),
    "columns that only a run can tell": Case(
        product("Gemm(x, w, b)", "float[n,m] x"), {"w": W, "b": B}, {"x": floats(ROWS, 32)}
    ),
    "rows that only a run can tell": Case(
        """g (float[?,32] x, bool[?] keep) => (float[?,48] y) {
            k = Compress <axis=0> (x, keep)
            y = MatMul(k, w)
        }""",
        {"w": W},
        {"x": floats(ROWS, 32), "keep": np.ones(ROWS, bool)},
    ),
    "inputs that are no multiple of the block": Case(
        product("MatMul(x, w)", "float[n,36] x"), {"w": floats(36, 48)}, {"x": floats(ROWS, 36)}
    ),
    "outputs that are no multiple of the block": Case(
        product("MatMul(x, w)", result="float[n,20] y"), {"w": floats(32, 20)}
    ),
    "too few rows": Case(product("MatMul(x, w)"), {"w": W}, {"x": floats(MIN_ROWS - 1, 32)}),
    "too few rows in two dimensions": Case(
        product("MatMul(x, w)", "float[3,5,32] x", "float[3,5,48] y"), {"w": W}, {"x": floats(3, 5, 32)}
    ),
    "five dimensions": Case(
        product("MatMul(x, w)", "float[2,2,2,2,32] x", "float[2,2,2,2,48] y"), {"w": W}, {"x": floats(2, 2, 2, 2, 32)}
    ),
    "weights inside the graph file": Case(
        product("MatMul(x, w)", "float[n,8] x", "float[n,16] y"), {"w": floats(8, 16)}, {"x": floats(ROWS, 8)}
    ),
    "weights of three dimensions": Case(
        product("MatMul(x, w)", "float[2,n,32] x", "float[2,n,48] y"),
        {"w": floats(2, 32, 48)},
        {"x": floats(2, ROWS, 32)},
    ),
    "doubles": Case(
        product("MatMul(x, w)", "double[n,32] x", "double[n,48] y"),
        {"w": W.astype(np.float64)},
        {"x": floats(ROWS, 32).astype(np.float64)},
    ),
}


@pytest.mark.usefixtures("accepting")
@pytest.mark.parametrize("name", LEFT_ALONE)
def test_products_that_are_left_alone(tmp_path: Path, name: str) -> None:
    case = LEFT_ALONE[name]
    path = optimized(case.model(), tmp_path / "a", case.feeds)
    assert not set(operators(path)) & set(CHANGES_OF_LAYOUT)
    assert files(path.parent) == files(unblocked(case.model(), tmp_path / "b", case.feeds).parent)
    assert_answers(case.model(), path, case.feeds)


@pytest.mark.usefixtures("accepting")
def test_weights_that_are_an_output_are_left_alone(tmp_path: Path) -> None:
    case = Case("g (float[n,32] x) => (float[n,48] y, float[32,48] w) { y = MatMul(x, w) }", {"w": W})
    path = optimized(case.model(), tmp_path, case.feeds)
    assert not set(operators(path)) & set(CHANGES_OF_LAYOUT)
    assert_answers(case.model(), path, case.feeds)


@pytest.mark.usefixtures("accepting")
def test_without_blocks_on_this_processor_nothing_is_rewritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "channel_block", lambda *_: None)
    case = REWRITTEN["Gemm"][1]
    path = optimized(case.model(), tmp_path / "a", case.feeds)
    assert files(path.parent) == files(unblocked(case.model(), tmp_path / "b", case.feeds).parent)


@pytest.mark.usefixtures("accepting")
def test_an_input_whose_shape_was_not_seen_is_left_alone(tmp_path: Path) -> None:
    case = REWRITTEN["Gemm"][1]
    path = unblocked(case.model(), tmp_path, case.feeds)
    before = files(path.parent)
    for shapes in ({}, {"x": None}, {"x": (32,)}):
        assert block_products(path, shapes, case.feeds, {}) == 0
    assert files(path.parent) == before


@needs_blocks
@pytest.mark.usefixtures("accepting")
def test_called_directly(tmp_path: Path) -> None:
    case = REWRITTEN["weights of two products"][1]
    path = unblocked(case.model(), tmp_path, case.feeds)
    before = files(path.parent)
    tanh = next(node.output[0] for node in onnx.load(path).graph.node if node.op_type == "Tanh")
    assert block_products(path, {"x": (ROWS, 32), tanh: (ROWS, 32)}, case.feeds, {}) == 2
    after = files(path.parent)
    assert after.keys() == before.keys()
    assert len(after["model.bin"]) == len(before["model.bin"])  # in their place: nothing is stored twice
    assert after["model.bin"] != before["model.bin"]
    assert any(entry.domain == DOMAIN for entry in onnx.load(path).opset_import)
    assert_answers(case.model(), path, case.feeds)
    assert block_products(path, {"x": (ROWS, 32), tanh: (ROWS, 32)}, case.feeds, {}) == 0  # there is none left


def refused(*_: Any) -> bool:
    return False


def wrong_order(weights: Any, block: int) -> Any:
    return to_blocks(weights, block)[..., ::-1]


@needs_blocks
@pytest.mark.parametrize(
    ("tolerated", "patches", "count"),
    [
        (float("inf"), {}, 1),
        (float("inf"), {"is_as_fast": refused}, 0),
        (0.0, {}, 0),  # nothing is as fast as that
        (float("inf"), {"to_blocks": wrong_order}, 0),  # fast enough, and wrong
    ],
    ids=["accepted", "refused", "slower", "wrong"],
)
def test_a_refused_graph_leaves_the_files_as_they_were(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tolerated: float,
    patches: Mapping[str, Callable[..., Any]],
    count: int,
) -> None:
    case = REWRITTEN["Gemm with transB and bias"][1]
    path = unblocked(case.model(), tmp_path / "b", case.feeds)
    before = files(path.parent)
    monkeypatch.setattr(layout, "TOLERATED", tolerated)
    for name, patch in patches.items():
        monkeypatch.setattr(layout, name, patch)
    assert block_products(path, {"x": (ROWS, 32)}, case.feeds, {}) == count
    assert (files(path.parent) == before) == (count == 0)
    assert_answers(case.model(), path, case.feeds)
    whole = optimized(case.model(), tmp_path / "a", case.feeds)
    assert files(whole.parent) == files(path.parent)


def beside_a_product(body: str, inputs: str = "", outputs: str = "", **weights: Any) -> onnx.ModelProto:
    text = f"g (float[n,32] x{inputs}) => (float[n,48] y{outputs}) {{ y = MatMul(x, w)\n {body} }}"
    return models.text(text, w=W, **weights)


@needs_blocks
@pytest.mark.parametrize(
    ("model", "extra"),
    [
        (beside_a_product("z = Greater(y, zero)", "", ", bool[n,48] z", zero=np.array(0, np.float32)), {}),
        (beside_a_product("z = Shape(y)", "", ", int64[2] z"), {}),
        (beside_a_product("z = Cast <to=10> (y)", "", ", float16[n,48] z"), {}),
        pytest.param(
            beside_a_product("z = Identity(s)", ", string[k] s", ", string[k] z"),
            {"s": np.array(["a", "b"], object)},
        ),
        pytest.param(
            beside_a_product("z = Cast <to=16> (y)", "", ", bfloat16[n,48] z"),
            {},
        ),
    ],
    ids=["bool", "int64", "float16", "string", "bfloat16"],
)
def test_outputs_of_any_type_are_compared(tmp_path: Path, model: onnx.ModelProto, extra: Mapping[str, Any]) -> None:
    path = optimized(model, tmp_path, {"x": floats(ROWS, 32), **extra})
    assert onnx.load(path, load_external_data=False).graph.node  # whatever was decided, there is a graph


@needs_blocks
@pytest.mark.parametrize("shape", [(1, 48), (1,), (), (ROWS, 48), (ROWS, 1)], ids=str)
def test_a_bias_that_is_broadcast(tmp_path: Path, shape: tuple[int, ...]) -> None:
    bias = np.asarray(np.random.default_rng(0).standard_normal(shape), np.float32)
    case = Case(product("Gemm(x, w, b)"), {"w": W, "b": bias})
    assert_answers(case.model(), optimized(case.model(), tmp_path, case.feeds), case.feeds)

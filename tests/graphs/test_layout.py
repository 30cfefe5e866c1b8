"""Matrix products in blocks: which ones are rewritten, which are left alone, and that outputs stay what they were."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import floats

from splitload.base.entries import RECORD
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs import layout
from splitload.graphs.layout import DOMAIN, MIN_ROWS, block_products, channel_block, to_blocks
from splitload.runtime.loader import open_session

BLOCK = channel_block()
needs_blocks = pytest.mark.skipif(BLOCK is None, reason="onnxruntime has no blocked layout on this processor")
ROWS = MIN_ROWS + 4
SHAPES = {2: (ROWS, 32), 3: (3, ROWS, 32), 4: (2, 3, ROWS, 32)}
CHANGES_OF_LAYOUT = ("ReorderInput", "ReorderOutput")


@dataclass(frozen=True)
class Case:
    """A model in ONNX text form, its weights and the input it is optimised with."""

    body: str
    weights: Mapping[str, Any] = field(default_factory=dict)
    feeds: Mapping[str, Any] = field(default_factory=lambda: {"x": floats(ROWS, 32)})
    opset: int = 18

    def model(self) -> onnx.ModelProto:
        return models.text(self.body, self.opset, **self.weights)


def product(expression: str, source: str = "float[n,32] x", result: str = "float[n,48] y") -> str:
    return f"g ({source}) => ({result}) {{ y = {expression} }}"


@pytest.fixture
def accepting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every rewritten graph counts as fast enough."""
    monkeypatch.setattr(layout, "is_as_fast", lambda *_: True)


def optimized(model: onnx.ModelProto, folder: Path, feeds: Mapping[str, Any] | None) -> Path:
    """Return the native graph's file, made by `load_graph`."""
    folder.mkdir(exist_ok=True)
    return load_graph(Source.open(models.save(model, folder), "model"), "native", folder / "cache", feeds=feeds).path


def unblocked(model: onnx.ModelProto, folder: Path, feeds: Mapping[str, Any]) -> Path:
    """Return the native graph's file as it is before products are rewritten."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "block_products", lambda *_: 0)
        return optimized(model, folder, feeds)


def operators(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(path, load_external_data=False).graph.node]


def blocked_products(path: Path) -> int:
    """Return how many products were rewritten: blocked convolutions with filters of one pixel."""
    nodes = onnx.load(path, load_external_data=False).graph.node
    return sum(
        node.domain == DOMAIN
        and node.op_type == "Conv"
        and any(entry.name == "kernel_shape" and list(entry.ints) == [1, 1] for entry in node.attribute)
        for node in nodes
    )


def files(folder: Path) -> dict[str, bytes]:
    """Return the files of an entry of the cache, but for the record of their hashes."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != RECORD}


def assert_answers(model: onnx.ModelProto, path: Path, *feeds: Mapping[str, Any]) -> None:
    """The optimised file gives what the original model gives, of the same shapes."""
    original = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for session in (open_session(path), open_session(path, prepack=True)):
        for ready in feeds:
            expected = original.run(None, dict(ready))
            got = session.run(None, dict(ready))
            assert [value.shape for value in got] == [value.shape for value in expected]
            for left, right in zip(got, expected, strict=True):
                scale = float(np.max(np.abs(right), initial=0))
                np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * scale)


def test_the_block_is_one_that_onnxruntime_has() -> None:
    assert channel_block() in (None, 8, 16)


@pytest.mark.skipif(platform.machine().lower() not in ("x86_64", "amd64"), reason="x86 only")
def test_x86_has_blocks() -> None:
    assert channel_block() is not None


@pytest.mark.parametrize("block", [8, 16])
@pytest.mark.parametrize(("rows", "columns"), [(16, 16), (32, 16), (16, 48), (64, 32)])
def test_blocks_against_a_loop(rows: int, columns: int, block: int) -> None:
    weights = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    expected = np.zeros((rows // block, columns // block, block, block), np.float32)
    for row in range(rows):
        for column in range(columns):
            expected[row // block, column // block, column % block, row % block] = weights[row, column]
    np.testing.assert_array_equal(to_blocks(weights, block), expected)


W, B = floats(32, 48), floats(48)
SQUARE = floats(32, 32)
RESHAPED = "float[2,16,4,4] x", "float[32,48] y"

REWRITTEN: dict[str, tuple[int, Case]] = {
    "Gemm": (1, Case(product("Gemm(x, w)"), {"w": W})),
    "Gemm with transB": (1, Case(product("Gemm <transB=1> (x, w)"), {"w": W.T.copy()})),
    "Gemm with bias": (1, Case(product("Gemm(x, w, b)"), {"w": W, "b": B})),
    "Gemm with transB and bias": (1, Case(product("Gemm <transB=1> (x, w, b)"), {"w": W.T.copy(), "b": B})),
    "Gemm that says what is usual": (
        1,
        Case(product("Gemm <alpha=1.0, beta=1.0, transA=0, transB=0> (x, w, b)"), {"w": W, "b": B}),
    ),
    "MatMul and a bias": (
        1,
        Case("g (float[n,32] x) => (float[n,48] y) { a = MatMul(x, w) y = Add(a, b) }", {"w": W, "b": B}),
    ),
    "just enough rows": (1, Case(product("MatMul(x, w)"), {"w": W}, {"x": floats(MIN_ROWS, 32)})),
    "enough rows in two dimensions": (
        1,
        Case(
            product("MatMul(x, w)", "float[2,n,32] x", "float[2,n,48] y"), {"w": W}, {"x": floats(2, MIN_ROWS // 2, 32)}
        ),
    ),
    "weights of two products": (
        2,
        Case(
            """g (float[n,32] x) => (float[n,48] y, float[n,48] z) {
                y = MatMul(x, w)
                t = Tanh(x)
                z = MatMul(t, w)
            }""",
            {"w": W},
        ),
    ),
    "weights of two kinds of products": (
        2,
        Case(
            """g (float[n,32] x, float[2,n,32] v) => (float[n,48] y, float[2,n,48] z) {
                y = Gemm(x, w, b)
                z = MatMul(v, w)
            }""",
            {"w": W, "b": B},
            {"x": floats(ROWS, 32), "v": floats(2, ROWS, 32)},
        ),
    ),
    "a chain of products": (
        2,
        Case(
            "g (float[n,32] x) => (float[n,48] y) { a = MatMul(x, v) b = Tanh(a) y = MatMul(b, w) }",
            {"v": SQUARE, "w": W},
        ),
    ),
    "one product of two": (
        1,
        Case(
            "g (float[n,32] x) => (float[n,20] y) { a = MatMul(x, v) b = Tanh(a) y = MatMul(b, w) }",
            {"v": SQUARE, "w": floats(32, 20)},
        ),
    ),
    "beside a convolution": (
        1,
        Case(
            """g (float[2,16,4,4] x) => (float[32,48] y) {
                a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, k)
                b = Transpose <perm=[0,2,3,1]> (a)
                c = Reshape(b, to)
                y = MatMul(c, w)
            }""",
            {"k": floats(32, 16, 3, 3), "to": np.array([32, 32]), "w": W},
            {"x": floats(2, 16, 4, 4)},
        ),
    ),
}


@needs_blocks
@pytest.mark.usefixtures("accepting")
@pytest.mark.parametrize("name", REWRITTEN)
def test_products_that_are_rewritten(tmp_path: Path, name: str) -> None:
    count, case = REWRITTEN[name]
    path = optimized(case.model(), tmp_path, case.feeds)
    assert blocked_products(path) == count
    assert {file.name for file in path.parent.iterdir()} == {"model.onnx", "model.bin", "record.json"}
    assert_answers(case.model(), path, case.feeds)


@needs_blocks
@pytest.mark.usefixtures("accepting")
@pytest.mark.parametrize("opset", [11, 12, 13, 21])
@pytest.mark.parametrize("rank", SHAPES)
def test_inputs_of_every_rank_in_every_opset(tmp_path: Path, rank: int, opset: int) -> None:
    *sizes, _ = SHAPES[rank]
    at = ",".join(map(str, sizes))
    case = Case(
        product("MatMul(x, w)", f"float[{at},32] x", f"float[{at},48] y"), {"w": W}, {"x": floats(*sizes, 32)}, opset
    )
    path = optimized(case.model(), tmp_path, case.feeds)
    before, after = {2: (["Reshape"], ["Reshape"]), 3: (["Unsqueeze"], ["Squeeze"]), 4: ([], [])}[rank]
    assert operators(path) == [*before, "ReorderInput", "Conv", "ReorderOutput", *after]
    assert_answers(case.model(), path, case.feeds, {"x": floats(*sizes, 32)})


@needs_blocks
@pytest.mark.usefixtures("accepting")
@pytest.mark.parametrize("opset", [11, 12, 13, 21])
def test_gemm_in_every_opset(tmp_path: Path, opset: int) -> None:
    case = Case(product("Gemm <transB=1> (x, w, b)"), {"w": W.T.copy(), "b": B}, opset=opset)
    path = optimized(case.model(), tmp_path, case.feeds)
    assert blocked_products(path) == 1
    assert_answers(case.model(), path, case.feeds)


@needs_blocks
@pytest.mark.usefixtures("accepting")
@pytest.mark.parametrize("rank", SHAPES)
def test_other_numbers_of_rows(tmp_path: Path, rank: int) -> None:
    at = ",".join("abc"[: rank - 1])
    case = Case(
        product("MatMul(x, w)", f"float[{at},32] x", f"float[{at},48] y"), {"w": W}, {"x": floats(*SHAPES[rank])}
    )
    path = optimized(case.model(), tmp_path, case.feeds)
    assert blocked_products(path) == 1
    assert_answers(
        case.model(),
        path,
        *({"x": floats(*[size] * (rank - 1), 32)} for size in (1, 2, 7)),
        {"x": floats(*[1] * (rank - 2), 5 * ROWS, 32)},
    )


@needs_blocks
@pytest.mark.xfail(strict=True, reason="the blocked Conv refuses an input without rows, MatMul does not")
@pytest.mark.usefixtures("accepting")
@pytest.mark.parametrize("shape", [(0, 32), (2, 0, 32)], ids=str)
def test_no_rows_at_all(tmp_path: Path, shape: tuple[int, ...]) -> None:
    at = ",".join("abc"[: len(shape) - 1])
    case = Case(
        product("MatMul(x, w)", f"float[{at},32] x", f"float[{at},48] y"), {"w": W}, {"x": floats(*SHAPES[len(shape)])}
    )
    assert_answers(case.model(), optimized(case.model(), tmp_path, case.feeds), case.feeds, {"x": floats(*shape)})


@needs_blocks
@pytest.mark.usefixtures("accepting")
def test_an_input_of_open_rank(tmp_path: Path) -> None:
    case = Case(
        """g (float[n,32] x, int64[r] to) => (float[n,48] z) {
            p = Reshape(x, to)
            y = MatMul(p, w)
            z = Reshape(y, flat)
        }""",
        {"w": W, "flat": np.array([-1, 48])},
        {"x": floats(ROWS, 32), "to": np.array([2, ROWS // 2, 32])},
    )
    path = optimized(case.model(), tmp_path, case.feeds)
    assert_answers(case.model(), path, case.feeds, {**case.feeds, "to": np.array([ROWS, 32])})


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
    monkeypatch.setattr(layout, "channel_block", lambda: None)
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

"""Matrix products in blocks: which ones are rewritten, and that outputs stay."""

from __future__ import annotations

import platform
from pathlib import Path

import numpy as np
import pytest
from layout_models import (
    REWRITTEN,
    ROWS,
    SHAPES,
    B,
    Case,
    W,
    assert_answers,
    blocked_products,
    needs_blocks,
    operators,
    optimized,
    product,
)
from models import floats

from splitload.graphs.layout import channel_block, to_blocks


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

"""Models with matrix products that may be computed in blocks, and what compares them."""

from __future__ import annotations

from collections.abc import Mapping
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
from splitload.graphs.layout import DOMAIN, MIN_ROWS, channel_block
from splitload.runtime.session import open_session

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

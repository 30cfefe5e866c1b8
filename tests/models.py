"""Small ONNX models for the tests, one for each construct that a frontend must get right."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper, parser

Feeds = dict[str, Any]
CONSTRUCTS: dict[str, Callable[[], tuple[onnx.ModelProto, Feeds | None]]] = {}
_RNG = np.random.default_rng(0)


def text(body: str, opset: int = 18, ir: int = 8, **weights: np.ndarray) -> onnx.ModelProto:
    """Parse a graph in ONNX text form; `weights` become initializers."""
    domains = f'"": {opset}, "ai.onnx.ml": 3, "com.microsoft": 1, "local": 1'
    model = parser.parse_model(f"<ir_version: {ir}, opset_import: [{domains}]>\n{body}")
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
    return model


def floats(*shape: int) -> np.ndarray:
    return _RNG.standard_normal(shape).astype(np.float32)


def construct(name: str, feeds: Feeds | None = None) -> Callable[[Callable[[], onnx.ModelProto]], Any]:
    """Register a model under `name`, with the inputs it is run on (None: made up)."""

    def register(build: Callable[[], onnx.ModelProto]) -> Callable[[], onnx.ModelProto]:
        CONSTRUCTS[name] = lambda: (build(), feeds)
        return build

    return register


def save(model: onnx.ModelProto, folder: Path, name: str = "model.onnx") -> Path:
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def chain(length: int, *, width: int = 4, weights: bool = True) -> onnx.ModelProto:
    """`length` nodes in a row, MatMul and Tanh in turn."""
    nodes, arrays, last = [], {}, "x"
    for index in range(length):
        out = "y" if index == length - 1 else f"t{index}"
        if weights and index % 2 == 0:
            arrays[f"w{index}"] = floats(width, width)
            nodes.append(helper.make_node("MatMul", [last, f"w{index}"], [out], f"n{index}"))
        else:
            nodes.append(helper.make_node("Tanh", [last], [out], f"n{index}"))
        last = out
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, width])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@construct("several inputs and outputs", {"a": floats(2, 3), "b": floats(2, 3)})
def several() -> onnx.ModelProto:
    return text("""g (float[2,3] a, float[2,3] b) => (float[2,3] s, float[2,3] m, float[2,3] last) {
        s = Add(a, b)
        t = Tanh(s)
        m = Mul(t, b)
        u = Sigmoid(m)
        v = Sub(u, s)
        last = Mul(v, t)
    }""")


@construct("boundaries of unknown rank", {"x": floats(2, 3), "to": np.array([3, 2], np.int64)})
def unknown_rank() -> onnx.ModelProto:
    return text(
        """g (float[2,3] x, int64[r] to) => (float[a,b] y) {
            p = Reshape(x, to)
            q = MatMul(p, w)
            t = Tanh(q)
            y = MatMul(t, w)
        }""",
        w=floats(2, 2),
    )


@construct("dynamic axes", {"x": floats(3, 5, 4)})
def dynamic() -> onnx.ModelProto:
    return text(
        """g (float[N, S, 4] x) => (float[N, S, 4] y) {
        shape = Shape(x)
        flat = Reshape(x, minus)
        a = MatMul(flat, w)
        b = Relu(a)
        back = Reshape(b, shape)
        y = Add(back, x)
    }""",
        minus=np.array([-1, 4]),
        w=floats(4, 4),
    )


@construct("branches and long skips", {"x": floats(1, 4, 6, 6)})
def branches() -> onnx.ModelProto:
    return text(
        """g (float[1,4,6,6] x) => (float[1,4,6,6] y) {
        a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w1)
        b = Relu(a)
        c = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (b, w2)
        d = Conv <kernel_shape=[1,1]> (b, w3)
        e = Add(c, d)
        f = Relu(e)
        h = Conv <kernel_shape=[1,1]> (f, w3)
        i = Add(h, b)
        j = Concat <axis=1> (i, a)
        k = Slice(j, zero, four, one)
        y = Add(k, x)
    }""",
        w1=floats(4, 4, 3, 3),
        w2=floats(4, 4, 3, 3),
        w3=floats(4, 4, 1, 1),
        zero=np.array([0]),
        four=np.array([4]),
        one=np.array([1]),
    )


@construct("shared initializers behind Identity and Constant chains", {"x": floats(2, 4)})
def shared() -> onnx.ModelProto:
    return text(
        """g (float[2,4] x) => (float[2,4] y) {
        w1 = Identity(w)
        w2 = Identity(w1)
        half = Constant <value = float {0.5}> ()
        third = Identity(half)
        scaled = Mul(w2, third)
        a = MatMul(x, w1)
        b = Tanh(a)
        c = MatMul(b, scaled)
        d = Mul(c, third)
        e = MatMul(d, w2)
        f = Tanh(e)
        y = MatMul(f, scaled)
    }""",
        w=floats(4, 4),
    )


@construct("int64 and bool boundaries", {"x": floats(3, 4)})
def integers() -> onnx.ModelProto:
    return text(
        """g (float[3,4] x) => (int64[K, 2] at, float[3,4] y) {
        positive = Greater(x, zero)
        at0 = NonZero(positive)
        at = Transpose(at0)
        count = Cast <to=7> (positive)
        twice = Add(count, count)
        back = Cast <to=1> (twice)
        other = Not(positive)
        y = Where(other, x, back)
    }""",
        zero=np.array(0, np.float32),
    )


@construct("float16, double and string boundaries", {"x": floats(2, 3), "s": np.array([["a", "b", "a"]], object)})
def widths() -> onnx.ModelProto:
    return text("""g (float[2,3] x, string[1,3] s) => (double[2,3] y, string[1,3] t, string[n] u) {
        h = Cast <to=10> (x)
        h2 = Mul(h, h)
        d = Cast <to=11> (h2)
        y = Add(d, d)
        s1 = Identity(s)
        t = Identity(s1)
        u, i, j, k = Unique(s1)
    }""")


@construct("bfloat16 and float8 boundaries", {"x": floats(2, 3)})
def narrow() -> onnx.ModelProto:
    return text(
        """g (float[2,3] x) => (float[2,3] y) {
        a = Tanh(x)
        b = Cast <to=16> (a)
        c = Cast <to=1> (b)
        d = Cast <to=17> (c)
        e = Cast <to=1> (d)
        y = Sub(e, x)
    }""",
        opset=19,
        ir=9,
    )


@construct("outputs that are an input, an initializer and read later", {"x": floats(2, 3), "spare": floats(1)})
def direct_outputs() -> onnx.ModelProto:
    model = text(
        """g (float[2,3] x, float[1] spare) => (float[2,3] a, float[2,3] y) {
        a = Tanh(x)
        b = Mul(a, w)
        c = Relu(b)
        y = Add(c, w)
    }""",
        w=floats(2, 3),
    )
    for name in ("w", "x"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]))
    return model


@construct("inputs with default values", {"x": floats(2, 3)})
def defaults() -> onnx.ModelProto:
    return text(
        """g (float[2,3] x, float[3] w) => (float[2,3] y) {
        a = Mul(x, w)
        b = Tanh(a)
        y = Add(b, w)
    }""",
        w=floats(3),
    )


@construct("sparse initializer", {"x": floats(2, 4)})
def sparse() -> onnx.ModelProto:
    model = text("""g (float[2,4] x) => (float[2,4] y) {
        a = MatMul(x, w)
        b = Tanh(a)
        c = MatMul(b, w)
        y = Relu(c)
    }""")
    values = numpy_helper.from_array(np.array([1, -2, 3], np.float32), "w")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1, 6, 11]), "w_at"), [4, 4])
    )
    return model


@construct("QDQ", {"x": floats(1, 2, 5, 5)})
def qdq() -> onnx.ModelProto:
    return text(
        """g (float[1,2,5,5] x) => (float[1,2,5,5] y) {
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        wd = DequantizeLinear(wq, s, z8)
        a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (xd, wd)
        b = Relu(a)
        bq = QuantizeLinear(b, s, z)
        bd = DequantizeLinear(bq, s, z)
        y = Add(bd, xd)
    }""",
        s=np.array(0.05, np.float32),
        z=np.array(100, np.uint8),
        z8=np.array(0, np.int8),
        wq=_RNG.integers(-9, 9, (2, 2, 3, 3)).astype(np.int8),
    )


@construct("QLinear and dynamically quantized", {"x": floats(2, 4)})
def qlinear() -> onnx.ModelProto:
    return text(
        """g (float[2,4] x) => (float[2,4] y) {
        q, s1, z1 = DynamicQuantizeLinear(x)
        i = MatMulInteger(q, w, z1, z)
        f = Cast <to=1> (i)
        scaled = Mul(f, s1)
        q2 = QuantizeLinear(scaled, s, z)
        q3 = QLinearMatMul(q2, s, z, w, s, z, s, z)
        y = DequantizeLinear(q3, s, z)
    }""",
        s=np.array(0.05, np.float32),
        z=np.array(128, np.uint8),
        w=_RNG.integers(0, 255, (4, 4)).astype(np.uint8),
    )


@construct("BatchNormalization and Dropout in training form", {"x": floats(4, 3, 2, 2)})
def training() -> onnx.ModelProto:
    return text(
        """g (float[4,3,2,2] x) => (float[4,3,2,2] y, float[3] mean2, bool[4,3,2,2] mask) {
        a, mean2, var2 = BatchNormalization <training_mode=1> (x, s, b, m, v)
        c = Relu(a)
        d, mask = Dropout <seed=3> (c, none, yes)
        e = Conv <kernel_shape=[1,1]> (d, w)
        y = Add(e, a)
    }""",
        s=np.ones(3, np.float32),
        b=floats(3),
        m=np.zeros(3, np.float32),
        v=np.ones(3, np.float32),
        none=np.array(0, np.float32),
        yes=np.array(True),
        w=floats(3, 3, 1, 1),
    )


@construct("left-out optional inputs and outputs", {"x": floats(3, 1, 4)})
def left_out() -> onnx.ModelProto:
    return text(
        """g (float[3,1,4] x) => (float[3,1,1,2] y, float[3,1,4] z) {
        a = Clip(x, "", top)
        y, "", "" = LSTM <hidden_size=2> (a, w, r, "", "", h)
        b = Tanh(a)
        z = Clip(b, bottom)
    }""".replace('""', "").replace("y, , =", "y ="),
        top=np.array(1, np.float32),
        bottom=np.array(-0.5, np.float32),
        w=floats(1, 8, 4),
        r=floats(1, 8, 2),
        h=floats(1, 1, 2),
    )


@construct("empty node names", {"x": floats(2, 3)})
def names() -> onnx.ModelProto:
    model = several_chain()
    for node, name in zip(model.graph.node, ["one", "", "", "two", ""], strict=True):
        node.name = name
    return model


def several_chain() -> onnx.ModelProto:
    return text("""g (float[2,3] x) => (float[2,3] y) {
        a = Tanh(x)
        b = Sigmoid(a)
        c = Exp(b)
        d = Neg(c)
        y = Abs(d)
    }""")


@construct("scalars and empty tensors", {"x": floats(0, 3), "s": np.array(2, np.float32)})
def small() -> onnx.ModelProto:
    return text("""g (float[N, 3] x, float s) => (float[N, 3] y, float t) {
        a = Tanh(x)
        b = Mul(a, s)
        t1 = ReduceSum <keepdims=0> (b)
        t = Add(t1, s)
        y = Add(b, t)
    }""")


@construct("NaN and infinity", {"x": -np.abs(floats(2, 3))})
def not_numbers() -> onnx.ModelProto:
    return text("""g (float[2,3] x) => (float[2,3] y, float[2,3] z) {
        a = Sqrt(x)
        b = Tanh(x)
        c = Add(a, b)
        zero = Sub(x, x)
        z = Div(x, zero)
        y = Relu(c)
    }""")


def random_numbers() -> onnx.ModelProto:
    """y is x again, if the stages agree on the random numbers."""
    return text("""g (float[2,3] x) => (float[2,3] y) {
        r = RandomNormalLike(x)
        u = RandomUniform <shape=[2,3]> ()
        a = Add(x, r)
        b = Add(a, u)
        c = Sub(b, r)
        y = Sub(c, u)
    }""")


def feeds_of(session: Any, feeds: Mapping[str, Any] | None) -> Feeds:
    from splitload.runtime.inputs import example_inputs

    return example_inputs(session.get_inputs(), feeds)

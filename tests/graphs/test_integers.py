"""Convolutions of integers become convolutions of floats only where those give the very same values, and sooner."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitload.base.machine import cpu_architecture
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs import integers
from splitload.graphs.integers import floats_for_integers, unsigned_for_signed
from splitload.graphs.layout import channel_block

BLOCK, CHANNELS = 8, 16


def model(
    kind: Any = np.int8,
    offset: int | None = None,
    *,
    group: int = 1,
    outputs: int = CHANNELS,
    inputs: int = CHANNELS,
    weight: int | None = None,
    to: int = TensorProto.FLOAT,
    factor: str = "t",
    given: str = "y",
    **attributes: Any,
) -> onnx.ModelProto:
    """A quantised input, one convolution of integers, a cast and a scale."""
    rng = np.random.default_rng(0)
    limits = np.iinfo(kind)
    shape = (outputs, inputs // group, 3, 3)
    weights = rng.integers(limits.min, limits.max, shape, endpoint=True).astype(kind)
    if weight is not None:
        weights[:] = weight
    tensors = [numpy_helper.from_array(weights, "w"), numpy_helper.from_array(np.float32(0.125), "s")]
    names = ["q", "w", "p"]
    if offset is not None:
        tensors.append(numpy_helper.from_array(np.array(offset, kind), "o"))
        names.append("o")
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "t", "p"]),
        helper.make_node("ConvInteger", names, ["c"], group=group, **attributes),
        helper.make_node("Cast", ["c"], ["f"], to=to),
        helper.make_node("Mul", ["f", factor], ["y"]),
    ]
    kinds = {"y": to, "f": to, "c": TensorProto.INT32}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, inputs, 30, 30])],
        [helper.make_tensor_value_info(name, kinds[name], ["n", "c", "h", "w"]) for name in {"y", given}],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def answer(proto: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    size = session.get_inputs()[0].shape
    return session.run(["y"], {"x": np.random.default_rng(1).standard_normal(size).astype(np.float32)})[0]


@pytest.mark.parametrize(
    "case",
    [
        {},
        {"kind": np.uint8, "offset": 128},
        {"kind": np.uint8},
        {"offset": 0},
        {"offset": -3},
        {"group": CHANNELS},
        {"group": 2, "strides": [2, 2], "pads": [1, 1, 1, 1], "dilations": [2, 2]},
        {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
        {"inputs": 3, "pads": [0, 1, 2, 3]},
    ],
)
def test_floats_give_the_same_bits(case: dict[str, Any]) -> None:
    proto = model(**case)
    wanted = answer(proto)
    assert floats_for_integers(proto, BLOCK) == 1
    onnx.checker.check_model(proto)
    assert "ConvInteger" not in {node.op_type for node in proto.graph.node}
    np.testing.assert_array_equal(answer(proto), wanted)


@pytest.mark.parametrize(
    "case",
    [
        {"outputs": CHANNELS + 1},  # would be stored filled
        {"weight": 127, "inputs": 64},  # 64 * 9 * 127 * 255 is above 2^24
        {"weight": -128, "inputs": 64},
        {"to": TensorProto.FLOAT16},
        {"factor": "s"},  # would be put into the weights
        {"given": "c"},
        {"given": "f"},
    ],
)
def test_what_is_not_exact_or_read_otherwise_stays(case: dict[str, Any]) -> None:
    proto = model(**case)
    before = proto.SerializeToString()
    assert floats_for_integers(proto, BLOCK) == 0
    assert proto.SerializeToString() == before


def test_weights_that_a_caller_can_give_stay() -> None:
    proto = model()
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.INT8, [CHANNELS, CHANNELS, 3, 3]))
    assert floats_for_integers(proto, BLOCK) == 0


def test_the_largest_sum_is_exact() -> None:
    """A filter of the greatest weights that may be replaced, on data that is all as far from its zero as can be."""
    sums = (1 << 24) // 255
    proto = model(inputs=64, weight=sums // (64 * 9))
    wanted = answer(proto)
    assert floats_for_integers(proto, BLOCK) == 1
    np.testing.assert_array_equal(answer(proto), wanted)


@pytest.mark.skipif(channel_block() is None, reason="this processor has no blocked layout")
@pytest.mark.parametrize("full", [True, False])
def test_what_is_not_written_or_taken_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full: bool) -> None:
    def save(_: Any, path: Path) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"no model")

    monkeypatch.setattr(integers, "save_with_data", save)
    file = tmp_path / "model.onnx"
    onnx.save(model(inputs=64, outputs=64), file)
    graph = load_graph(Source.open(file, "m"), "native", tmp_path / "cache")
    assert "ConvInteger" in {node.op_type for node in onnx.load(graph.path).graph.node}


@pytest.mark.skipif(channel_block() is None, reason="this processor has no blocked layout")
@pytest.mark.parametrize("faster", [True, False])
def test_the_native_graph_takes_what_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    monkeypatch.setattr(integers, "is_as_fast", lambda *_: faster)
    file = tmp_path / "model.onnx"
    onnx.save(model(inputs=64, outputs=64), file)
    source = Source.open(file, "m")
    cache = tmp_path / "cache"
    graph, portable = (load_graph(source, kind, cache) for kind in ("native", "portable"))
    found = onnx.load(graph.path)
    operators = {node.op_type for node in found.graph.node}
    assert ("ConvInteger" in operators) is not faster
    assert "ConvInteger" in {node.op_type for node in onnx.load(portable.path).graph.node}
    files = {each.name for each in graph.path.parent.iterdir()}
    assert files == {"model.onnx", "model.bin", "record.json"}
    stored = graph.path.stat().st_size + graph.path.with_name("model.bin").stat().st_size
    assert stored < 1.3 * file.stat().st_size  # floats would take four times as much
    np.testing.assert_array_equal(answer(onnx.load(graph.path)), answer(onnx.load(file)))


def quantised(body: str, opset: int = 17, point: Any = None, **arrays: Any) -> onnx.ModelProto:
    """Convolution, pooling and a sum in signed bytes, of which two operators read the middle one."""
    rng = np.random.default_rng(0)
    fixed = {
        "s": np.float32(0.05),
        "z": np.array(-3, np.int8) if point is None else np.array(point),
        "zero": np.array(0, np.int8),
        "v": np.ones((1, CHANNELS, 12, 12), np.float32),
        "w": rng.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8),
        **arrays,
    }
    text = f"g (float[1,{CHANNELS},12,12] x) => (float[n,c,h,w0] y) {{ {body} }}"
    return models.text(text, opset, **fixed)


# a convolution that stays one of bytes, and a pooling of what two read
POOLED = """
    a = QuantizeLinear(x, s, z) b = DequantizeLinear(a, s, z) f = DequantizeLinear(w, s, zero)
    c = Conv<pads=[1, 1, 1, 1]>(b, f) d = QuantizeLinear(c, s, z) e = DequantizeLinear(d, s, z)
    g0 = LeakyRelu(e) h0 = QuantizeLinear(g0, s, z) i = DequantizeLinear(h0, s, z)
    m = MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(i) n0 = QuantizeLinear(m, s, z) o = DequantizeLinear(n0, s, z)
    p = Concat<axis=1>(i, o) q = QuantizeLinear(p, s, z) y = DequantizeLinear(q, s, z)"""
# the same but for the activation: two read what the convolution gives, which is one of floats therefore
OF_FLOATS = POOLED.replace("LeakyRelu(e)", "Identity(c)")


def test_unsigned_bytes_give_the_same_bits() -> None:
    proto = quantised(POOLED)
    wanted = answer(proto)
    assert unsigned_for_signed(proto) == 5
    onnx.checker.check_model(proto, full_check=True)
    points = {node.input[2] for node in proto.graph.node if node.op_type == "QuantizeLinear"}
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    assert [(values[name].dtype, int(values[name])) for name in points] == [(np.uint8, 125)]
    assert values["w"].dtype == np.int8
    np.testing.assert_array_equal(answer(proto), wanted)


@pytest.mark.parametrize(
    ("body", "point"),
    [
        ("a = QuantizeLinear(x, s, z) b = MaxPool<kernel_shape=[3, 3]>(a) y = DequantizeLinear(b, s, z)", np.int8(1)),
        ("a = QuantizeLinear(x, s, z) y = DequantizeLinear(a, s, z)", np.uint8(1)),
        ("a = QuantizeLinear(x, s) y = DequantizeLinear(a, s)", np.int8(1)),
        ("a = QuantizeLinear(v, s, z) b = DequantizeLinear(a, s, z) y = Add(x, b)", np.int8(1)),
    ],
)
def test_bytes_that_others_read_or_that_are_unsigned_stay(body: str, point: Any) -> None:
    proto = quantised(body, point=point)
    assert unsigned_for_signed(proto) == 0


def test_a_type_that_is_named_beside_the_zero_point_goes() -> None:
    """Which onnxruntime itself forgets: the model as it is cannot be loaded at its default level."""
    named, plain = (
        quantised(f"a = QuantizeLinear{each}(x, s, z) y = DequantizeLinear(a, s, z)", opset=21)
        for each in ("<output_dtype=3>", "")
    )
    assert unsigned_for_signed(named) == 1
    np.testing.assert_array_equal(answer(named), answer(plain))


@pytest.mark.skipif(not cpu_architecture().startswith("x86"), reason="elsewhere signed bytes have kernels")
@pytest.mark.parametrize(
    ("body", "faster", "expected"),
    [(POOLED, True, (1, 1, 1)), (POOLED, False, (1, 0, 0)), (OF_FLOATS, True, (0, 0, 0))],
    ids=["taken", "slower", "another product"],
)
def test_what_two_read_is_computed_in_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, faster: bool, expected: tuple[int, ...]
) -> None:
    monkeypatch.setattr(integers, "is_as_fast", lambda *_: faster)
    file = tmp_path / "model.onnx"
    onnx.save(quantised(body), file)
    graph = load_graph(Source.open(file, "m"), "native", tmp_path / "cache")
    found = Counter(node.op_type for node in onnx.load(graph.path).graph.node)
    assert tuple(found[each] for each in ("QLinearConv", "QLinearLeakyRelu", "QLinearConcat")) == expected, found

"""Models that store their weights small, or once: a few kilobytes to a megabyte, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

WIDTH = 256
_FLOAT, _HALF, _INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
_rng = np.random.default_rng(0)


def _weight(name: str, *shape: int, dtype: str = "f4") -> Any:
    values = _rng.standard_normal(shape) / max(shape[0], 1) ** 0.5
    return numpy_helper.from_array(values.astype(dtype), name)


def _integers(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(_rng.integers(-127, 128, shape).astype("i1"), name)


def _model(
    nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any], stored: Sequence[Any], opset: int = 17
) -> onnx.ModelProto:
    domains = [
        helper.make_opsetid("", opset),
        helper.make_opsetid("com.microsoft", 1),
        helper.make_opsetid("ai.onnx.ml", 1),
    ]
    ends = [[helper.make_tensor_value_info(*value) for value in values] for values in (inputs, outputs)]
    graph = helper.make_graph(nodes, "small", *ends, stored)
    return helper.make_model(graph, opset_imports=domains, ir_version=10)


def _layers(make: Callable[[int], tuple[list[Any], list[Any]]], kind: int = _FLOAT) -> onnx.ModelProto:
    """Three products, whose weight `w0`… is made by the nodes that `make` returns, with what they read."""
    nodes, stored, value = [], [], "x"
    for number in range(3):
        makers, read = make(number)
        nodes += [*makers, helper.make_node("MatMul", [value, f"w{number}"], [f"m{number}"])]
        nodes.append(helper.make_node("Tanh", [f"m{number}"], [f"t{number}"]))
        stored += [each for each in read if each.name not in {tensor.name for tensor in stored}]
        value = f"t{number}"
    shape = ["rows", WIDTH]
    return _model(nodes, [("x", kind, shape)], [(value, kind, shape)], stored)


def half() -> onnx.ModelProto:
    """Weights, inputs and outputs in half precision."""
    return _layers(lambda number: ([], [_weight(f"w{number}", WIDTH, WIDTH, dtype="f2")]), _HALF)


def half_cast() -> onnx.ModelProto:
    """Weights in half precision, computed with in single."""
    return _layers(
        lambda number: (
            [helper.make_node("Cast", [f"h{number}"], [f"w{number}"], to=_FLOAT)],
            [_weight(f"h{number}", WIDTH, WIDTH, dtype="f2")],
        )
    )


def int8_cast() -> onnx.ModelProto:
    """Integers that are cast and multiplied with a scale."""
    scale = numpy_helper.from_array(np.float32(1e-3), "scale")

    def make(number: int) -> tuple[list[Any], list[Any]]:
        cast = helper.make_node("Cast", [f"q{number}"], [f"c{number}"], to=_FLOAT)
        return (
            [cast, helper.make_node("Mul", [f"c{number}", "scale"], [f"w{number}"])],
            [_integers(f"q{number}", WIDTH, WIDTH), scale],
        )

    return _layers(make)


def int8_scaled() -> onnx.ModelProto:
    """Integers that DequantizeLinear reads, with a scale for each column."""

    def make(number: int) -> tuple[list[Any], list[Any]]:
        scale = numpy_helper.from_array(_rng.uniform(1e-3, 2e-3, WIDTH).astype("f4"), f"s{number}")
        zero = numpy_helper.from_array(np.zeros(WIDTH, "i1"), "zero")
        node = helper.make_node("DequantizeLinear", [f"q{number}", f"s{number}", "zero"], [f"w{number}"], axis=1)
        return [node], [_integers(f"q{number}", WIDTH, WIDTH), scale, zero]

    return _layers(make)


def int4_scaled() -> onnx.ModelProto:
    """4-bit integers in blocks of 32 rows, as DequantizeLinear reads them."""

    def make(number: int) -> tuple[list[Any], list[Any]]:
        values = _rng.integers(-8, 8, WIDTH * WIDTH).tolist()
        scale = numpy_helper.from_array(_rng.uniform(1e-2, 3e-2, (WIDTH // 32, WIDTH)).astype("f4"), f"s{number}")
        node = helper.make_node("DequantizeLinear", [f"q{number}", f"s{number}"], [f"w{number}"], axis=0, block_size=32)
        return [node], [helper.make_tensor(f"q{number}", TensorProto.INT4, (WIDTH, WIDTH), values), scale]

    model = _layers(make)
    model.opset_import[0].version = 21
    return model


def int4_product() -> onnx.ModelProto:
    """4-bit weights of onnxruntime's own operator, whose packed kernel rounds its input to 8 bits."""
    packed = _rng.integers(0, 256, (WIDTH, WIDTH // 32, 16)).astype("u1")
    scales = _rng.uniform(1e-2, 3e-2, WIDTH * WIDTH // 32).astype("f4")
    node = helper.make_node(
        "MatMulNBits", ["x", "q", "s"], ["y"], domain="com.microsoft", K=WIDTH, N=WIDTH, bits=4, block_size=32,
        accuracy_level=4,
    )  # fmt: skip
    shape = ["rows", WIDTH]
    stored = [numpy_helper.from_array(packed, "q"), numpy_helper.from_array(scales, "s")]
    return _model([node], [("x", _FLOAT, shape)], [("y", _FLOAT, shape)], stored)


def tied() -> onnx.ModelProto:
    """A table of rows that is the last product's weight as well, the other way round."""
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["rows"]),
        helper.make_node("Tanh", ["rows"], ["t"]),
        helper.make_node("Transpose", ["table"], ["turned"], perm=[1, 0]),
        helper.make_node("MatMul", ["t", "turned"], ["y"]),
    ]
    return _model(
        nodes,
        [("ids", _INT64, ["many", "long"])],
        [("y", _FLOAT, ["many", "long", 3000])],
        [_weight("table", 3000, 64)],
    )


def convolved(channels: int, dtype: str = "f4") -> onnx.ModelProto:
    """Three convolutions; half-precision filters are cast."""
    nodes, stored, value = [], [], "x"
    for number in range(3):
        stored.append(_weight(f"h{number}", channels, channels, 3, 3, dtype=dtype))
        if dtype != "f4":
            nodes.append(helper.make_node("Cast", [f"h{number}"], [f"w{number}"], to=_FLOAT))
        filters = f"h{number}" if dtype == "f4" else f"w{number}"
        nodes.append(helper.make_node("Conv", [value, filters], [f"c{number}"], pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Tanh", [f"c{number}"], [f"t{number}"]))
        value = f"t{number}"
    shape = [1, channels, 8, 8]
    return _model(nodes, [("x", _FLOAT, shape)], [(value, _FLOAT, shape)], stored)


def convolved_int8() -> onnx.ModelProto:
    """Filters of whole numbers that are cast."""
    model = convolved(64)
    for number, tensor in enumerate(list(model.graph.initializer)):
        model.graph.node.insert(0, helper.make_node("Cast", [f"q{number}"], [tensor.name], to=_FLOAT))
        tensor.CopyFrom(_integers(f"q{number}", 64, 64, 3, 3))
    return model


def convolved_twice() -> onnx.ModelProto:
    """Two filters made of the same whole numbers, by a scale each."""
    model = convolved(64)
    filters = [tensor.name for tensor in model.graph.initializer]
    del model.graph.initializer[:]
    for number, name in enumerate(filters):
        model.graph.node.insert(0, helper.make_node("Mul", ["floats", f"scale{number}"], [name]))
        scale = np.float32(0.01 * (number + 1))
        model.graph.initializer.append(numpy_helper.from_array(scale, f"scale{number}"))
    model.graph.node.insert(0, helper.make_node("Cast", ["whole"], ["floats"], to=_FLOAT))
    model.graph.initializer.append(_integers("whole", 64, 64, 3, 3))
    return model


def convolved_scaled() -> onnx.ModelProto:
    """Filters of whole numbers, each with a scale of its own."""
    model = convolved(64)
    for number, tensor in enumerate(list(model.graph.initializer)):
        model.graph.node.insert(0, helper.make_node("Mul", [f"f{number}", "scales"], [tensor.name]))
        model.graph.node.insert(0, helper.make_node("Cast", [f"q{number}"], [f"f{number}"], to=_FLOAT))
        tensor.CopyFrom(_integers(f"q{number}", 64, 64, 3, 3))
    model.graph.initializer.append(_weight("scales", 64, 1, 1, 1))
    return model


def branches() -> onnx.ModelProto:
    """Two branches with a weight each, one as an initializer and one as a Constant node."""
    out = [helper.make_tensor_value_info("o", _FLOAT, ["rows", WIDTH])]
    first, second = _weight("w", WIDTH, WIDTH), _weight("w", WIDTH, WIDTH)
    product = helper.make_node("MatMul", ["x", "w"], ["o"])
    bodies = [
        helper.make_graph([product], "then", [], out, [first]),
        helper.make_graph([helper.make_node("Constant", [], ["w"], value=second), product], "else", [], out),
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    shape = ["rows", WIDTH]
    return _model([node], [("x", _FLOAT, shape), ("c", TensorProto.BOOL, [])], [("y", _FLOAT, shape)], [])


def trees() -> onnx.ModelProto:
    """An ensemble of 100 complete trees, which are attributes of one node."""
    depth, count = 6, 100
    nodes: dict[str, list[Any]] = {}
    for tree in range(count):
        for place in range(2**depth - 1):
            leaf = place >= 2 ** (depth - 1) - 1
            row = {
                "nodes_treeids": tree, "nodes_nodeids": place, "nodes_featureids": place % 4,
                "nodes_modes": "LEAF" if leaf else "BRANCH_LEQ", "nodes_values": float(_rng.standard_normal()),
                "nodes_truenodeids": 0 if leaf else 2 * place + 1, "nodes_falsenodeids": 0 if leaf else 2 * place + 2,
            }  # fmt: skip
            if leaf:
                row |= {
                    "target_treeids": tree,
                    "target_nodeids": place,
                    "target_ids": 0,
                    "target_weights": float(_rng.random()),
                }
            for name, value in row.items():
                nodes.setdefault(name, []).append(value)
    node = helper.make_node("TreeEnsembleRegressor", ["x"], ["y"], domain="ai.onnx.ml", n_targets=1, **nodes)
    return _model([node], [("x", _FLOAT, ["rows", 4])], [("y", _FLOAT, ["rows", 1])], [])


def unfolding() -> onnx.ModelProto:
    """A table of cosines and a row that is repeated: constants that are made of next to nothing, beside a weight."""
    number = {"zero": np.int64(0), "one": np.int64(1), "many": np.int64(WIDTH)}
    shapes = {"flat": [1, WIDTH], "high": [WIDTH, 1], "size": [30000, WIDTH]}
    stored = [numpy_helper.from_array(value, name) for name, value in number.items()]
    stored += [numpy_helper.from_array(np.array(value), name) for name, value in shapes.items()]
    stored += [_weight("row", 1, WIDTH), _weight("w", WIDTH, WIDTH)]
    nodes = [
        helper.make_node("Range", ["zero", "many", "one"], ["r"]),
        helper.make_node("Cast", ["r"], ["f"], to=_FLOAT),
        helper.make_node("Reshape", ["f", "flat"], ["a"]),
        helper.make_node("Reshape", ["f", "high"], ["b"]),
        helper.make_node("Mul", ["a", "b"], ["ab"]),
        helper.make_node("Cos", ["ab"], ["table"]),
        helper.make_node("Expand", ["row", "size"], ["repeated"]),
        helper.make_node("Gather", ["repeated", "at"], ["part"]),
        helper.make_node("MatMul", ["x", "table"], ["m"]),
        helper.make_node("Add", ["m", "part"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    ends = [("x", _FLOAT, [1, WIDTH]), ("at", _INT64, [1])], [("y", _FLOAT, [1, WIDTH])]
    return _model(nodes, *ends, stored)


MODELS: dict[str, Callable[[], onnx.ModelProto]] = {
    "float16": half,
    "float16 cast": half_cast,
    "int8 cast": int8_cast,
    "int8 scaled": int8_scaled,
    "int4 scaled": int4_scaled,
    "int4 product": int4_product,
    "tied": tied,
    "filters of float16": lambda: convolved(64, "f2"),
    "filters of int8": convolved_int8,
    "filters of int8, scaled": convolved_scaled,
    "filters of the same int8": convolved_twice,
    "100 channels": lambda: convolved(100),
    "36 channels": lambda: convolved(36),
    "branches": branches,
    "trees": trees,
    "unfolding": unfolding,
}

"""Weights in bodies of nodes move to the graph around them, and nothing else changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import small_models
from models import floats
from onnx import helper, numpy_helper

from splitload.graphs.hoisting import has_hidden_weights, hoist
from splitload.graphs.proto import all_tensors, bodies

ROWS = floats(3, 256)


def run(model: onnx.ModelProto, **feeds: Any) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def test_both_branches_answer_as_before() -> None:
    model, hoisted = small_models.branches(), onnx.ModelProto()
    hoisted.CopyFrom(model)
    assert has_hidden_weights(model.graph)
    assert hoist(hoisted) == 2
    assert not has_hidden_weights(hoisted.graph)
    assert len({tensor.name for tensor in hoisted.graph.initializer}) == 2  # both were called "w"
    for which in (True, False):
        feeds = {"x": ROWS, "c": np.array(which)}
        np.testing.assert_array_equal(run(hoisted, **feeds), run(model, **feeds))


def test_bodies_in_bodies_read_the_weight_they_mean() -> None:
    """The inner body has a small weight of the same name, which hides the outer one's."""
    out = helper.make_tensor_value_info("o", 1, ["rows", 256])
    inner_out = helper.make_tensor_value_info("i", 1, ["rows", 256])
    large, small = floats(256, 256), np.float32(2)
    hides = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["i"])], "hides", [], [inner_out], [numpy_helper.from_array(small, "w")]
    )
    reads = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["i"])], "reads", [], [inner_out])
    outer = helper.make_graph(
        [helper.make_node("If", ["d"], ["o"], then_branch=hides, else_branch=reads)],
        "outer", [], [out], [numpy_helper.from_array(large, "w")],
    )  # fmt: skip
    plain = helper.make_graph([helper.make_node("Identity", ["x"], ["o"])], "plain", [], [out])
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], then_branch=outer, else_branch=plain)], "g",
        [
            helper.make_tensor_value_info("x", 1, ["rows", 256]),
            *(helper.make_tensor_value_info(name, 9, []) for name in "cd"),
        ],
        [helper.make_tensor_value_info("y", 1, ["rows", 256])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    assert hoist(model) == 1
    for which, expected in ((True, ROWS * small), (False, ROWS @ large)):
        got = run(model, x=ROWS, c=np.array(True), d=np.array(which))
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    body = next(body for body in bodies(model.graph.node[0]) if body.name == "outer")
    assert [tensor.name for tensor in all_tensors(body)] == ["w"]  # the small one of the inner body

"""A graph file and its weights are changed together: what is named stays, what is not leaves the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from models import floats, text
from onnx import helper, numpy_helper

from splitload.graphs.rewrite import Rewriter

LARGE = floats(32, 32)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return path


def test_weights_that_nothing_names_leave_the_file(tmp_path: Path) -> None:
    path = saved(text("g (float[n,32] x) => (float[n,32] y) { y = MatMul(x, w) }", w=LARGE), tmp_path)
    rewriter = Rewriter(path)
    (old,) = rewriter.model.graph.initializer
    half = rewriter.add("w", onnx.TensorProto.FLOAT16, (32, 32), LARGE.astype("f2").tobytes())
    assert half == "w.2"  # the wish was taken
    rewriter.make(old, [helper.make_node("Cast", [half], ["w"], to=1)])
    rewriter.save()
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.bin"}
    assert (tmp_path / "model.bin").stat().st_size == LARGE.nbytes // 2
    graph = onnx.load(path).graph
    assert [node.op_type for node in graph.node] == ["Cast", "MatMul"]
    np.testing.assert_array_equal(numpy_helper.to_array(graph.initializer[0]), LARGE.astype("f2"))


def test_a_tensor_in_a_body_keeps_its_content_whatever_it_is_called(tmp_path: Path) -> None:
    out = [helper.make_tensor_value_info("o", 1, [32, 32])]
    bodies = [
        helper.make_graph(
            [helper.make_node("Identity", ["w"], ["o"])], name, [], out, [numpy_helper.from_array(LARGE, "w")]
        )
        for name in ("then", "else")
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
    ends = [helper.make_tensor_value_info("c", 9, [])], [helper.make_tensor_value_info("y", 1, [32, 32])]
    graph = helper.make_graph([node], "g", *ends)
    path = saved(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path)
    rewriter = Rewriter(path)
    assert rewriter.add("w", onnx.TensorProto.FLOAT, (32, 32), (2 * LARGE).tobytes()) == "w"
    rewriter.save()
    read = onnx.load(path).graph
    np.testing.assert_array_equal(numpy_helper.to_array(read.initializer[0]), 2 * LARGE)
    for body in (attribute.g for attribute in read.node[0].attribute):
        np.testing.assert_array_equal(numpy_helper.to_array(body.initializer[0]), LARGE)

"""Layers with weights: however they are stored, of whatever type, they are seen, named, trained or refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitload.base.errors import UsageError
from splitload.graphs.proto import fresh_name, store_constants, without_traces
from splitload.training.division import divide
from splitload.training.layers import layers_of

F = "f4"


def weight(name: str, *shape: int, dtype: Any = F) -> Any:
    rng = np.random.default_rng(len(name))
    return numpy_helper.from_array((10 * rng.standard_normal(shape)).astype(dtype), name)


def node(kind: str, inputs: str, output: str, **settings: Any) -> Any:
    return helper.make_node(kind, inputs.split(), [output], **settings)


def graph(*nodes: Any, stored: list[Any], output: str = "y") -> Any:
    """Return a graph whose first layer is `body`, and which goes on from "r"."""
    body = [node("MatMul", "x body.weight", "a", name="body"), node("Relu", "a", "r")]
    made = helper.make_graph(
        [
            *(each for each in nodes if each.op_type == "Constant"),
            *body,
            *(n for n in nodes if n.op_type != "Constant"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", 4])],
        [weight("body.weight", 8, 16), *stored],
    )
    store_constants(made)
    return made


def constant(name: str, *shape: int) -> Any:
    return helper.make_node("Constant", [], [name], value=weight(name, *shape))


def test_weights_that_nothing_else_names_are_of_one_layer() -> None:
    made = graph(node("Gemm", "r w b", "y"), stored=[weight("w", 16, 4), weight("b", 4)])
    assert [(layer.name, layer.weights) for layer in layers_of(made)][1:] == [("w", ("w", "b"))]
    assert divide(made, "1").weights == ("w", "b")


def test_weights_of_constant_nodes_are_layers() -> None:
    made = graph(constant("fc.weight", 16, 4), node("MatMul", "r fc.weight", "y", name="fc"), stored=[])
    assert [(layer.name, layer.weights, layer.num_weights) for layer in layers_of(made)] == [
        ("body", ("body.weight",), 128),
        ("fc", ("fc.weight",), 64),
    ]
    assert divide(made, "fc").weights == ("fc.weight",)
    assert str(divide(made, "1")) == "64 weights in fc (64)"


def test_numbers_in_an_attribute_are_stored_too() -> None:
    numbers = helper.make_node("Constant", [], ["fc.bias"], value_floats=[1.0, 2.0, 3.0, 4.0])
    made = graph(numbers, node("Gemm", "r fc.weight fc.bias", "y"), stored=[weight("fc.weight", 16, 4)])
    assert divide(made, "1").weights == ("fc.weight", "fc.bias")


QUANTISED = r"--trainable: the weights of 'out' are quantised \({}\); train the model as it was before"
REFUSED: dict[str, tuple[Any, str]] = {
    "float16": (
        graph(
            node("Cast", "r", "h", to=TensorProto.FLOAT16),
            node("MatMul", "h out.weight", "m"),
            node("Cast", "m", "y", to=TensorProto.FLOAT),
            stored=[weight("out.weight", 16, 4, dtype="f2")],
        ),
        "the weights of 'out' are of type float16, not float32; export the model in float32",
    ),
    "float16 made larger": (
        graph(
            node("Cast", "out.weight", "w", to=TensorProto.FLOAT),
            node("MatMul", "r w", "y"),
            stored=[weight("out.weight", 16, 4, dtype="f2")],
        ),
        "the weights of 'out' are of type float16",
    ),
    "float64": (
        graph(
            node("Cast", "r", "d", to=TensorProto.DOUBLE),
            node("MatMul", "d out.weight", "m"),
            node("Cast", "m", "y", to=TensorProto.FLOAT),
            stored=[weight("out.weight", 16, 4, dtype="f8")],
        ),
        "the weights of 'out' are of type double",
    ),
    "DequantizeLinear": (
        graph(
            node("DequantizeLinear", "out.weight out.scale", "w", axis=1),
            node("MatMul", "r w", "y"),
            stored=[weight("out.weight", 16, 4, dtype="i1"), weight("out.scale", 4)],
        ),
        QUANTISED.format("int8"),
    ),
    "Cast and Mul": (
        graph(
            node("Cast", "out.weight", "c", to=TensorProto.FLOAT),
            node("Mul", "c out.scale", "w"),
            node("MatMul", "r w", "y"),
            stored=[weight("out.weight", 16, 4, dtype="i1"), weight("out.scale", 4)],
        ),
        QUANTISED.format("int8"),
    ),
    "a product of integers": (
        graph(
            node("DynamicQuantizeLinear", "r", "q"),
            node("MatMulInteger", "q out.weight", "i"),
            node("Cast", "i", "y", to=TensorProto.FLOAT),
            stored=[weight("out.weight", 16, 4, dtype="i1")],
        ),
        QUANTISED.format("int8"),
    ),
    "an operator of the runtime's own": (
        graph(
            helper.make_node("FusedMatMul", ["r", "out.weight"], ["y"], domain="com.microsoft"),
            stored=[weight("out.weight", 16, 4, dtype="f2")],
        ),
        "the weights of 'out' are of type float16",
    ),
}


_sparse = graph(node("MatMul", "r out.weight", "y"), stored=[])
_sparse.sparse_initializer.append(
    helper.make_sparse_tensor(
        weight("out.weight", 2), numpy_helper.from_array(np.array([[0, 1], [5, 2]]), "places"), [16, 4]
    )
)
REFUSED["a sparse tensor"] = (_sparse, "the weights of 'out' are stored as a sparse tensor; store them whole")


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("spec", ["1", "out"])
def test_weights_that_cannot_be_trained_are_refused_by_name(name: str, spec: str) -> None:
    made, message = REFUSED[name]
    with pytest.raises(UsageError, match=message):
        divide(made, spec)


@pytest.mark.parametrize("name", REFUSED)
def test_they_do_not_stay_frozen_unseen_behind_what_is_trained(name: str) -> None:
    with pytest.raises(UsageError, match="'body' is trainable, but 'out' after it is not"):
        divide(REFUSED[name][0], "body")


def test_a_bias_of_an_add_belongs_to_the_layer_before() -> None:
    made = graph(
        node("MatMul", "r dense", "m", name="net/dense/MatMul"),
        node("Add", "bias m", "y", name="net/dense/BiasAdd"),
        stored=[weight("dense", 16, 4), weight("bias", 4)],
    )
    assert divide(made, "1").weights == ("dense", "bias")


def test_a_bias_tells_what_its_layer_is_called() -> None:
    """As exporters write a linear layer that has lost the name of its weights, because they were turned."""
    made = graph(
        node("MatMul", "r onnx::MatMul_42", "m", name="/fc/MatMul"),
        node("Add", "fc.bias m", "y", name="/fc/Add"),
        stored=[weight("onnx::MatMul_42", 16, 4), weight("fc.bias", 4)],
    )
    assert [layer.name for layer in layers_of(made)] == ["body", "fc"]
    assert divide(made, "1").weights == divide(made, "fc").weights == ("onnx::MatMul_42", "fc.bias")


def test_a_shift_of_another_module_is_a_layer_of_its_own() -> None:
    made = graph(
        node("MatMul", "r fc.weight", "m"),
        node("Add", "m shift.offset", "y"),
        stored=[weight("fc.weight", 16, 4), weight("shift.offset", 4)],
    )
    assert [layer.name for layer in layers_of(made)] == ["body", "fc", "shift"]


def test_constants_that_scale_outputs_are_no_layers() -> None:
    made = graph(
        node("MatMul", "r fc.weight", "l", name="fc"),
        node("Mul", "l std", "m"),
        node("Add", "m mean", "y"),
        stored=[weight("fc.weight", 16, 4), weight("std", 4), weight("mean", 4)],
    )
    assert divide(made, "1").weights == divide(made, "fc").weights == ("fc.weight",)


def test_a_scale_that_a_module_claims_is_one() -> None:
    made = graph(
        node("MatMul", "r fc.weight", "l", name="fc"),
        node("Mul", "l scale.gamma", "y"),
        stored=[weight("fc.weight", 16, 4), weight("scale.gamma", 4)],
    )
    assert divide(made, "1").weights == ("scale.gamma",)
    with pytest.raises(UsageError, match="'fc' is trainable, but 'scale' after it is not"):
        divide(made, "fc")


def test_notes_of_the_machine_are_taken_out_everywhere() -> None:
    inner = helper.make_graph(
        [node("Identity", "r", "t")], "b", [], [helper.make_tensor_value_info("t", TensorProto.FLOAT, None)]
    )
    choice = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    made = helper.make_model(graph(choice, stored=[numpy_helper.from_array(np.array(True), "c")]))
    branch = made.graph.node[-1].attribute[0].g
    for each in (made, made.graph, *made.graph.node, *made.graph.initializer, *made.graph.input, branch, *branch.node):
        each.doc_string = "/home/someone"
        each.metadata_props.add(key="stack_trace", value="/home/someone/model.py")
    assert b"someone" in made.SerializeToString()
    assert b"someone" not in without_traces(made).SerializeToString()


def test_a_new_name_is_one_that_nothing_has() -> None:
    made = graph(node("MatMul", "r fc.weight", "y"), stored=[weight("fc.weight", 16, 4)])
    assert fresh_name(made, "fc.new") == "fc.new"
    assert fresh_name(made, "fc.weight") == "fc.weight_"
    assert {fresh_name(made, each) for each in ("r", "x", "y")} == {"r_", "x_", "y_"}

"""Gradients of every supported operator against torch's autograd, and whole steps against torch's optimisers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitload.base.errors import ModelError
from splitload.bundle.manifest import OPTIMIZERS
from splitload.training.gradients import differentiable
from splitload.training.training_step import SETTINGS, STATES, ours, training_step

torch = pytest.importorskip("torch")
from splitload.training.gradient_check import autograd, check_gradients, on_a_device  # noqa: E402 - needs torch

SAMPLES = 3


def made(shape: list[int], *nodes: Any, weights: dict[str, tuple[int, ...]] | None = None, **constants: Any) -> Any:
    """Return a model that runs an input through a trained scale and offset, then the nodes, from "x" to "y"."""
    rng = np.random.default_rng(0)
    arrays = {name: np.array(value) for name, value in constants.items()}
    arrays["scale"], arrays["offset"] = rng.normal(1, 0.3, shape).astype("f4"), rng.normal(0, 0.5, shape).astype("f4")
    arrays |= {name: rng.normal(0, 0.5, size).astype("f4") for name, size in (weights or {}).items()}
    head = [helper.make_node("Mul", ["in", "scale"], ["scaled"]), helper.make_node("Add", ["scaled", "offset"], ["x"])]
    graph = helper.make_graph(
        [*head, *nodes],
        "g",
        [helper.make_tensor_value_info("in", TensorProto.FLOAT, ["samples", *shape])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def node(kind: str, *inputs: str, out: str = "y", **settings: Any) -> Any:
    return helper.make_node(kind, list(inputs or ("x",)), [out], **settings)


def trained(model: Any) -> list[str]:
    """Return what is trained: all weights of floating-point numbers but statistics and limits."""
    return [
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == TensorProto.FLOAT and not tensor.name.startswith("fixed")
    ]


F = np.float32
CASES: dict[str, Any] = {
    "Abs": made([5], node("Abs")),
    "Add": made([2, 5], node("Add", "x", "w"), weights={"w": (5,)}),
    "Add of a wider": made([1, 5], node("Add", "x", "w"), weights={"w": (4, 5)}),
    "AveragePool": made([2, 7, 6], node("AveragePool", kernel_shape=[3, 2], strides=[2, 2])),
    "AveragePool padded": made([2, 7, 6], node("AveragePool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "AveragePool counting": made(
        [2, 8], node("AveragePool", kernel_shape=[3], strides=[2], pads=[1, 1], count_include_pad=1)
    ),
    "BatchNormalization": made(
        [4, 3, 3],
        node("BatchNormalization", "x", "s", "b", "fixed_mean", "fixed_var", epsilon=1e-3),
        weights={"s": (4,), "b": (4,)},
        fixed_mean=F([0.1, -0.2, 0.3, 0.0]),
        fixed_var=F([1.0, 2.0, 0.5, 1.5]),
    ),
    "Cast": made([5], node("Cast", out="c", to=TensorProto.FLOAT), node("Mul", "c", "c")),
    "Clip": made([9], node("Clip", "x", "fixed_low", "fixed_high"), fixed_low=F(-0.3), fixed_high=F(0.6)),
    "Clip below": made([9], node("Clip", "x", "", "fixed_high"), fixed_high=F(0.2)),
    "Concat": made([2, 5], node("Concat", "x", "x2", axis=-1), weights={"w": (5,)}),
    "Conv": made([4, 8, 7], node("Conv", "x", "w", "b", pads=[1, 1, 1, 1]), weights={"w": (6, 4, 3, 3), "b": (6,)}),
    "Conv strided": made(
        [3, 9, 8], node("Conv", "x", "w", strides=[2, 3], pads=[0, 1, 1, 0]), weights={"w": (4, 3, 3, 2)}
    ),
    "Conv dilated": made(
        [2, 10, 9],
        node("Conv", "x", "w", dilations=[2, 1], strides=[1, 2], pads=[2, 0, 2, 1]),
        weights={"w": (3, 2, 3, 3)},
    ),
    "Conv in groups": made(
        [6, 6, 6],
        node("Conv", "x", "w", "b", group=3, strides=[2, 2], pads=[1, 1, 1, 1]),
        weights={"w": (9, 2, 3, 3), "b": (9,)},
    ),
    "Conv of each channel": made([5, 9], node("Conv", "x", "w", group=5, pads=[2, 2]), weights={"w": (5, 1, 5)}),
    "Conv padded the same": made(
        [2, 7, 8], node("Conv", "x", "w", auto_pad="SAME_UPPER", strides=[2, 2]), weights={"w": (3, 2, 3, 3)}
    ),
    "Conv of volumes": made([2, 4, 5, 4], node("Conv", "x", "w", strides=[1, 2, 2]), weights={"w": (3, 2, 2, 2, 3)}),
    "Conv of points": made([3, 7, 7], node("Conv", "x", "w", strides=[3, 3]), weights={"w": (4, 3, 1, 1)}),
    "Conv of every point": made([3, 4, 5], node("Conv", "x", "w", "b"), weights={"w": (4, 3, 1, 1), "b": (4,)}),
    "Conv of padded points": made([3, 4, 4], node("Conv", "x", "w", pads=[1, 0, 0, 1]), weights={"w": (4, 3, 1, 1)}),
    "Conv that skips the end": made([2, 10], node("Conv", "x", "w", strides=[4]), weights={"w": (3, 2, 3)}),
    "Div": made([2, 5], node("Div", "x", "w"), weights={"w": (5,)}),
    "Dropout": made([5], node("Dropout", out="d"), node("Mul", "d", "d")),
    "Elu": made([9], node("Elu", alpha=0.7)),
    "Erf": made([5], node("Erf")),
    "Exp": made([5], node("Exp")),
    "Expand": made(
        [1, 4], node("Expand", "x", "size", out="e"), node("Mul", "e", "w"), weights={"w": (3, 4)}, size=[1, 3, 4]
    ),
    "Flatten": made([2, 3], node("Flatten", out="f"), node("MatMul", "f", "w"), weights={"w": (6, 4)}),
    "Gather one": made([5, 4], node("Gather", "x", "place", axis=1), place=np.int64(-2)),
    "Gather some": made([5, 4], node("Gather", "x", "places", axis=2), places=np.array([[0, 3], [3, 1]])),
    "Gather of a table": made(
        [2],
        node("Gather", "table", "rows", out="t"),
        node("Add", "t", "x"),
        weights={"table": (6, 2)},
        rows=np.array([4, 0, 4]),
    ),
    "Gelu": made([9], node("Gelu")),
    "Gelu by tanh": made([9], node("Gelu", approximate="tanh")),
    "Gemm": made([5], node("Gemm", "x", "w", "b", alpha=0.7, beta=0.4), weights={"w": (5, 4), "b": (4,)}),
    "Gemm transposed": made([5], node("Gemm", "x", "w", "b", transB=1), weights={"w": (4, 5), "b": (1, 4)}),
    "Gemm across": made(
        [5], node("Transpose", out="t", perm=[1, 0]), node("Gemm", "t", "w", transA=1, transB=1), weights={"w": (4, 5)}
    ),
    "Gemm with weights first": made(
        [5],
        node("Transpose", out="t", perm=[1, 0]),
        node("Gemm", "w", "t", out="g", transA=1),
        node("Transpose", "g", perm=[1, 0]),
        weights={"w": (5, 4)},
    ),
    "DepthToSpace, columns first": made([8, 3, 2], node("DepthToSpace", blocksize=2)),
    "DepthToSpace, rows first": made([8, 3, 2], node("DepthToSpace", blocksize=2, mode="CRD")),
    "GlobalAveragePool": made([3, 4, 5], node("GlobalAveragePool")),
    "GlobalMaxPool": made([3, 4, 5], node("GlobalMaxPool")),
    "HardSigmoid": made([9], node("HardSigmoid", alpha=0.4, beta=0.5)),
    "HardSwish": made([9], node("HardSwish", "wide"), wide_factor=F(4)),
    "Identity": made([5], node("Identity", out="i"), node("Mul", "i", "i")),
    "LayerNormalization": made(
        [4, 6], node("LayerNormalization", "x", "s", "b", axis=-1, epsilon=1e-5), weights={"s": (6,), "b": (6,)}
    ),
    "LayerNormalization over two": made([4, 6], node("LayerNormalization", "x", "s", axis=1), weights={"s": (4, 6)}),
    "LeakyRelu": made([9], node("LeakyRelu", alpha=0.2)),
    "Log": made([5], node("Abs", out="a"), node("Log", "a")),
    "LogSoftmax": made([4, 5], node("LogSoftmax", axis=1)),
    "MatMul": made([3, 5], node("MatMul", "x", "w"), weights={"w": (5, 4)}),
    "MatMul of values": made([4, 5], node("Transpose", out="t", perm=[0, 2, 1]), node("MatMul", "x", "t")),
    "MatMul of a batch": made([2, 3, 5], node("MatMul", "x", "w"), weights={"w": (2, 5, 4)}),
    "MaxPool": made([2, 7, 8], node("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])),
    "Mul": made([2, 5], node("Mul", "x", "w"), weights={"w": (2, 1)}),
    "Neg": made([5], node("Neg")),
    "PRelu": made([4, 3], node("PRelu", "x", "w"), weights={"w": (4, 1)}),
    "Pow": made([5], node("Pow", "x", "fixed_three"), fixed_three=F(3.0)),
    "Reciprocal": made([5], node("Exp", out="e"), node("Reciprocal", "e")),
    "ReduceMean": made([4, 5], node("ReduceMean", "x", "axes", keepdims=0), axes=[-1]),
    "ReduceMean over two": made([4, 5, 2], node("ReduceMean", "x", "axes", keepdims=1), axes=[2, 1]),
    "ReduceSum": made([4, 5], node("ReduceSum", "x", "axes", keepdims=0), axes=[1]),
    "Relu": made([9], node("Relu")),
    "Reshape": made(
        [4, 6], node("Reshape", "x", "size", out="r"), node("MatMul", "r", "w"), weights={"w": (3, 2)}, size=[0, 8, 3]
    ),
    "Sigmoid": made([5], node("Sigmoid")),
    "Slice": made([7, 5], node("Slice", "x", "starts", "ends", "axes"), starts=[1, -3], ends=[2**62, 4], axes=[1, 2]),
    "Softmax": made([4, 5], node("Softmax", axis=-1)),
    "Softplus": made([5], node("Softplus")),
    "Split": made(
        [6, 2],
        helper.make_node("Split", ["x", "sizes"], ["p", "left", "q"], axis=1),
        node("Mul", "p", "q"),
        sizes=[2, 2, 2],
    ),
    "Sqrt": made([5], node("Abs", out="a"), node("Sqrt", "a")),
    "Squeeze": made(
        [1, 5], node("Squeeze", "x", "axes", out="s"), node("MatMul", "s", "w"), weights={"w": (5, 3)}, axes=[1]
    ),
    "Sub": made([2, 5], node("Sub", "w", "x"), weights={"w": (5,)}),
    "Sum": made([2, 5], node("Sum", "x", "w", "x"), weights={"w": (5,)}),
    "Tanh": made([5], node("Tanh")),
    "Transpose": made(
        [4, 5, 6], node("Transpose", out="t", perm=[0, 3, 1, 2]), node("MatMul", "t", "w"), weights={"w": (5, 2)}
    ),
    "Unsqueeze": made(
        [5], node("Unsqueeze", "x", "axes", out="u"), node("Mul", "u", "w"), weights={"w": (3, 5)}, axes=[1]
    ),
    "Where": made(
        [5],
        node("Greater", "x", "fixed_zero", out="c"),
        node("Where", "c", "x", "w"),
        weights={"w": (5,)},
        fixed_zero=F(0.0),
    ),
}
# what these two need besides: a second branch, and values beyond the limits
CASES["Concat"].graph.node.insert(2, helper.make_node("Mul", ["x", "w"], ["x2"]))
CASES["HardSwish"].graph.node.insert(2, helper.make_node("Mul", ["x", "wide_factor"], ["wide"]))


def values_for(model: Any, seed: int = 1) -> tuple[dict[str, Any], Any]:
    """Return inputs, and a target of the output's shape."""
    import onnxruntime as ort

    rng = np.random.default_rng(seed)
    sizes = [dim.dim_value or SAMPLES for dim in model.graph.input[0].type.tensor_type.shape.dim]
    feeds = {"in": rng.normal(0, 1, sizes).astype("f4")}
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return feeds, rng.normal(0, 1, session.run(None, feeds)[0].shape).astype("f4")


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_those_of_autograd(name: str) -> None:
    model = CASES[name]
    feeds, target = values_for(model)
    weights = trained(model)
    assert check_gradients(model, weights, "mse", feeds, target) <= 1e-9
    expected = autograd(model, weights, "mse", feeds, target)
    for each, gradient in on_a_device(model, weights, "mse", feeds, target).items():
        assert np.linalg.norm(gradient - expected[each]) <= 1e-5 * np.linalg.norm(expected[each]), each


def test_every_rule_has_a_case() -> None:
    used = {each.op_type for model in CASES.values() for each in model.graph.node}
    assert set(differentiable()) <= used


@pytest.mark.parametrize("ending", [None, "Softmax", "LogSoftmax"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_steps_are_those_of_torch(optimizer: str, ending: str | None) -> None:
    import onnxruntime as ort

    last = [node("Gemm", "x", "w", "b", out="g"), node(ending, "g")] if ending else [node("Gemm", "x", "w", "b")]
    model = made([6], *last, weights={"w": (6, 4), "b": (4,)})
    weights = trained(model)
    rng = np.random.default_rng(5)
    data, labels = rng.normal(0, 1, (4, SAMPLES, 6)).astype("f4"), rng.integers(0, 4, (4, SAMPLES))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tensors = {name: torch.tensor(arrays[name], requires_grad=True) for name in weights}
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}
    settings = {"lr": 0.05, "weight_decay": 0.01} | ({"momentum": 0.9} if optimizer == "sgd" else {})
    theirs = kinds[optimizer](tensors.values(), **settings)
    step = training_step(model, weights, "cross-entropy", optimizer)  # type: ignore[arg-type]
    session = ort.InferenceSession(step.SerializeToString(), providers=["CPUExecutionProvider"])
    values: dict[str, Any] = {name: arrays[name] for name in weights}
    states = {ours(f"{state}/{name}"): name for state in STATES[optimizer] for name in weights}  # type: ignore[index]
    names = [*weights, *states]
    values |= {state: np.zeros_like(values[name]) for state, name in states.items()}
    for number, (batch, wanted) in enumerate(zip(data, labels, strict=True)):
        theirs.zero_grad()
        hidden = (torch.tensor(batch) * tensors["scale"] + tensors["offset"]) @ tensors["w"] + tensors["b"]
        loss = torch.nn.functional.cross_entropy(hidden, torch.tensor(wanted))
        loss.backward()
        theirs.step()
        numbers = {"learning_rate": 0.05, "weight_decay": 0.01, "momentum": 0.9, "step": number + 1.0}
        values |= {ours(name): np.array(numbers[name], "f4") for name in SETTINGS[optimizer]}  # type: ignore[index]
        wanted_names = [ours("loss"), *(ours(f"new/{name}") for name in names)]
        outputs = session.run(wanted_names, values | {"in": batch, ours("target"): wanted})
        assert outputs[0] == pytest.approx(loss.item(), rel=1e-5)
        values |= dict(zip(names, outputs[1:], strict=True))
        for name in weights:
            np.testing.assert_allclose(values[name], tensors[name].detach().numpy(), rtol=1e-4, atol=1e-6)


REFUSED = {
    "an operator without a rule": (made([5], node("Sin")), "Sin"),
    "a pool in ceil mode": (made([2, 8], node("MaxPool", kernel_shape=[3], strides=[3], ceil_mode=1)), None),
    "an average that overhangs": (
        made([2, 8], node("AveragePool", kernel_shape=[3], strides=[3], ceil_mode=1)),
        "ceil mode",
    ),
    "steps of a slice": (
        made([7], node("Slice", "x", "starts", "ends", "axes", "steps"), starts=[0], ends=[7], axes=[1], steps=[2]),
        "in steps",
    ),
    "a rank that no rule knows": (
        made([4], node("Gather", "x", "place", "axis", axis=1), place=np.int64(0), axis=np.int64(1)),
        "Gather|no valid graph|shapes of the model",
    ),
    "a mean over samples": (made([7], node("ReduceMean", "x", "axes"), axes=[0]), "mean over samples"),
    "training mode": (
        made(
            [4, 3],
            helper.make_node(
                "BatchNormalization", ["x", "s", "b", "fixed_m", "fixed_v"], ["y", "m", "v"], training_mode=1
            ),
            weights={"s": (4,), "b": (4,)},
            fixed_m=F([0] * 4),
            fixed_v=F([1] * 4),
        ),
        "training mode",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_through_is_named(name: str) -> None:
    model, message = REFUSED[name]
    if message is None:  # where the largest element stood is known in any mode
        assert training_step(model, trained(model), "mse", "sgd").graph.output
        return
    with pytest.raises(ModelError, match=message):
        training_step(model, trained(model), "mse", "sgd")


def test_a_weight_without_effect_is_refused() -> None:
    model = made([5], node("Identity"), weights={"w": (3,)})
    with pytest.raises(ModelError, match="does not depend on the weight 'w'"):
        training_step(model, ["w"], "mse", "adam")
    with pytest.raises(ModelError, match="'other' is no weight"):
        training_step(model, ["other"], "mse", "adam")


def test_older_operators_are_converted() -> None:
    model = made([4, 5], helper.make_node("ReduceMean", ["x"], ["y"], axes=[-1], keepdims=0))
    model.opset_import[0].version = 17
    feeds, target = values_for(model)
    assert check_gradients(model, ["scale"], "mse", feeds, target) <= 1e-9

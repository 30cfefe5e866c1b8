"""What a loss is taken of, beside what the model itself gives: an activation may stand anywhere behind the logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from splitload.base.errors import ModelError
from splitload.training.losses import losses_for
from splitload.training.original import wanted_losses
from splitload.training.output_kind import judged, source_of
from splitload.training.training_step import constants_of, shapes_of

torch = pytest.importorskip("torch")
from splitload.training.gradient_check import check_gradients, losses_on_a_device  # noqa: E402 - needs torch

SAMPLES, CLASSES = 5, 4
WEIGHTS = ["w", "b"]


def model(*ending: tuple[Any, ...], units: int = CLASSES, **constants: Any) -> Any:
    """Return a linear layer, then nodes given as `(kind, inputs, output, attributes)`, the last of which makes "y"."""
    rng = np.random.default_rng(0)
    arrays = {"w": rng.normal(0, 0.7, (6, units)).astype("f4"), "b": rng.normal(0, 0.3, units).astype("f4")}
    arrays |= {name: np.array(value) for name, value in constants.items()}
    first = "logits" if ending else "y"
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], [first])]
    nodes += [helper.make_node(kind, inputs.split(), [out], **settings) for kind, inputs, out, settings in ending]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["samples", 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


F = np.float32
SHAPE = [-1, CLASSES, 1, 1]
MIXTURE = F([[0.7, 0.1, 0.1, 0.1], [0.1, 0.7, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.1, 0.1, 0.1, 0.7]])
# what a model ends with, what its output is, and what the loss is to be taken of
ENDINGS: dict[str, tuple[Any, str, str]] = {
    "nothing": (model(), "logits", "y"),
    "Softmax": (model(("Softmax", "logits", "y", {})), "probabilities", "logits"),
    "Softmax, Identity": (
        model(("Softmax", "logits", "p", {}), ("Identity", "p", "y", {})),
        "probabilities",
        "logits",
    ),
    "Softmax, Flatten": (model(("Softmax", "logits", "p", {}), ("Flatten", "p", "y", {})), "probabilities", "logits"),
    "Softmax, Clip": (
        model(("Softmax", "logits", "p", {}), ("Clip", "p low high", "y", {}), low=F(1e-7), high=F(1 - 1e-7)),
        "probabilities",
        "logits",
    ),
    "Softmax over channels, Flatten": (
        model(
            ("Reshape", "logits shape", "image", {}),
            ("Softmax", "image", "p", {"axis": 1}),
            ("Flatten", "p", "y", {}),
            shape=SHAPE,
        ),
        "probabilities",
        "image",
    ),
    "Softmax over channels, Transpose": (
        model(
            ("Reshape", "logits shape", "image", {}),
            ("Transpose", "image", "last", {"perm": [0, 2, 3, 1]}),
            ("Softmax", "last", "p", {}),
            ("Transpose", "p", "first", {"perm": [0, 3, 1, 2]}),
            ("Squeeze", "first axes", "y", {}),
            shape=SHAPE,
            axes=[2, 3],
        ),
        "probabilities",
        "last",
    ),
    "Softmax, Log": (model(("Softmax", "logits", "p", {}), ("Log", "p", "y", {})), "log-probabilities", "logits"),
    "LogSoftmax": (model(("LogSoftmax", "logits", "y", {})), "log-probabilities", "logits"),
    "LogSoftmax, Exp": (model(("LogSoftmax", "logits", "p", {}), ("Exp", "p", "y", {})), "probabilities", "logits"),
    "Exp, Sum, Div": (
        model(
            ("Exp", "logits", "e", {}), ("ReduceSum", "e axes", "s", {"keepdims": 1}), ("Div", "e s", "y", {}), axes=[1]
        ),
        "probabilities",
        "logits",
    ),
    "Exp, Sum, Div, from the largest": (
        model(
            ("ReduceMax", "logits axes", "m", {"keepdims": 1}),
            ("Sub", "logits m", "d", {}),
            ("Exp", "d", "e", {}),
            ("ReduceSum", "e axes", "s", {"keepdims": 1}),
            ("Div", "e s", "y", {}),
            axes=[-1],
        ),
        "probabilities",
        "logits",
    ),
    "less the logarithm of the sum": (
        model(
            ("Exp", "logits", "e", {}),
            ("ReduceSum", "e axes", "s", {"keepdims": 1}),
            ("Log", "s", "l", {}),
            ("Sub", "logits l", "y", {}),
            axes=[1],
        ),
        "log-probabilities",
        "logits",
    ),
    "a mixture of probabilities": (
        model(("Softmax", "logits", "p", {}), ("MatMul", "p mixture", "y", {}), mixture=MIXTURE),
        "probabilities",
        "y",
    ),
    "one unit": (model(units=1), "logits", "y"),
    "one unit, Sigmoid": (model(("Sigmoid", "logits", "y", {}), units=1), "probabilities", "logits"),
    "one unit, Sigmoid, Squeeze": (
        model(("Sigmoid", "logits", "p", {}), ("Squeeze", "p axes", "y", {}), units=1, axes=[1]),
        "probabilities",
        "logits",
    ),
    "one unit, a Sigmoid in parts": (
        model(
            ("Neg", "logits", "n", {}),
            ("Exp", "n", "e", {}),
            ("Add", "e one", "s", {}),
            ("Reciprocal", "s", "y", {}),
            units=1,
            one=F(1),
        ),
        "probabilities",
        "y",
    ),
}


def run(each: Any) -> tuple[dict[str, Any], Any]:
    import onnxruntime as ort

    feeds = {"x": np.random.default_rng(1).standard_normal((SAMPLES, 6)).astype("f4")}
    session = ort.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
    return feeds, session.run(None, feeds)[0]


def cross_entropy(kind: str, outputs: Any, classes: Any) -> float:
    """Return the mean loss of what a model gives, from the definition."""
    rows = outputs.reshape(SAMPLES, -1).astype("f8")
    if kind == "logits":
        rows = 1 / (1 + np.exp(-rows)) if rows.shape[1] == 1 else np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    elif kind == "log-probabilities":
        rows = np.exp(rows)
    if rows.shape[1] == 1:
        rows = np.concatenate([1 - rows, rows], axis=1)
    return float(-np.log(rows[np.arange(SAMPLES), classes]).mean())


@pytest.mark.parametrize("name", ENDINGS)
def test_the_loss_is_that_of_the_outputs(name: str) -> None:
    made, kind, source = ENDINGS[name]
    feeds, outputs = run(made)
    shapes, constants = shapes_of(made), constants_of(made.graph)
    verdict = judged(made.graph, "y", shapes.get, constants, [outputs])
    assert verdict.kind == kind
    assert (verdict.doubt is None) == (name != "one unit, a Sigmoid in parts")
    taken = source_of(made.graph, "y", shapes.get, constants, verdict.kind)
    assert (taken.value, taken.kind) == (source, "logits" if source != "y" else kind)
    (loss, _) = losses_for(shapes["y"])
    classes = np.random.default_rng(2).integers(0, 2 if loss == "binary-cross-entropy" else CLASSES, SAMPLES)
    (found,) = losses_on_a_device(made, WEIGHTS, loss, [(feeds, classes)], verdict.kind)
    assert found == pytest.approx(cross_entropy(kind, outputs, classes), rel=1e-4)
    assert check_gradients(made, WEIGHTS, loss, feeds, classes, verdict.kind) <= 1e-9
    for wanted in wanted_losses(loss, outputs, verdict.kind):
        batch = ({"x": feeds["x"][wanted.rows]}, wanted.target)
        wanted.check(losses_on_a_device(made, WEIGHTS, loss, [batch], verdict.kind)[0])


@pytest.mark.parametrize(
    "name", ["Softmax, Identity", "Exp, Sum, Div", "a mixture of probabilities", "one unit, Sigmoid"]
)
def test_a_loss_of_something_else_is_found(name: str) -> None:
    """A step that takes probabilities for logits has another loss than what the unsplit model gives."""
    made, kind, _ = ENDINGS[name]
    feeds, outputs = run(made)
    (loss, _) = losses_for(shapes_of(made)["y"])
    wanted, *_ = wanted_losses(loss, outputs, kind)  # type: ignore[arg-type]
    batch = ({"x": feeds["x"][wanted.rows]}, wanted.target)
    with pytest.raises(ModelError, match="that of the unsplit model's outputs"):
        wanted.check(losses_on_a_device(made, WEIGHTS, loss, [batch], "logits")[0])


def test_outputs_between_limits_are_a_doubt_that_is_told() -> None:
    several = model(("Sigmoid", "logits", "y", {}))
    _, outputs = run(several)
    verdict = judged(several.graph, "y", shapes_of(several).get, constants_of(several.graph), [outputs])
    assert verdict == ("logits", f"in {SAMPLES} samples all lie between 0 and 1, but do not add up to 1")
    unseen = judged(several.graph, "y", shapes_of(several).get, constants_of(several.graph), [])
    assert unseen == ("logits", "no sample could be run that tells them apart")


def test_a_limit_that_cuts_probabilities_is_no_detail() -> None:
    cut = model(("Softmax", "logits", "p", {}), ("Clip", "p low high", "y", {}), low=F(0.2), high=F(0.5))
    _, outputs = run(cut)
    shapes, constants = shapes_of(cut), constants_of(cut.graph)
    assert judged(cut.graph, "y", shapes.get, constants, [outputs]).doubt is not None
    assert source_of(cut.graph, "y", shapes.get, constants, None).value == "y"


def test_a_loss_that_does_not_fit_is_refused() -> None:
    made = model()
    feeds, _ = run(made)
    with pytest.raises(ModelError, match="binary-cross-entropy does not fit an output of shape"):
        losses_on_a_device(made, WEIGHTS, "binary-cross-entropy", [(feeds, np.zeros(SAMPLES, int))], None)

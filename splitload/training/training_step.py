"""A whole training step as one ONNX graph: forward, loss, gradients and the optimiser's update of every weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.bundle.manifest import Loss, Optimizer, OutputKind
from splitload.graphs.observe import one_line
from splitload.graphs.proto import attributes, without_traces
from splitload.training.gradients import Gradients
from splitload.training.losses import SAMPLES, add_loss
from splitload.training.output_kind import LossInput, source_of

OURS = "splitload/"  # begins every name that is not the model's: no value of a model may begin so
OPSET = 20  # what torch's exporter writes; rules rely on axes being inputs (18)
STATES: dict[Optimizer, tuple[str, ...]] = {"sgd": ("momentum",), "adam": ("mean", "square")}
SETTINGS: dict[Optimizer, tuple[str, ...]] = {
    "sgd": ("learning_rate", "weight_decay", "momentum"),
    "adam": ("learning_rate", "weight_decay", "step"),
}
_BETA_MEAN, _BETA_SQUARE, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


def ours(name: str) -> str:
    """Return what an input or output of a step is called that is not the model's."""
    return OURS + name


def training_step(
    model: Any,
    weights: Sequence[str],
    loss: Loss,
    optimizer: Optimizer,
    *,
    kind: OutputKind | None = None,
    dtype: str = "float32",
) -> Any:
    """Return a model that makes one training step.

    What is not the model's has a name that begins with `OURS`, left out here. Its inputs are those of the given model,
    `target`, the numbers in `SETTINGS[optimizer]`, the weights by their own names, and for each of `STATES[optimizer]`
    one value of the shape of each weight, `STATE/NAME`, zeros before the first step. Its outputs are `loss`, a number;
    the model's output, by its own name; and for each weight and state the new value: `new/` and the name of that input.

    The loss is the mean over samples ("cross-entropy" of classes, "binary-cross-entropy" of the classes 0 and 1 by one
    output unit; the target is a class for each sample, int64), or over all elements ("mse", the target being of the
    output's shape). It is taken of the logits where they are found behind the output, otherwise of the output as what
    `kind` says it is. The update is that of torch.optim's SGD, with momentum, or Adam; `step` counts from 1. Statistics
    of BatchNormalization are frozen, and nothing is dropped out.

    Args:
        model: A `ModelProto` with one output, its weights inside, every size known but the number of samples.
        weights: Names of the initializers to train.
        loss: One of `manifest.LOSSES`.
        optimizer: One of `manifest.OPTIMIZERS`.
        kind: What the output is; None where only the graph tells: logits, unless an activation makes it.
        dtype: What is computed in; "float64" is for checks.

    Raises:
        ModelError: If something cannot be trained through.
    """
    from onnx import helper, numpy_helper

    model = in_dtype(at_opset(model), dtype)
    graph = model.graph
    shapes = shapes_of(model)
    constants = constants_of(graph)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    _check_names(graph, weights)
    output = graph.output[0].name
    if output not in shapes:
        raise ModelError(f"the shape of the output '{output}' is not known; export the model with it")
    made = Gradients(graph.node, shapes, constants, dtype)
    source = LossInput(output, "logits") if loss == "mse" else source_of(graph, output, shapes.get, constants, kind)
    added = add_loss(made, loss, source, shapes[output], ours("target"))
    gradients = made.of(weights, source.value, added.slope)
    number = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [*(value for value in graph.input if value.name not in arrays), added.target]
    outputs = [
        helper.make_tensor_value_info(ours("loss"), number, []),
        helper.make_tensor_value_info(output, number, list(shapes[output])),
    ]
    made.nodes.append(helper.make_node("Identity", [added.loss], [ours("loss")]))
    more = _updates(made, optimizer, gradients, {name: arrays[name].shape for name in weights})
    kept = [tensor for tensor in graph.initializer if tensor.name not in weights]
    kept += [numpy_helper.from_array(value, name) for name, value in made.initializers.items()]
    step = helper.make_graph(made.nodes, "training_step", inputs + more[0], outputs + more[1], kept)
    return _valid(helper.make_model(step, opset_imports=model.opset_import, ir_version=model.ir_version), loss)


def _valid(step: Any, loss: Loss) -> Any:
    """Return a training step without what the exporter noted in it, checked by onnx."""
    import onnx

    step = without_traces(step)
    try:
        onnx.checker.check_model(step, full_check=True)
    except Exception as error:  # onnx has no common root for its errors
        raise ModelError(f"the training step for {loss} is no valid graph: {one_line(error)}") from error
    return step


def _updates(
    made: Gradients, optimizer: Optimizer, gradients: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]
) -> tuple[list[Any], list[Any]]:
    """Add the update of every weight to the nodes; return the inputs and outputs that it brings.

    Args:
        made: The step so far.
        optimizer: One of `manifest.OPTIMIZERS`.
        gradients: The value that holds each weight's gradient.
        shapes: Of each weight.
    """
    from onnx import helper

    number = helper.np_dtype_to_tensor_dtype(np.dtype(made.dtype))
    inputs = [helper.make_tensor_value_info(ours(name), number, []) for name in SETTINGS[optimizer]]
    outputs = []
    for name, shape in shapes.items():
        updated = _update(made, optimizer, name, gradients[name])
        inputs += [helper.make_tensor_value_info(each, number, shape) for each in updated]
        for wanted, new in updated.items():
            made.nodes.append(helper.make_node("Identity", [new], [ours(f"new/{wanted}")]))
            outputs.append(helper.make_tensor_value_info(ours(f"new/{wanted}"), number, shape))
    return inputs, outputs


def _check_names(graph: Any, weights: Sequence[str]) -> None:
    stored = {tensor.name for tensor in graph.initializer}
    unknown = [name for name in weights if name not in stored]
    if unknown:
        raise ModelError(f"'{unknown[0]}' is no weight of the model")
    if len(graph.output) != 1:
        raise ModelError(f"a model with {len(graph.output)} outputs cannot be trained by one loss; it must have one")
    names = [*stored, *(value.name for value in graph.input), *(name for node in graph.node for name in node.output)]
    taken = [name for name in names if name.startswith(OURS)]
    if taken:
        raise ModelError(f"'{taken[0]}' begins with '{OURS}', which is kept for training steps; give it another name")


def _update(made: Gradients, optimizer: Optimizer, name: str, gradient: str) -> dict[str, str]:
    """Add the optimiser's update of a weight; return the new value of it and of its states, by their names."""
    gradient = made.op("Add", gradient, made.op("Mul", ours("weight_decay"), name))
    states = [ours(f"{state}/{name}") for state in STATES[optimizer]]
    if optimizer == "sgd":
        (velocity,) = states
        moved = made.op("Add", made.op("Mul", ours("momentum"), velocity), gradient)
        return {name: made.op("Sub", name, made.op("Mul", ours("learning_rate"), moved)), velocity: moved}
    mean, square = states

    def average(old: str, new: str, beta: float) -> str:
        return made.op("Add", made.op("Mul", made.number(beta), old), made.op("Mul", made.number(1 - beta), new))

    def unbiased(beta: float) -> str:
        return made.op("Sub", made.number(1.0), made.op("Pow", made.number(beta), ours("step")))

    new_mean = average(mean, gradient, _BETA_MEAN)
    new_square = average(square, made.op("Mul", gradient, gradient), _BETA_SQUARE)
    root = made.op("Div", made.op("Sqrt", new_square), made.op("Sqrt", unbiased(_BETA_SQUARE)))
    length = made.op("Div", ours("learning_rate"), unbiased(_BETA_MEAN))
    change = made.op("Div", made.op("Mul", length, new_mean), made.op("Add", root, made.number(_EPSILON)))
    return {name: made.op("Sub", name, change), mean: new_mean, square: new_square}


def at_opset(model: Any) -> Any:
    """Return a model in the version of the operator set that rules are written for, or a later one.

    Raises:
        ModelError: If it cannot be converted.
    """
    from onnx import version_converter

    version = next((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), 0)
    if version >= OPSET:
        return model
    try:
        return version_converter.convert_version(model, OPSET)
    except Exception as error:  # onnx has no common root for its errors
        raise ModelError(
            f"the model is of operator set {version} and cannot be converted to {OPSET} to be trained: "
            f"{one_line(error)}"
        ) from error


def in_dtype(model: Any, dtype: str) -> Any:
    """Return a copy of a model that computes in another type of floating-point numbers than float32."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    wanted = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if wanted == TensorProto.FLOAT:
        return made
    tensors = [*made.graph.initializer]
    for node in made.graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                tensors.append(attribute.t)
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = wanted
    for tensor in tensors:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*made.graph.input, *made.graph.output, *made.graph.value_info):
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            value.type.tensor_type.elem_type = wanted
    return made


def shapes_of(model: Any) -> dict[str, tuple[int | str, ...]]:
    """Return the shape of every value whose shape is known; an open first dimension of the inputs is `SAMPLES`.

    Raises:
        ModelError: If the model's shapes contradict each other.
    """
    import onnx

    named = onnx.ModelProto()
    named.CopyFrom(model)
    del named.graph.value_info[:]
    for value in named.graph.input:
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = SAMPLES
    for value in named.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        graph = onnx.shape_inference.infer_shapes(named, check_type=True, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx has no common root for its errors
        raise ModelError(f"the shapes of the model cannot be worked out: {one_line(error)}") from error
    found: dict[str, tuple[int | str, ...]] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = tuple(
                dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "?" for dim in tensor.shape.dim
            )
    return found


def constants_of(graph: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the values of initializers and of Constant nodes, by name."""
    from onnx import numpy_helper

    found = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            settings = attributes(node)
            value = settings.get("value")
            if value is not None:
                found[node.output[0]] = numpy_helper.to_array(value)
            else:
                found[node.output[0]] = np.array(next(iter(settings.values())))
    return found

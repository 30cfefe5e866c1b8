"""A whole training step as one ONNX graph: forward, loss, gradients and the optimiser's update of every weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np

from splitload.errors import ModelError
from splitload.frontends.gradients import Gradients
from splitload.frontends.proto import attributes

Loss = Literal["cross-entropy", "mse"]
Optimizer = Literal["sgd", "adam"]
LOSSES: tuple[Loss, ...] = get_args(Loss)
OPTIMIZERS: tuple[Optimizer, ...] = get_args(Optimizer)
OPSET = 20  # what torch's exporter writes; rules rely on axes being inputs (18)
SAMPLES = "samples"  # what the first dimension is called where the model leaves it open
STATES: dict[Optimizer, tuple[str, ...]] = {"sgd": ("momentum",), "adam": ("mean", "square")}
SETTINGS: dict[Optimizer, tuple[str, ...]] = {
    "sgd": ("learning_rate", "weight_decay", "momentum"),
    "adam": ("learning_rate", "weight_decay", "step"),
}
_BETA_MEAN, _BETA_SQUARE, _EPSILON = 0.9, 0.999, 1e-8  # torch's defaults


def losses_for(shape: Sequence[int | str]) -> tuple[Loss, ...]:
    """Return the losses that fit an output of some shape."""
    return tuple(loss for loss in LOSSES if loss == "mse" or (len(shape) == 2 and isinstance(shape[1], int)))


def training_step(
    model: Any, weights: Sequence[str], loss: Loss, optimizer: Optimizer, *, dtype: str = "float32"
) -> Any:
    """Return a model that makes one training step.

    Its inputs are those of the given model, `target`, the numbers in `SETTINGS[optimizer]`, the weights by their names,
    and for each of `STATES[optimizer]` one value of the shape of each weight, `STATE/NAME`, zeros before the first
    step. Its outputs are `loss`, a number; the model's output; `new/NAME` for each weight; and `new/STATE/NAME`.

    The loss is the mean over samples ("cross-entropy", of logits of shape `(samples, classes)` and a class for each
    sample, int64), or over all elements ("mse", the target being of the output's shape). Where the model ends with
    Softmax or LogSoftmax, the logits before it are taken. The update is that of torch.optim's SGD, with momentum, or
    Adam; `step` counts from 1. Statistics of BatchNormalization are frozen, and nothing is dropped out.

    Args:
        model: A `ModelProto` with one output, its weights inside, every size known but the number of samples.
        weights: Names of the initializers to train.
        loss: One of `LOSSES`.
        optimizer: One of `OPTIMIZERS`.
        dtype: What is computed in; "float64" is for checks.

    Raises:
        ModelError: If something cannot be trained through.
    """
    import onnx
    from onnx import helper, numpy_helper

    model = in_dtype(at_opset(model), dtype)
    graph = model.graph
    shapes = shapes_of(model)
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    unknown = [name for name in weights if name not in arrays]
    if unknown:
        raise ModelError(f"'{unknown[0]}' is no weight of the model")
    if len(graph.output) != 1:
        raise ModelError(f"a model with {len(graph.output)} outputs cannot be trained by one loss; it must have one")
    output = graph.output[0].name
    made = Gradients(graph.node, shapes, constants_of(graph), dtype)
    if loss == "cross-entropy":
        source, loss_name, slope, target = _cross_entropy(made, graph, output, shapes)
    else:
        source, loss_name, slope, target = _mean_square(made, output, shapes, dtype)
    gradients = made.of(weights, source, slope)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    inputs = [*(value for value in graph.input if value.name not in arrays), target]
    inputs += [helper.make_tensor_value_info(name, kind, []) for name in SETTINGS[optimizer]]
    outputs = [
        helper.make_tensor_value_info("loss", kind, []),
        helper.make_tensor_value_info(output, kind, list(shapes[output])),
    ]
    made.nodes.append(helper.make_node("Identity", [loss_name], ["loss"], name="loss"))
    for name in weights:
        updated = _update(made, optimizer, name, gradients[name])
        size = arrays[name].shape
        inputs += [helper.make_tensor_value_info(each, kind, size) for each in (name, *_states(optimizer, name))]
        for wanted, new in updated.items():
            made.nodes.append(helper.make_node("Identity", [new], [f"new/{wanted}"], name=f"new/{wanted}"))
            outputs.append(helper.make_tensor_value_info(f"new/{wanted}", kind, size))
    kept = [tensor for tensor in graph.initializer if tensor.name not in weights]
    kept += [numpy_helper.from_array(value, name) for name, value in made.initializers.items()]
    step = helper.make_graph(made.nodes, "training_step", inputs, outputs, kept)
    trained = helper.make_model(step, opset_imports=model.opset_import, ir_version=model.ir_version)
    onnx.checker.check_model(trained, full_check=True)
    return trained


def _states(optimizer: Optimizer, name: str) -> list[str]:
    return [f"{state}/{name}" for state in STATES[optimizer]]


def _cross_entropy(made: Gradients, graph: Any, output: str, shapes: Mapping[str, Any]) -> tuple[str, str, str, Any]:
    """Add the loss; return what it is computed from, its name, its gradient, and the target as an input."""
    from onnx import TensorProto, helper

    source = output
    for node in graph.node:
        last = attributes(node).get("axis", -1) in (-1, len(shapes[output]) - 1)
        if output in node.output and node.op_type in ("Softmax", "LogSoftmax") and last:
            source = node.input[0]
    shape = shapes[source]
    if len(shape) != 2 or not isinstance(shape[1], int):
        raise ModelError(f"cross-entropy needs an output of shape (samples, classes), it is {shape}; take --loss mse")
    target = helper.make_tensor_value_info("target", TensorProto.INT64, [SAMPLES])
    limits = made.constant(np.array([0, 1], dtype=made.dtype))
    wanted = made.op("OneHot", "target", made.sizes(shape[1]), limits, axis=1)
    logs = made.op("LogSoftmax", source, axis=1)
    right = made.op("ReduceSum", made.op("Mul", logs, wanted), made.sizes(1), keepdims=0)
    loss = made.op("Neg", made.op("ReduceMean", right, made.sizes(0), keepdims=0))
    samples = made.op("CastLike", made.op("Size", "target"), logs)
    slope = made.op("Div", made.op("Sub", made.op("Exp", logs), wanted), samples)
    return source, loss, slope, target


def _mean_square(made: Gradients, output: str, shapes: Mapping[str, Any], dtype: str) -> tuple[str, str, str, Any]:
    """Add the loss; return what it is computed from, its name, its gradient, and the target as an input."""
    from onnx import helper

    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    target = helper.make_tensor_value_info("target", kind, list(shapes[output]))
    away = made.op("Sub", output, "target")
    loss = made.op("ReduceMean", made.op("Mul", away, away), keepdims=0)
    count = made.op("CastLike", made.op("Size", output), output)
    return output, loss, made.op("Div", made.op("Mul", made.number(2.0), away), count), target


def _update(made: Gradients, optimizer: Optimizer, name: str, gradient: str) -> dict[str, str]:
    """Add the optimiser's update of a weight; return the new value of it and of its states, by their names."""
    gradient = made.op("Add", gradient, made.op("Mul", "weight_decay", name))
    states = _states(optimizer, name)
    if optimizer == "sgd":
        (velocity,) = states
        moved = made.op("Add", made.op("Mul", "momentum", velocity), gradient)
        return {name: made.op("Sub", name, made.op("Mul", "learning_rate", moved)), velocity: moved}
    mean, square = states

    def average(old: str, new: str, beta: float) -> str:
        return made.op("Add", made.op("Mul", made.number(beta), old), made.op("Mul", made.number(1 - beta), new))

    def unbiased(beta: float) -> str:
        return made.op("Sub", made.number(1.0), made.op("Pow", made.number(beta), "step"))

    new_mean = average(mean, gradient, _BETA_MEAN)
    new_square = average(square, made.op("Mul", gradient, gradient), _BETA_SQUARE)
    root = made.op("Div", made.op("Sqrt", new_square), made.op("Sqrt", unbiased(_BETA_SQUARE)))
    length = made.op("Div", "learning_rate", unbiased(_BETA_MEAN))
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
            f"the model is of operator set {version} and cannot be converted to {OPSET} to be trained: {error}"
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
    except onnx.shape_inference.InferenceError as error:
        raise ModelError(f"the shapes of the model cannot be worked out: {error}") from error
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

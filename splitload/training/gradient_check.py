"""Gradients of an exported training step beside those of torch's autograd, both in double precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.bundle.manifest import Loss, OutputKind
from splitload.graphs.observe import one_line
from splitload.runtime.stock import stock_session
from splitload.training.torch_graph import run_graph, tensors_of
from splitload.training.torch_loss import loss_of
from splitload.training.training_step import SETTINGS, at_opset, in_dtype, ours, training_step

TOLERANCE = 1e-9  # of the largest gradient of a weight; what rounding in double precision makes is far below
ZERO = 1e-9  # of the largest gradient of any weight: a weight with less has no effect, such as the bias of keys


def check_gradients(
    model: Any,
    weights: Sequence[str],
    loss: Loss,
    feeds: Mapping[str, Any],
    target: Any,
    kind: OutputKind | None = None,
) -> float:
    """Return by how much gradients differ from autograd's, as a share of the largest of each weight.

    Where nothing but rounding is left of that, as of a bias that softmax takes out again, it is a share of the largest
    gradient of any weight.

    Args:
        model: As `training_step` takes it.
        weights: Names of the initializers that are trained.
        loss: Which loss.
        feeds: An input for each of the model's, float32 or whole numbers.
        target: What is wanted for them.
        kind: What the output is, as `training_step` takes it.

    Raises:
        ModelError: If they differ by more than `TOLERANCE`, or cannot be computed in one of the two ways.
    """
    expected = autograd(model, weights, loss, feeds, target, kind)
    found = exported(model, weights, loss, feeds, target, kind)
    worst = 0.0
    largest_of_all = max(np.abs(gradient).max(initial=0.0) for gradient in expected.values())
    for name in weights:
        largest = np.abs(expected[name]).max(initial=0.0)
        apart = np.abs(found[name] - expected[name]).max(initial=0.0)
        scale = largest if largest > ZERO * largest_of_all else largest_of_all
        share = float(apart / scale) if scale > 0 else float(apart)
        if not share <= TOLERANCE:
            raise ModelError(
                f"the gradient of '{name}' differs from autograd's by {share:.2g} of its largest element; "
                f"expected at most {TOLERANCE:g}"
            )
        worst = max(worst, share)
    return worst


def exported(
    model: Any,
    weights: Sequence[str],
    loss: Loss,
    feeds: Mapping[str, Any],
    target: Any,
    kind: OutputKind | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the gradient of each weight by the nodes of the exported step, computed in double precision."""
    import torch

    step = training_step(model, weights, loss, "sgd", kind=kind, dtype="float64").graph
    stored = tensors_of(in_dtype(at_opset(model), "float64").graph, torch.float64)
    values = tensors_of(step, torch.float64) | {name: stored[name] for name in weights}
    values |= {ours(f"momentum/{name}"): torch.zeros_like(stored[name]) for name in weights}
    values |= {ours(name): torch.zeros((), dtype=torch.float64) for name in SETTINGS["sgd"]}
    values |= {name: torch.from_numpy(_double(value)) for name, value in {**feeds, ours("target"): target}.items()}
    with torch.no_grad():
        known = run_graph(step, values)
    return {name: known[_velocity(name)].numpy() for name in weights}  # after one step from 0: the gradient


def _velocity(name: str) -> str:
    """Return what the new momentum of a weight is called."""
    return ours(f"new/{ours(f'momentum/{name}')}")


def on_a_device(
    model: Any,
    weights: Sequence[str],
    loss: Loss,
    feeds: Mapping[str, Any],
    target: Any,
    kind: OutputKind | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the gradient of each weight as a device computes it: in single precision, by onnxruntime."""
    (found,) = run_step(model, weights, loss, [(feeds, target)], [_velocity(name) for name in weights], kind)
    return dict(zip(weights, found, strict=True))


def losses_on_a_device(
    model: Any,
    weights: Sequence[str],
    loss: Loss,
    batches: Sequence[tuple[Mapping[str, Any], Any]],
    kind: OutputKind | None,
) -> list[float]:
    """Return the loss of each batch, features and target, as a device computes it from the weights as they are."""
    return [float(found[0]) for found in run_step(model, weights, loss, batches, [ours("loss")], kind)]


def run_step(
    model: Any,
    weights: Sequence[str],
    loss: Loss,
    batches: Sequence[tuple[Mapping[str, Any], Any]],
    wanted: Sequence[str],
    kind: OutputKind | None,
) -> list[list[Any]]:
    """Return some outputs of a training step for each batch, as a device computes it, from the weights as they are.

    Raises:
        ModelError: If onnxruntime cannot run it.
    """
    import onnxruntime as ort
    from onnx import numpy_helper

    step = training_step(model, weights, loss, "sgd", kind=kind)
    values = {
        tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in weights
    }
    values |= {ours(f"momentum/{name}"): np.zeros_like(value) for name, value in values.items()}
    values |= dict.fromkeys(map(ours, SETTINGS["sgd"]), np.zeros((), np.float32))
    options, only = ort.SessionOptions(), ort.RunOptions()
    options.log_severity_level = 4
    only.only_execute_path_to_fetches = True
    try:
        session = stock_session(step.SerializeToString(), options)
        return [
            session.run(list(wanted), {**values, **feeds, ours("target"): target}, only) for feeds, target in batches
        ]
    except Exception as error:  # onnxruntime has no common root for its errors
        raise ModelError(f"the training step for {loss} does not run: {one_line(error)}") from error


def autograd(
    model: Any,
    weights: Sequence[str],
    loss: Loss,
    feeds: Mapping[str, Any],
    target: Any,
    kind: OutputKind | None = None,
) -> dict[str, np.ndarray[Any, Any]]:
    """Return the gradient of each weight by torch, in double precision."""
    import torch

    graph = in_dtype(at_opset(model), "float64").graph
    values = tensors_of(graph, torch.float64) | {name: torch.from_numpy(_double(each)) for name, each in feeds.items()}
    for name in weights:
        values[name].requires_grad_(True)
    known = run_graph(graph, values)
    taken = loss_of(graph, known, graph.output[0].name, loss, torch.from_numpy(_double(target)), kind)
    try:
        gradients = torch.autograd.grad(taken, [values[name] for name in weights])
    except RuntimeError as error:
        raise ModelError(f"the output does not change with what is trained: {error}") from error
    return {name: gradient.numpy() for name, gradient in zip(weights, gradients, strict=True)}


def _double(value: Any) -> np.ndarray[Any, Any]:
    array = np.asarray(value)
    return array.astype(np.float64) if array.dtype == np.float32 else array

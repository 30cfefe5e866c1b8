"""Losses as nodes of a training step, each with what it changes by for the value that it is taken of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from splitload.base.errors import ModelError
from splitload.bundle.manifest import Loss
from splitload.training.gradients import Gradients
from splitload.training.output_kind import LossInput

LEAST = 1e-7  # no logarithm of a smaller probability is taken: float32 tells 1 from 1 minus this
SAMPLES = "samples"  # what the first dimension is called where the model leaves it open


class Added(NamedTuple):
    """A loss in a graph: names of its value and of its gradient, and the target as an input of the graph."""

    loss: str
    slope: str
    target: Any


def losses_for(shape: Sequence[int | str]) -> tuple[Loss, ...]:
    """Return the losses that fit an output of some shape."""
    if len(shape) == 2 and isinstance(shape[1], int) and shape[1] > 1:
        return ("cross-entropy", "mse")
    return ("binary-cross-entropy", "mse") if list(shape[1:]) in ([], [1]) and shape else ("mse",)


def add_loss(made: Gradients, loss: Loss, source: LossInput, shape: Sequence[int | str], target: str) -> Added:
    """Add the mean loss of samples to a graph.

    Args:
        made: The graph.
        loss: Which.
        source: What it is taken of; the output itself for "mse".
        shape: Of the output.
        target: What the target is called: whole numbers, a class for each sample; for "mse" of the output's shape.

    Raises:
        ModelError: If the loss does not fit the output.
    """
    from onnx import TensorProto, helper

    if loss not in losses_for(shape):
        raise ModelError(f"{loss} does not fit an output of shape {tuple(shape)}; take one of {losses_for(shape)}")
    if loss == "mse":
        kind = helper.np_dtype_to_tensor_dtype(made.dtype)
        return Added(
            *_mean_square(made, source.value, target), helper.make_tensor_value_info(target, kind, list(shape))
        )
    add = _cross_entropy if loss == "cross-entropy" else _binary_cross_entropy
    classes = int(shape[1]) if len(shape) > 1 else 1
    rows = made.reshaped(source.value, -1, classes)
    value, slope = add(made, source, rows, classes, target)
    declared = helper.make_tensor_value_info(target, TensorProto.INT64, [SAMPLES])
    return Added(value, made.as_was(slope, source.value), declared)


def _cross_entropy(made: Gradients, source: LossInput, rows: str, classes: int, target: str) -> tuple[str, str]:
    limits = made.constant(np.array([0, 1], dtype=made.dtype))
    wanted = made.op("OneHot", target, made.sizes(classes), limits, axis=1)
    samples = made.op("CastLike", made.op("Size", target), rows)
    if source.kind == "logits":
        logs = made.op("LogSoftmax", rows, axis=1)
        slope = made.op("Sub", made.op("Exp", logs), wanted)
    elif source.kind == "log-probabilities":
        logs, slope = rows, made.op("Neg", wanted)
    else:
        logs, by = _logarithm(made, rows)
        slope = made.op("Neg", made.op("Mul", wanted, by))
    right = made.op("ReduceSum", made.op("Mul", logs, wanted), made.sizes(1), keepdims=0)
    return made.op("Neg", made.op("ReduceMean", right, made.sizes(0), keepdims=0)), made.op("Div", slope, samples)


def _binary_cross_entropy(made: Gradients, source: LossInput, rows: str, _: int, target: str) -> tuple[str, str]:
    wanted = made.op("CastLike", made.reshaped(target, -1, 1), rows)
    samples = made.op("CastLike", made.op("Size", target), rows)
    if source.kind == "logits":
        losses = made.op("Sub", made.op("Softplus", rows), made.op("Mul", rows, wanted))
        slope = made.op("Sub", made.op("Sigmoid", rows), wanted)
    else:
        one = made.number(1.0)
        unwanted, rest = made.op("Sub", one, wanted), made.op("Sub", one, rows)
        (yes, by_yes), (no, by_no) = _logarithm(made, rows), _logarithm(made, rest)
        losses = made.op("Neg", made.op("Add", made.op("Mul", wanted, yes), made.op("Mul", unwanted, no)))
        slope = made.op("Sub", made.op("Mul", unwanted, by_no), made.op("Mul", wanted, by_yes))
    return made.op("ReduceMean", losses, keepdims=0), made.op("Div", slope, samples)


def _logarithm(made: Gradients, name: str) -> tuple[str, str]:
    """Add the logarithm of probabilities, none taken as less than `LEAST`; return it and its derivative."""
    least = made.number(LEAST)
    held = made.op("Max", name, least)
    slope = made.op("Where", made.op("Greater", name, least), made.op("Reciprocal", held), made.number(0.0))
    return made.op("Log", held), slope


def _mean_square(made: Gradients, output: str, target: str) -> tuple[str, str]:
    away = made.op("Sub", output, target)
    loss = made.op("ReduceMean", made.op("Mul", away, away), keepdims=0)
    count = made.op("CastLike", made.op("Size", output), output)
    return loss, made.op("Div", made.op("Mul", made.number(2.0), away), count)

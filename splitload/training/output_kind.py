"""What the output of a classifier is, logits or probabilities, and which value of its graph a loss is taken of."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from splitload.bundle.manifest import OutputKind
from splitload.graphs.proto import attributes

Shape = tuple[Any, ...]
ShapeOf = Callable[[str], "Shape | None"]
SUM_TOLERANCE = 1e-3  # for what the probabilities of a sample may add up to besides 1
_IN_ORDER = ("Dropout", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")  # elements keep their order
_LINEAR = ("Add", "Conv", "Gemm", "MatMul")
_SOFTMAX: dict[str, OutputKind] = {"Softmax": "probabilities", "LogSoftmax": "log-probabilities"}
_TURNED: dict[tuple[str, OutputKind], OutputKind] = {
    ("Exp", "log-probabilities"): "probabilities",
    ("Log", "probabilities"): "log-probabilities",
}


class LossInput(NamedTuple):
    """What a loss is taken of.

    Attributes:
        value: Name of a value of the graph; its elements are those of the output, in their order.
        kind: What it is.
    """

    value: str
    kind: OutputKind


class Verdict(NamedTuple):
    """What an output was found to be.

    Attributes:
        kind: What it is taken as.
        doubt: Why it may be something else, None where it is sure.
    """

    kind: OutputKind
    doubt: str | None


def source_of(
    graph: Any, output: str, shape_of: ShapeOf, constants: Mapping[str, Any], kind: OutputKind | None
) -> LossInput:
    """Return what a loss of classes is taken of: the logits behind an output where they are found, or the output.

    Args:
        graph: A `GraphProto`.
        output: Name of its output.
        shape_of: The shape of a value, whose first size counts samples; None where it is not known.
        constants: Values of what is stored, by name.
        kind: What the output was found to be; None where only the graph can tell.
    """
    found = _Walk(graph, shape_of, constants).activation(output)
    if found is not None and kind in (None, found.kind):
        return LossInput(found.value, "logits")
    return LossInput(output, kind or "logits")


def judged(
    graph: Any, output: str, shape_of: ShapeOf, constants: Mapping[str, Any], outputs: Sequence[np.ndarray[Any, Any]]
) -> Verdict:
    """Return what an output is, by what the model gave for some samples, and by its graph where that leaves a doubt.

    Args:
        graph: A `GraphProto`.
        output: Name of its output.
        shape_of: The shape of a value.
        constants: Values of what is stored, by name.
        outputs: The unsplit model's own outputs, a row of classes for each sample; none if it could not be run.
    """
    walk = _Walk(graph, shape_of, constants)
    found = walk.activation(output)
    if not outputs:
        if found is not None:
            return Verdict(found.kind, None)
        return Verdict("logits", None if walk.is_linear(output) else "no sample could be run that tells them apart")
    rows = np.concatenate([np.asarray(each, dtype=np.float64).reshape(len(each), -1) for each in outputs])
    within = bool(((rows >= 0) & (rows <= 1)).all())
    several = rows.shape[1] > 1
    if several and bool((rows >= 0).all() and (np.abs(rows.sum(1) - 1) <= SUM_TOLERANCE).all()):
        return Verdict("probabilities", None)
    if several and bool((rows <= 0).all() and (np.abs(np.exp(rows).sum(1) - 1) <= SUM_TOLERANCE).all()):
        return Verdict("log-probabilities", None)
    if not within or walk.is_linear(output):
        return Verdict("logits", None)
    if several:
        return Verdict("logits", f"in {len(rows)} samples all lie between 0 and 1, but do not add up to 1")
    doubt = None if found is not None else f"in {len(rows)} samples all lie between 0 and 1"
    return Verdict("probabilities", doubt)


class _Walk:
    """Goes from an output back to the activation that makes it."""

    def __init__(self, graph: Any, shape_of: ShapeOf, constants: Mapping[str, Any]) -> None:
        self._makers = {name: node for node in graph.node for name in node.output if name}
        self._shape_of = shape_of
        self._constants = constants

    def activation(self, output: str) -> LossInput | None:
        """Return the logits behind an output, and what Softmax, Sigmoid or their like makes of them."""
        shape = self._shape_of(output)
        count = None if shape is None else _count(shape)
        if count is None:
            return None
        return self._sigmoid(output) if count == 1 else self._softmax(output, count)

    def is_linear(self, output: str) -> bool:
        """Return whether a product or a sum makes an output, so that nothing holds it between limits."""
        node = self._maker(output)
        return node is not None and node.op_type in _LINEAR

    def _maker(self, name: str) -> Any:
        """Return the node that makes a value, behind those that change nothing but its shape."""
        node = self._makers.get(name)
        while node is not None and self._changes_nothing(node):
            node = self._makers.get(node.input[0])
        return node

    def _changes_nothing(self, node: Any) -> bool:
        before, after = self._shape_of(node.input[0]), self._shape_of(node.output[0])
        if before is None or after is None or _count(before) is None or _count(before) != _count(after):
            return False
        if node.op_type == "Clip":
            return self._keeps_probabilities(node)
        if node.op_type == "Transpose":
            perm = attributes(node).get("perm", [*reversed(range(len(before)))])
            return bool(perm[0] == 0) and sum(size != 1 for size in before[1:]) <= 1
        return str(node.op_type) in _IN_ORDER

    def _keeps_probabilities(self, node: Any) -> bool:
        """Return whether limits are there for a logarithm only, and cut no probability off."""
        settings = attributes(node)
        limits = [settings.get("min", -math.inf), settings.get("max", math.inf)]
        for place, name in enumerate(node.input[1:3]):
            if name and name not in self._constants:
                return False
            if name:
                limits[place] = float(np.asarray(self._constants[name]).ravel()[0])
        return bool(limits[0] <= SUM_TOLERANCE and limits[1] >= 1 - SUM_TOLERANCE)

    def _sigmoid(self, name: str) -> LossInput | None:
        node = self._maker(name)
        if node is not None and node.op_type == "Sigmoid":
            return LossInput(node.input[0], "probabilities")
        return None

    def _softmax(self, name: str, count: int) -> LossInput | None:
        node = self._maker(name)
        if node is None:
            return None
        read = node.input
        if node.op_type in _SOFTMAX:
            axis = attributes(node).get("axis", -1)
            return LossInput(read[0], _SOFTMAX[node.op_type]) if self._over_classes(read[0], axis, count) else None
        if node.op_type in ("Exp", "Log"):
            inner = self._softmax(read[0], count)
            known = None if inner is None else _TURNED.get((node.op_type, inner.kind))
            return None if inner is None or known is None else LossInput(inner.value, known)
        if node.op_type == "Div":  # powers by their sum
            powers = self._power_of_sum(read[1], count)
            if powers is not None and powers is self._maker(read[0]):
                return LossInput(self._unshifted(powers.input[0]), "probabilities")
        if node.op_type == "Sub":  # less the logarithm of the sum of powers
            total = self._maker(read[1])
            if total is not None and total.op_type == "Log":
                total = self._power_of_sum(total.input[0], count)
            elif total is None or total.op_type != "ReduceLogSumExp" or not self._is_over_classes(total, count):
                total = None
            if total is not None and self._is_same(total.input[0], read[0]):
                return LossInput(self._unshifted(read[0]), "log-probabilities")
        return None

    def _unshifted(self, name: str) -> str:
        """Return what the largest of each sample was taken from, which changes no softmax; otherwise the value."""
        node = self._maker(name)
        if node is None or node.op_type != "Sub":
            return name
        largest = self._maker(node.input[1])
        is_its = (
            largest is not None and largest.op_type == "ReduceMax" and self._is_same(largest.input[0], node.input[0])
        )
        return str(node.input[0]) if is_its else name

    def _power_of_sum(self, name: str, count: int) -> Any:
        """Return the Exp whose results a value is the sum of, over the classes; None if it is no such thing."""
        total = self._maker(name)
        if total is None or total.op_type != "ReduceSum" or not self._is_over_classes(total, count):
            return None
        powers = self._maker(total.input[0])
        return powers if powers is not None and powers.op_type == "Exp" else None

    def _is_over_classes(self, node: Any, count: int) -> bool:
        """Return whether a reduction is over the classes alone."""
        axes = attributes(node).get("axes")
        if axes is None and len(node.input) > 1:
            axes = np.ravel(self._constants.get(node.input[1], ())).tolist()
        return axes is not None and len(axes) == 1 and self._over_classes(node.input[0], int(axes[0]), count)

    def _over_classes(self, name: str, axis: int, count: int) -> bool:
        shape = self._shape_of(name)
        return shape is not None and _count(shape) == count and axis % len(shape) > 0 and bool(shape[axis] == count)

    def _is_same(self, one: str, other: str) -> bool:
        """Return whether two values hold the same, but for their shapes."""
        return one == other or (self._maker(one) is not None and self._maker(one) is self._maker(other))


def _count(shape: Shape) -> int | None:
    """Return the number of elements of a sample; None where it is open, or there is no size for samples."""
    sizes = shape[1:]
    if not shape or not all(isinstance(size, int) for size in sizes):
        return None
    return math.prod(int(size) for size in sizes)

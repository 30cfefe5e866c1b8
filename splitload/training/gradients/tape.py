"""Gradients of an ONNX graph, as further nodes of it: one rule for each operator, applied from the loss backwards.

A rule gets what the loss changes by for each output of a node, and adds nodes that say the same of its inputs. Rules
use operators of the ONNX standard only, so that onnxruntime trains where torch is not installed. Sizes are known when a
graph is made, but for the first dimension of values, which counts samples and may have a name.

Sources: the rules are the derivatives of the formulas in the ONNX operator reference. Convolution: the gradient of the
input is the transposed convolution, that of the kernel a convolution in which samples and channels change places
(Dumoulin and Visin, "A guide to convolution arithmetic for deep learning", 2016).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.graphs.proto import attributes

Shape = tuple[int | str, ...]
Rule = Callable[["Gradients", Any, str], "list[str | None]"]
RULES: dict[str, Rule] = {}


def differentiable() -> list[str]:
    """Return the operators that there is a rule for, in alphabetical order."""
    return sorted(RULES)


class Gradients:
    """Adds to a graph what its loss changes by for each weight.

    Args:
        nodes: The nodes of the graph in topological order; those of the gradients are appended.
        shapes: Shapes of all its values; sizes are numbers but for the first, which may have a name.
        constants: Values that rules must know: axes, new shapes, limits, by name.
        dtype: Of everything that is differentiated, float32 or float64.

    Attributes:
        nodes: As given, with the gradients after them.
        initializers: What the added nodes read, by name.
        dtype: As given, as numpy has it.
    """

    def __init__(
        self,
        nodes: Sequence[Any],
        shapes: Mapping[str, Shape],
        constants: Mapping[str, np.ndarray[Any, Any]],
        dtype: str = "float32",
    ) -> None:
        self.nodes = list(nodes)
        self.initializers: dict[str, np.ndarray[Any, Any]] = {}
        self._forward = tuple(nodes)
        self._shapes = dict(shapes)
        self._constants = constants
        self.dtype = np.dtype(dtype)
        self._count = 0
        self._needed: set[str] = set()

    def of(self, weights: Sequence[str], output: str, output_gradient: str) -> dict[str, str]:
        """Return the name of the gradient of each weight, by its name; the nodes that compute them are added.

        Args:
            weights: Names of the values to differentiate by.
            output: The value whose gradient is known.
            output_gradient: Its name.

        Raises:
            ModelError: If the output depends on a weight through an operator without a rule, or not at all.
        """
        self._needed = set(weights)
        for node in self._forward:
            if self._needed.intersection(node.input):
                self._needed.update(name for name in node.output if name)
        parts: dict[str, list[str]] = {output: [output_gradient]}
        for node in reversed(self._forward):
            arriving = [self._sum(parts.pop(name)) if name in parts else None for name in node.output]
            if not self._needed.intersection(node.input) or not any(arriving):
                continue
            for name, part in zip(node.input, self._through(node, arriving), strict=False):
                if part is not None and name in self._needed:
                    parts.setdefault(name, []).append(part)
        missing = [name for name in weights if name not in parts]
        if missing:
            raise ModelError(f"the output does not depend on the weight '{missing[0]}': it cannot be trained")
        return {name: self._sum(parts[name]) for name in weights}

    def _through(self, node: Any, arriving: Sequence[str | None]) -> list[str | None]:
        """Return the gradients of a node's inputs, None where there is none."""
        where = f"'{node.name or node.output[0]}'"
        if node.op_type == "Split":
            return [self._split(node, arriving)]
        rule = RULES.get(node.op_type)
        if rule is None or node.domain not in ("", "ai.onnx"):
            raise ModelError(
                f"the operator {node.op_type} (node {where}) has no gradient here; choose fewer trainable layers with "
                "--trainable"
            )
        if any(arriving[1:]):
            raise ModelError(f"the operator {node.op_type} (node {where}) is trained through its first output only")
        if arriving[0] is None:
            return []
        try:
            return rule(self, node, arriving[0])
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if isinstance(error, ModelError):
                raise
            raise ModelError(
                f"the operator {node.op_type} (node {where}) has no gradient here as it stands: {error}"
            ) from error

    def _split(self, node: Any, arriving: Sequence[str | None]) -> str:
        parts = [
            part if part is not None else self.zeros(name) for name, part in zip(node.output, arriving, strict=True)
        ]
        return self.op("Concat", *parts, axis=attributes(node).get("axis", 0))

    def _sum(self, parts: Sequence[str]) -> str:
        return parts[0] if len(parts) == 1 else self.op("Sum", *parts)

    def needs(self, name: str) -> bool:
        """Return whether a value depends on a weight."""
        return name in self._needed

    def op(self, kind: str, *inputs: str, **settings: Any) -> str:
        """Add a node with one output, and return its name."""
        from onnx import helper

        self._count += 1
        name = f"splitload/gradient/{kind}_{self._count}"
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **settings))
        return name

    def indices_of_largest(self, node: Any) -> str:
        """Add a MaxPool like a given one, and return the name of its second output: where the largest stood."""
        from onnx import helper

        self._count += 1
        name = f"splitload/gradient/Indices_{self._count}"
        kept = {key: value for key, value in attributes(node).items() if key != "storage_order"}
        self.nodes.append(helper.make_node("MaxPool", [node.input[0]], [f"{name}/largest", name], name=name, **kept))
        return name

    def constant(self, value: np.ndarray[Any, Any]) -> str:
        """Add a constant, and return its name."""
        self._count += 1
        name = f"splitload/gradient/constant_{self._count}"
        self.initializers[name] = value
        return name

    def number(self, value: float) -> str:
        """Add a number of the type that is differentiated, and return its name."""
        return self.constant(np.array(value, dtype=self.dtype))

    def sizes(self, *values: int) -> str:
        """Add a list of whole numbers, and return its name."""
        return self.constant(np.array(values, dtype=np.int64))

    def zeros(self, name: str) -> str:
        """Add zeros of the shape of a value."""
        return self.op("Expand", self.number(0.0), self.op("Shape", name))

    def shape(self, name: str) -> Shape:
        """Return the shape of a value of the graph.

        Raises:
            ModelError: If it is not known.
        """
        try:
            return self._shapes[name]
        except KeyError:
            raise ModelError(f"the shape of '{name}' is not known, so that it cannot be trained through") from None

    def static(self, name: str, *, first: int = 1) -> tuple[int, ...]:
        """Return the sizes of a value from dimension `first` on.

        Raises:
            ModelError: If one of them is open.
        """
        rest = self.shape(name)[first:]
        if not all(isinstance(size, int) for size in rest):
            raise ModelError(f"'{name}' has open sizes {self.shape(name)}: only the number of samples may be open")
        return tuple(int(size) for size in rest)

    def known(self, name: str) -> np.ndarray[Any, Any]:
        """Return the value of a constant input.

        Raises:
            ModelError: If it is computed from the model's inputs.
        """
        if name not in self._constants:
            raise ModelError(f"'{name}' is computed while the model runs, so that it cannot be trained through")
        return self._constants[name]

    def like(self, gradient: str, name: str, out: str) -> str:
        """Sum the gradient of a broadcast value over what it was repeated for.

        Args:
            gradient: Of the shape of `out`.
            name: The value that was broadcast.
            out: What it was broadcast to.
        """
        shape, wide = self.shape(name), self.shape(out)
        extra = len(wide) - len(shape)
        axes = [*range(extra)]
        axes += [extra + axis for axis, size in enumerate(shape) if size == 1 and wide[extra + axis] != 1]
        if not axes:
            return gradient
        summed = self.op("ReduceSum", gradient, self.sizes(*axes), keepdims=1)
        return self.op("Squeeze", summed, self.sizes(*range(extra))) if extra else summed

    def transposed(self, name: str, rank: int) -> str:
        """Exchange the last two dimensions."""
        order = [*range(rank - 2), rank - 1, rank - 2]
        return self.op("Transpose", name, perm=order)

    def reshaped(self, name: str, *sizes: int) -> str:
        """Give a value other sizes; -1 for one that follows from the others."""
        return self.op("Reshape", name, self.sizes(*sizes))

    def as_was(self, gradient: str, name: str) -> str:
        """Give a gradient the shape of a value, in which its elements stand in the same order."""
        return self.op("Reshape", gradient, self.op("Shape", name), allowzero=1)


def rule(*kinds: str) -> Callable[[Rule], Rule]:
    """Register the rule of some operators."""

    def register(made: Rule) -> Rule:
        RULES.update(dict.fromkeys(kinds, made))
        return made

    return register

"""Along which axis each tensor of a graph can be divided into rows, and which operators then compute row by row.

Axes are found from the model's inputs on: a rule of each operator tells where rows of its inputs come out
(row_rules.py). What comes out of an operator that needs everything begins anew, along the axis by which the most work
of the operators behind it can be done row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitload.graphs.proto import attributes, bodies
from splitload.graphs.row_rules import rows_of
from splitload.graphs.row_windows import Operation, Rows, Shape
from splitload.graphs.tidy import DOMAIN as BLOCKED

_SMALL = 256  # elements of a constant whose value a rule may ask for


@dataclass(frozen=True)
class RowNode:
    """A node and how its rows depend on those that it reads.

    Attributes:
        proto: The onnx.NodeProto.
        operation: The same for the rules.
        rows: Its dependence; None where it needs everything.
        is_local: Whether no input that has rows is needed whole.
    """

    proto: Any
    operation: Operation
    rows: Rows | None
    is_local: bool


@dataclass(frozen=True)
class RowGraph:
    """A graph of fixed sizes as operators on rows.

    Attributes:
        nodes: In topological order.
        axes: The split axis of each tensor that has one, by name.
        shapes: Of all tensors, weights included.
        blocked: Names of the tensors in blocks of channels.
        values: Names of the tensors that are given to it or made in it: all but weights.
    """

    nodes: tuple[RowNode, ...]
    axes: Mapping[str, int]
    shapes: Mapping[str, Shape]
    blocked: frozenset[str]
    values: frozenset[str]

    @classmethod
    def of(
        cls,
        nodes: Sequence[Any],
        inputs: Sequence[str],
        shapes: Mapping[str, Shape],
        constants: Mapping[str, np.ndarray[Any, Any]],
        opsets: Mapping[str, int],
        work: Sequence[int] | None = None,
    ) -> RowGraph:
        """Find axes and dependences.

        Args:
            nodes: Of type onnx.NodeProto, in topological order; of what they read that is neither made by one nor an
                input everything is a weight.
            inputs: Names of the model's inputs.
            shapes: The size of every tensor and weight.
            constants: Values of weights that are small, see `small_constants`.
            opsets: Version of each domain.
            work: What each node computes, in any unit; by default what it gives, in elements.
        """
        operations = [_operation(node, shapes, constants, opsets) for node in nodes]
        if work is None:
            work = [sum(int(np.prod(shapes.get(name, ()))) for name in node.output) for node in nodes]
        blocked = frozenset(_blocked(nodes))
        search = _Search(nodes, operations, shapes, work, blocked)
        for name in inputs:
            search.begin(name, 0)
        for at in range(len(nodes)):
            search.pass_by(at)
        found = tuple(
            RowNode(node, operation, rows, _is_local(node, rows, search.axes))
            for node, operation, rows in zip(nodes, operations, search.rows, strict=True)
        )
        values = frozenset(name for node in nodes for name in node.output if name).union(inputs)
        return cls(found, search.axes, shapes, blocked, values)

    def size(self, name: str) -> int:
        """Return how many rows a tensor that has a split axis has."""
        return self.shapes[name][self.axes[name]]


def small_constants(graph: Any) -> dict[str, np.ndarray[Any, Any]]:
    """Return the values of those weights of an onnx.GraphProto that are small and stored in the graph's own file."""
    from onnx import numpy_helper

    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_location != tensor.EXTERNAL and int(np.prod(tensor.dims)) <= _SMALL
    }


def _operation(
    node: Any,
    shapes: Mapping[str, Shape],
    constants: Mapping[str, np.ndarray[Any, Any]],
    opsets: Mapping[str, int],
) -> Operation:
    domain = "" if node.domain == "ai.onnx" else node.domain
    # what bodies need is not followed, and of tensors of unknown size nothing is known
    is_known = not any(True for _ in bodies(node)) and all(name in shapes for name in node.input if name)
    return Operation(
        node.op_type if is_known else "",
        domain,
        opsets.get(domain, 1),
        attributes(node),
        tuple(shapes.get(name) if name else None for name in node.input),
        tuple(shapes.get(name) if name else None for name in node.output),
        {at: constants[name] for at, name in enumerate(node.input) if name in constants},
    )


def _is_local(node: Any, rows: Rows | None, axes: Mapping[str, int]) -> bool:
    return rows is not None and all(at in rows.needs for at, name in enumerate(node.input) if name in axes)


def _blocked(nodes: Sequence[Any]) -> Iterator[str]:
    """Yield the names of tensors in blocks: what operators on blocks give, and what others make of it."""
    found: set[str] = set()
    for node in nodes:
        if node.op_type != "ReorderOutput" and (node.domain == BLOCKED or not found.isdisjoint(node.input)):
            found.update(node.output)
            yield from node.output


class _Search:
    """Follows rows through a graph.

    Args:
        nodes: Of it.
        operations: The same for the rules.
        shapes: Of all tensors.
        work: Of each node.
        blocked: Names of the tensors in blocks of channels, which cannot be divided between channels.
    """

    def __init__(
        self,
        nodes: Sequence[Any],
        operations: Sequence[Operation],
        shapes: Mapping[str, Shape],
        work: Sequence[int],
        blocked: frozenset[str],
    ) -> None:
        self._blocked = blocked
        self._nodes, self._operations, self._shapes, self._work = nodes, operations, shapes, work
        self.axes: dict[str, int] = {}
        self.rows: list[Rows | None] = [None] * len(nodes)

    def begin(self, name: str, position: int) -> None:
        """Choose the axis of a tensor that has none, which nodes from a position on read; of equals the first one."""
        shape = self._shapes.get(name, ())
        best, most = None, 0
        unlike = 1 if name in self._blocked else None
        for axis in [each for each, size in enumerate(shape) if size > 1 and each != unlike]:
            done = self._followed({name: axis}, position)
            if done > most:
                best, most = axis, done
        if best is not None:
            self.axes[name] = best

    def pass_by(self, at: int) -> None:
        """Follow rows through a node, and begin anew behind one that needs everything."""
        node = self._nodes[at]
        self.rows[at] = rows = self._rows(at, self.axes)
        if rows is not None:
            self.axes.update(self._given(at, rows))
            return
        for name in node.output:
            if name:
                self.begin(name, at + 1)

    def _rows(self, at: int, axes: Mapping[str, int]) -> Rows | None:
        node = self._nodes[at]
        return rows_of(
            self._operations[at], {place: axes[name] for place, name in enumerate(node.input) if name in axes}
        )

    def _given(self, at: int, rows: Rows) -> dict[str, int]:
        """Return the axes of the outputs of a node."""
        found = {}
        for name in self._nodes[at].output:
            shape = self._shapes.get(name, ()) if name else ()
            if rows.axis < len(shape) and shape[rows.axis] > 1:
                found[name] = rows.axis
        return found

    def _followed(self, begun: Mapping[str, int], position: int) -> int:
        """Return the work that is done by rows of these tensors, until an operator needs them whole."""
        axes, done = dict(begun), 0
        for at in range(position, len(self._nodes)):
            if axes.keys().isdisjoint(self._nodes[at].input):
                continue
            rows = self._rows(at, {**self.axes, **axes})
            if rows is not None and _is_local(self._nodes[at], rows, axes):
                done += self._work[at]
            if rows is not None:
                axes.update(self._given(at, rows))
        return done

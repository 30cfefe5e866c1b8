"""Leaves out what a graph does twice: joins, reshapes of reshapes, equal changes of layout, ways out and back.

In a DenseNet each layer joins what all layers before it gave: DenseNet-201 has 98 Concat nodes with 1,900 inputs.
Those that a layer joins and the layer before it has joined already are read from there. Then the graph is shorter to
load, and a cut is crossed by two tensors, not by 48.

Products that are stored as convolutions over rows (layout.py) bring their rows into blocks and out again, one by one.
Where nothing between two of them looks at single columns the values stay in blocks: less memory is written, and in the
first run fewer pages are touched for the first time. ConvNeXt-T has 36 products, and 18 such pairs.

A reshape is left out only where it cannot fail: a model must refuse the inputs that it refused before.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitload.graphs.proto import attributes, captured, needed_nodes, node_inputs

DOMAIN = "com.microsoft.nchwc"  # of operators that change the layout, or compute in blocks
ROWS = (1, -1, 1)  # how the shape starts that a matrix is given: one image, a pixel for each row
_RESHAPES = {"Reshape", "Squeeze", "Unsqueeze"}
_ELEMENTWISE = {
    "Celu", "Elu", "Erf", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "QuickGelu", "Relu",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh",
}  # fmt: skip


def join_concats(graph: Any) -> int:
    """Let each Concat of an onnx.GraphProto in topological order begin with the longest join of its first inputs.

    Returns:
        How many were changed.
    """
    joined: dict[tuple[int, tuple[str, ...]], str] = {}
    changed = 0
    for node in graph.node:
        if node.op_type != "Concat" or node.domain not in ("", "ai.onnx"):
            continue
        axis, names = attributes(node)["axis"], tuple(node.input)
        for length in range(len(names) - 1, 1, -1):
            if whole := joined.get((axis, names[:length])):
                node.input[:] = [whole, *names[length:]]
                changed += 1
                break
        joined.setdefault((axis, names), node.output[0])
    return changed


def tidy(graph: Any, counts: Mapping[str, int]) -> None:
    """Change an onnx.GraphProto in place; it computes the same, and refuses the same.

    Args:
        graph: A graph in topological order, with rows of matrices as pixels of shape (1, -1, 1, columns).
        counts: How many elements those values have whose shape is declared in full.
    """
    known = _Known(_constant_shapes(graph), counts)
    _join_reshapes(graph, known)
    _share_repeats(graph, known)
    _drop_unused(graph)  # what nobody reads is no other use
    _stay_in_blocks(graph, known)
    _drop_unused(graph)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is known of a graph: its constant shapes, and counts of elements."""

    shapes: Mapping[str, tuple[int, ...]]
    counts: Mapping[str, int]

    def reshapes(self, node: Any) -> bool:
        return node is not None and node.op_type in _RESHAPES and not node.domain

    def changes(self, node: Any, kind: str) -> bool:
        """Return whether the node is a ReorderInput or ReorderOutput with channels last."""
        return (node.domain, node.op_type) == (DOMAIN, kind) and attributes(node).get("channels_last") == 1

    def takes_rows(self, node: Any) -> bool:
        """Return whether the node is a convolution that computes each pixel from the same pixel alone."""
        values = attributes(node)
        return (
            (node.domain, node.op_type) == (DOMAIN, "Conv")
            and values.get("kernel_shape") == [1, 1]
            and values.get("strides", [1, 1]) == [1, 1]
            and values.get("pads", [0, 0, 0, 0]) == [0, 0, 0, 0]
            and values.get("auto_pad", b"NOTSET") == b"NOTSET"
            and len(node.input) <= 3  # a fourth is added to the result
        )

    def shape(self, node: Any) -> tuple[int, ...]:
        """Return the constant shape a Reshape makes, or () if it is another node or keeps sizes of its input."""
        shape = self.shapes.get(node.input[1], ()) if node.op_type == "Reshape" and len(node.input) > 1 else ()
        return () if 0 in shape else shape

    def cannot_fail(self, node: Any, columns: int) -> bool:
        """Return whether a reshape takes all that has a multiple of `columns` elements."""
        if node.input[0] in self.counts or node.op_type == "Unsqueeze":
            return True
        shape = self.shape(node)
        return -1 in shape and columns % math.prod(size for size in shape if size != -1) == 0


def _constant_shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the content of each initializer that can be a shape or a list of axes."""
    from onnx import numpy_helper

    return {
        tensor.name: tuple(numpy_helper.to_array(tensor).tolist())
        for tensor in graph.initializer
        if tensor.data_type == 7 and len(tensor.dims) == 1 and tensor.data_location != 1  # int64, in the graph file
    }


def _join_reshapes(graph: Any, known: _Known) -> None:
    """Let a Reshape to a constant shape start from what the reshapes before it started from."""
    makers = {node.output[0]: node for node in graph.node if known.reshapes(node)}
    for node in makers.values():
        if shape := known.shape(node):
            columns = math.prod(size for size in shape if size != -1)
            while (maker := makers.get(node.input[0])) is not None and known.cannot_fail(maker, columns):
                node.input[0] = maker.input[0]


def _share_repeats(graph: Any, known: _Known) -> None:
    """Compute once what several nodes reshape or bring into blocks alike."""
    kept = _kept(graph)
    first: dict[Any, str] = {}
    instead: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        if known.reshapes(node) or (node.domain, node.op_type) == (DOMAIN, "ReorderInput"):
            settings = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
            key = (node.op_type, node.input[0], *(known.shapes.get(name, name) for name in node.input[1:]), settings)
            same = first.setdefault(key, node.output[0])
            if same != node.output[0] and node.output[0] not in kept:
                instead[node.output[0]] = same


def _kept(graph: Any) -> set[str]:
    """Return the names that must stay: those of outputs, and those that bodies use."""
    return {value.name for value in graph.output}.union(*(captured(node) for node in graph.node))


def _stay_in_blocks(graph: Any, known: _Known) -> None:
    """Leave values in blocks that are brought out of them, changed one by one at most, and brought in again."""
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node_inputs(node))
    uses.update(value.name for value in graph.output)
    kept = _kept(graph)
    in_rows: set[str] = set()  # values in blocks, of which each pixel is a row of a matrix
    instead: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        if known.takes_rows(node) and node.input[0] in in_rows:
            in_rows.add(node.output[0])
        maker = makers.get(node.input[0]) if node.input else None
        if not (known.changes(node, "ReorderInput") and known.reshapes(maker) and known.shape(maker)[:3] == ROWS):
            continue
        in_rows.add(node.output[0])
        columns = known.shape(maker)[-1]
        between, way_out = _way_back(node.input[0], columns, makers, uses, known)
        if (
            way_out is None
            or node.output[0] in kept
            or not known.changes(way_out, "ReorderOutput")
            or way_out.input[0] not in in_rows
            or attributes(way_out).get("channels") != columns
        ):
            continue
        value = way_out.input[0]
        for maker in between:
            maker.input[0] = value
            value = maker.output[0] = f"{maker.output[0]}/blocked"
        in_rows.add(value)
        instead[node.output[0]] = value


def _way_back(
    name: str, columns: int, makers: Mapping[str, Any], uses: Mapping[str, int], known: _Known
) -> tuple[list[Any], Any]:
    """Return what changes single elements on the way to a value that has no other use, and the node before them."""
    between: list[Any] = []
    while uses[name] == 1 and (maker := makers.get(name)) is not None:
        if maker.op_type in _ELEMENTWISE and len(maker.input) == 1:
            between.insert(0, maker)
        elif not known.reshapes(maker):
            return between, maker
        elif not known.cannot_fail(maker, columns):
            break
        name = maker.input[0]
    return between, None


def _drop_unused(graph: Any) -> None:
    """Remove nodes that no output needs any more."""
    needed = needed_nodes(graph.node, [value.name for value in graph.output])
    del graph.node[:]
    graph.node.extend(needed)

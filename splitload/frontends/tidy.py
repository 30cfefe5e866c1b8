"""Leaves out what a graph in blocks does twice: reshapes of reshapes, equal changes of layout, ways out and back in.

Products that are stored as convolutions over rows (layout.py) bring their rows into blocks and out again, one by one.
Where nothing between two of them looks at single columns the values stay in blocks: less memory is written, and in the
first run fewer pages are touched for the first time. ConvNeXt-T has 36 products, and 18 such pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from splitload.frontends.proto import node_inputs

ROWS = (1, -1, 1)  # how the shape starts that a matrix is given: one image, a pixel for each row
_RESHAPES = {"Reshape", "Squeeze", "Unsqueeze"}
_ELEMENTWISE = {
    "Celu", "Elu", "Erf", "FastGelu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "QuickGelu", "Relu",
    "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh",
}  # fmt: skip


def tidy(graph: Any, domain: str) -> None:
    """Change an onnx.GraphProto in place; it computes the same.

    Args:
        graph: A graph in topological order, with rows of matrices as pixels of shape (1, -1, 1, columns).
        domain: That of the operators that change the layout.
    """
    shapes = _constant_shapes(graph)
    _join_reshapes(graph, shapes)
    _share_repeats(graph, shapes, domain)
    _drop_unused(graph)  # what nobody reads is no other use
    _stay_in_blocks(graph, shapes, domain)
    _drop_unused(graph)


def _constant_shapes(graph: Any) -> dict[str, tuple[int, ...]]:
    """Return the content of each initializer that can be a shape or a list of axes."""
    from onnx import numpy_helper

    return {
        tensor.name: tuple(numpy_helper.to_array(tensor).tolist())
        for tensor in graph.initializer
        if tensor.data_type == 7 and len(tensor.dims) == 1 and tensor.data_location != 1  # int64, in the graph file
    }


def _join_reshapes(graph: Any, shapes: dict[str, tuple[int, ...]]) -> None:
    """Let a Reshape to a constant shape start from what the reshapes before it started from."""
    makers = {node.output[0]: node for node in graph.node if node.op_type in _RESHAPES and not node.domain}
    for node in makers.values():
        if node.op_type == "Reshape" and 0 not in shapes.get(node.input[1], (0,)):  # 0 keeps a size of the input
            while node.input[0] in makers:
                node.input[0] = makers[node.input[0]].input[0]


def _share_repeats(graph: Any, shapes: dict[str, tuple[int, ...]], domain: str) -> None:
    """Compute once what several nodes reshape or bring into blocks alike."""
    kept = {value.name for value in graph.output}
    kept.update(name for node in graph.node for name in node_inputs(node) if name not in node.input)  # used in bodies
    first: dict[Any, str] = {}
    instead: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        if (node.domain, node.op_type) == (domain, "ReorderInput") or (node.op_type in _RESHAPES and not node.domain):
            attributes = tuple(sorted(attribute.SerializeToString() for attribute in node.attribute))
            key = (node.op_type, node.input[0], *(shapes.get(name, name) for name in node.input[1:]), attributes)
            same = first.setdefault(key, node.output[0])
            if same != node.output[0] and node.output[0] not in kept:
                instead[node.output[0]] = same


def _stay_in_blocks(graph: Any, shapes: dict[str, tuple[int, ...]], domain: str) -> None:
    """Leave values in blocks that are brought out of them, changed one by one at most, and brought in again."""
    makers = {name: node for node in graph.node for name in node.output}
    uses = Counter(name for node in graph.node for name in node_inputs(node))
    uses.update(value.name for value in graph.output)
    in_rows: set[str] = set()  # values in blocks, of which each pixel is a row of a matrix
    instead: dict[str, str] = {}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = instead.get(name, name)
        kind = node.op_type if node.domain == domain else ""
        if kind == "Conv" and node.input[0] in in_rows:
            in_rows.add(node.output[0])
        if kind != "ReorderInput" or not _are_rows(makers.get(node.input[0]), shapes):
            continue
        in_rows.add(node.output[0])
        between, way_out = _way_back(node.input[0], makers, uses)
        columns = shapes[makers[node.input[0]].input[1]][-1]
        if (
            way_out is None
            or (way_out.domain, way_out.op_type) != (domain, "ReorderOutput")
            or way_out.input[0] not in in_rows
            or not any(entry.name == "channels" and entry.i == columns for entry in way_out.attribute)
        ):
            continue
        value = way_out.input[0]
        for maker in between:
            maker.input[0] = value
            value = maker.output[0] = f"{maker.output[0]}/blocked"
        in_rows.add(value)
        instead[node.output[0]] = value


def _way_back(name: str, makers: Mapping[str, Any], uses: Mapping[str, int]) -> tuple[list[Any], Any]:
    """Return what changes single elements on the way to a value that has no other use, and the node before them."""
    between: list[Any] = []
    while uses[name] == 1 and (maker := makers.get(name)) is not None:
        if maker.op_type in _ELEMENTWISE and len(maker.input) == 1:
            between.insert(0, maker)
        elif maker.op_type not in _RESHAPES:
            return between, maker
        name = maker.input[0]
    return between, None


def _are_rows(maker: Any, shapes: dict[str, tuple[int, ...]]) -> bool:
    """Return whether a node turns the rows of a matrix into pixels."""
    return (
        maker is not None
        and maker.op_type == "Reshape"
        and not maker.domain
        and len(shapes.get(maker.input[1], ())) == 4
        and shapes[maker.input[1]][:3] == ROWS
    )


def _drop_unused(graph: Any) -> None:
    """Remove nodes that no output needs any more."""
    needed = {value.name for value in graph.output}
    alive = []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            alive.append(node)
            needed.update(node_inputs(node))
    del graph.node[:]
    graph.node.extend(alive[::-1])

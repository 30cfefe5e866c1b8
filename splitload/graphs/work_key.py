"""What graphs have alike that take as long to run."""

from __future__ import annotations

import hashlib
from typing import Any

_INT64 = 7


def work_key(graph: Any) -> bytes:
    """Return a hash of operators, their attributes and sizes of weights; names and values are no part of it.

    Whole numbers are: they say where slices begin, or what shapes come out. Sizes of inputs are no more than the graph
    says of them.

    Args:
        graph: An onnx.GraphProto.
    """
    numbers: dict[str, int] = {"": -1}  # of names, in the order in which they come
    weights = {each.name: _weight(each) for each in graph.initializer}
    told: list[Any] = []
    for each in graph.input:
        told.append((numbers.setdefault(each.name, len(numbers)), each.type.SerializeToString(deterministic=True)))
    for node in graph.node:
        names = [numbers.setdefault(name, len(numbers)) for name in (*node.input, *node.output)]
        read = [weights.get(name) for name in node.input]
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        told.append((node.op_type, node.domain, len(node.input), names, read, attributes))
    told.append([numbers[each.name] for each in graph.output])
    return hashlib.sha256(repr(told).encode()).digest()


def _weight(tensor: Any) -> tuple[Any, ...]:
    """Return the type and size of a weight, and the values of whole numbers."""
    values = (tuple(tensor.int64_data), tensor.raw_data) if tensor.data_type == _INT64 else ()
    return (tensor.data_type, tuple(tensor.dims), *values)

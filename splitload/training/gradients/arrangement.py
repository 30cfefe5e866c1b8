"""Rules for operators that arrange the elements of a value anew, pick some of them, or add some up."""

from __future__ import annotations

import math
from typing import Any

from splitload.base.errors import ModelError
from splitload.graphs.proto import attributes
from splitload.training.gradients.tape import Gradients, rule


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def _as_was(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.as_was(dy, node.input[0])]


@rule("Transpose")
def _transpose(g: Gradients, node: Any, dy: str) -> list[str | None]:
    rank = len(g.shape(node.input[0]))
    order = attributes(node).get("perm", [*reversed(range(rank))])
    return [g.op("Transpose", dy, perm=[order.index(axis) for axis in range(rank)])]


@rule("Expand")
def _expand(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.like(dy, node.input[0], node.output[0])]


@rule("Concat")
def _concat(g: Gradients, node: Any, dy: str) -> list[str | None]:
    axis = attributes(node)["axis"] % len(g.shape(node.output[0]))
    parts: list[str | None] = []
    start = 0
    for name in node.input:
        (size, *_) = g.static(name, first=axis)
        cut = (g.sizes(start), g.sizes(start + size), g.sizes(axis))
        parts.append(g.op("Slice", dy, *cut) if g.needs(name) else None)
        start += size
    return parts


@rule("Slice")
def _slice(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x, starts, ends, *others = node.input
    rank = len(g.shape(x))
    first, last = (g.known(name).tolist() for name in (starts, ends))
    axes = g.known(others[0]).tolist() if others and others[0] else [*range(len(first))]
    if len(others) > 1 and (g.known(others[1]) != 1).any():
        raise ModelError(f"Slice (node '{node.name or node.output[0]}') in steps has no gradient here")
    before, after = [0] * rank, [0] * rank
    for start, end, axis in zip(first, last, axes, strict=True):
        (size, *_) = g.static(x, first=axis % rank)
        before[axis % rank] = min(max(start + size if start < 0 else start, 0), size)
        after[axis % rank] = size - min(max(end + size if end < 0 else end, 0), size)
    return [g.op("Pad", dy, g.sizes(*before, *after), g.number(0.0))]


@rule("Gather")
def _gather(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x, indices = node.input
    rank = len(g.shape(x))
    axis = attributes(node).get("axis", 0) % rank
    flat = g.reshaped(indices, -1)
    if axis == 0:
        rows = g.reshaped(dy, -1, *g.static(x))
    else:
        rows = g.reshaped(dy, -1, *g.static(x)[: axis - 1], math.prod(g.static(indices, first=0)), *g.static(x)[axis:])
    places = g.reshaped(flat, *[1] * axis, -1, *[1] * (rank - axis - 1))
    spread = g.op("Expand", places, g.op("Shape", rows))
    return [g.op("ScatterElements", g.zeros(x), spread, rows, axis=axis, reduction="add"), None]


@rule("ReduceSum", "ReduceMean")
def _reduce(g: Gradients, node: Any, dy: str) -> list[str | None]:
    settings = attributes(node)
    x = node.input[0]
    rank = len(g.shape(x))
    if len(node.input) > 1 and node.input[1]:
        axes = g.known(node.input[1]).tolist()
    else:
        axes = settings.get("axes") or ([] if settings.get("noop_with_empty_axes") else [*range(rank)])
    axes = sorted(axis % rank for axis in axes)
    if axes and not settings.get("keepdims", 1):
        dy = g.op("Unsqueeze", dy, g.sizes(*axes))
    wide = g.op("Expand", dy, g.op("Shape", x))
    if node.op_type == "ReduceSum" or not axes:
        return [wide]
    if axes[0] == 0:
        raise ModelError(f"'{node.name or node.output[0]}' takes a mean over samples, which cannot be trained through")
    count = math.prod(g.static(x)[axis - 1] for axis in axes)
    return [g.op("Div", wide, g.number(float(count)))]


@rule("GlobalAveragePool")
def _global_average(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x = node.input[0]
    count = math.prod(g.static(x, first=2))
    return [g.op("Expand", g.op("Div", dy, g.number(float(count))), g.op("Shape", x))]

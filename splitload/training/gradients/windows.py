"""Rules for operators that slide a window over a value: convolution and pooling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.graphs.proto import attributes
from splitload.training.gradients.tape import Gradients, rule


@dataclass(frozen=True, slots=True)
class Window:
    """How a window slides, one entry for each dimension it slides in.

    Attributes:
        kernel: Its size.
        strides: Steps between its places.
        dilations: Steps between its elements.
        before: Padding before the value.
        after: And behind it.
        size: Of the value.
        places: Of the window.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: tuple[int, ...]
    after: tuple[int, ...]
    size: tuple[int, ...]
    places: tuple[int, ...]

    @property
    def settings(self) -> dict[str, list[int]]:
        """Strides, dilations and padding as attributes."""
        return {
            "strides": [*self.strides],
            "dilations": [*self.dilations],
            "pads": [*self.before, *self.after],
        }

    @property
    def is_point(self) -> bool:
        """Whether each place is one element, and each element one place."""
        return self.size == self.places and {*self.kernel, *self.strides} == {1} and not any(self.before)

    @property
    def unreached(self) -> tuple[int, ...]:
        """Elements at the end that no place of the window reaches, padding included."""
        reached = (
            (places - 1) * stride + (kernel - 1) * dilation + 1
            for places, stride, kernel, dilation in zip(
                self.places, self.strides, self.kernel, self.dilations, strict=True
            )
        )
        return tuple(
            before + size + after - each
            for before, size, after, each in zip(self.before, self.size, self.after, reached, strict=True)
        )


def window_of(g: Gradients, node: Any, kernel: tuple[int, ...]) -> Window:
    """Return how a node slides its window; automatic padding is worked out.

    Raises:
        ModelError: If the sizes are open, or the window slides beyond the padding.
    """
    settings = attributes(node)
    size, places = g.static(node.input[0], first=2), g.static(node.output[0], first=2)
    rank = len(size)
    strides = tuple(settings.get("strides", [1] * rank))
    dilations = tuple(settings.get("dilations", [1] * rank))
    automatic = settings.get("auto_pad", b"NOTSET").decode()
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        wide = [(kernel[axis] - 1) * dilations[axis] + 1 for axis in range(rank)]
        total = [max(0, (places[axis] - 1) * strides[axis] + wide[axis] - size[axis]) for axis in range(rank)]
        less = tuple(each // 2 for each in total)
        more = tuple(each - half for each, half in zip(total, less, strict=True))
        before, after = (less, more) if automatic == "SAME_UPPER" else (more, less)
    else:
        pads = settings.get("pads", [0] * (2 * rank))
        before, after = tuple(pads[:rank]), tuple(pads[rank:])
    window = Window(kernel, strides, dilations, before, after, size, places)
    if min(window.unreached, default=0) < 0:
        raise ModelError(f"{node.op_type} (node '{node.name or node.output[0]}') in ceil mode has no gradient here")
    return window


def _spread(g: Gradients, dy: str, kernel: str, window: Window, group: int) -> str:
    """Return what each element of the value gets from all places of the window: the transposed convolution."""
    # elements that no place reaches are padding first, which is cut off, and then elements whose gradient is 0
    inner = [max(0, short - after) for short, after in zip(window.unreached, window.after, strict=True)]
    after = [max(0, after - short) for short, after in zip(window.unreached, window.after, strict=True)]
    made = g.op(
        "ConvTranspose",
        dy,
        kernel,
        group=group,
        kernel_shape=[*window.kernel],
        strides=[*window.strides],
        dilations=[*window.dilations],
        pads=[*window.before, *after],
    )
    if any(inner):
        rank = len(inner)
        made = g.op("Pad", made, g.sizes(*[0] * (rank + 4), *inner), g.number(0.0))
    return made


def _of_kernel(g: Gradients, x: str, dy: str, window: Window, group: int, outputs: int, inputs: int) -> str:
    """Return the gradient of a kernel of shape `(outputs, inputs, …)`."""
    # samples take the place of channels, and channels that of samples: of each group, the groups side by side
    rank = len(window.kernel)
    swap = [2, 1, 0, *range(3, 3 + rank)]
    value = g.op("Transpose", g.reshaped(x, -1, group, inputs, *window.size), perm=swap)
    grouped = g.reshaped(dy, -1, group, outputs // group, *window.places)
    places = g.op("Transpose", grouped, perm=[1, 2, 0, *range(3, 3 + rank)])
    if group == 1 and window.is_point:  # as one matrix product, in a fraction of the time
        made = g.op("Gemm", g.reshaped(places, outputs, -1), g.reshaped(value, inputs, -1), transB=1)
        return g.reshaped(made, outputs, inputs, *window.kernel)
    made = g.op(
        "Conv",
        g.reshaped(value, inputs, -1, *window.size),
        g.reshaped(places, outputs, -1, *window.places),
        group=group,
        strides=[*window.dilations],
        dilations=[*window.strides],
        pads=[*window.before, *window.after],
    )
    if any(window.unreached):
        axes = range(2, 2 + rank)
        made = g.op("Slice", made, g.sizes(*[0] * rank), g.sizes(*window.kernel), g.sizes(*axes))
    return g.op("Transpose", made, perm=[1, 0, *range(2, 2 + rank)])


@rule("Conv")
def _conv(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x, kernel, *bias = node.input
    outputs, inputs, *window_size = g.static(kernel, first=0)
    window = window_of(g, node, tuple(window_size))
    group = attributes(node).get("group", 1)
    rank = len(window_size)
    parts: list[str | None] = [None, None]
    if g.needs(x):
        parts[0] = _spread(g, dy, kernel, window, group)
    if g.needs(kernel):
        parts[1] = _of_kernel(g, x, dy, window, group, outputs, inputs)
    if bias and g.needs(bias[0]):
        parts.append(g.op("ReduceSum", dy, g.sizes(0, *range(2, 2 + rank)), keepdims=0))
    return parts


@rule("AveragePool")
def _average_pool(g: Gradients, node: Any, dy: str) -> list[str | None]:
    settings = attributes(node)
    window = window_of(g, node, tuple(settings["kernel_shape"]))
    (channels, *_) = g.static(node.input[0])
    rank = len(window.kernel)
    if settings.get("count_include_pad", 0):
        counts = np.full(window.places, math.prod(window.kernel))
    else:
        counts = np.ones(window.places, dtype=np.int64)
        for axis in range(rank):
            starts = np.arange(window.places[axis]) * window.strides[axis] - window.before[axis]
            inside = [
                sum(
                    0 <= start + step * window.dilations[axis] < window.size[axis]
                    for step in range(window.kernel[axis])
                )
                for start in starts.tolist()
            ]
            counts = counts * np.array(inside).reshape([-1 if each == axis else 1 for each in range(rank)])
    share = g.op("Mul", dy, g.constant((1.0 / counts).astype(g.dtype)))
    ones = g.constant(np.ones((channels, 1, *window.kernel), dtype=g.dtype))
    return [_spread(g, share, ones, window, channels)]


@rule("MaxPool")
def _max_pool(g: Gradients, node: Any, dy: str) -> list[str | None]:
    """To where the largest element of each place stood; a second pooling tells that, as an index into the value."""
    x = node.input[0]
    if attributes(node).get("storage_order", 0):
        raise ModelError(f"MaxPool (node '{node.name or node.output[0]}') in column-major order has no gradient here")
    where = g.indices_of_largest(node)
    zeros = g.reshaped(g.zeros(x), -1)
    spread = g.op("ScatterElements", zeros, g.reshaped(where, -1), g.reshaped(dy, -1), axis=0, reduction="add")
    return [g.as_was(spread, x)]


@rule("GlobalMaxPool")
def _global_max(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x = node.input[0]
    (channels, *_) = g.static(x)
    flat = g.reshaped(x, -1, channels, math.prod(g.static(x, first=2)))
    where = g.op("ArgMax", flat, axis=2, keepdims=1)
    part = g.op("ScatterElements", g.zeros(flat), where, g.reshaped(dy, -1, channels, 1), axis=2)
    return [g.as_was(part, x)]


@rule("DepthToSpace")
def _depth_to_space(g: Gradients, node: Any, dy: str) -> list[str | None]:
    settings = attributes(node)
    size = settings["blocksize"]
    channels, height, width = g.static(node.input[0])
    parts = g.reshaped(dy, -1, channels // size**2, height, size, width, size)
    order = [0, 1, 3, 5, 2, 4] if settings.get("mode", b"DCR") == b"CRD" else [0, 3, 5, 1, 2, 4]
    return [g.reshaped(g.op("Transpose", parts, perm=order), -1, channels, height, width)]

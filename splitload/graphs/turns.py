"""Weights of convolutions in the order of onnxruntime's blocked layouts, and the steps that restore their own order.

A step is a Transpose that moves one axis, or keeps the last one: for those onnxruntime has kernels of their own, ten
times as fast as its loop over single elements: they take 0.1 to 0.5 ns an element. Axes of one element would hide the
kind from them, so there are none. Nor are there thousands of small matrices to be turned, as the kernel calls its
threads for each: the pixels of filters go to the front and back again, as one matrix.
Source: `IsTransposeMovingSingleAxis` in onnxruntime's `core/providers/cpu/tensor/transpose.cc`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]


class Turn(NamedTuple):
    """One step: elements are read with some sizes, and their axes exchanged.

    Attributes:
        sizes: What they are read with.
        axes: Of the Transpose.
    """

    sizes: Shape
    axes: tuple[int, ...]


def applied(array: Any, turns: Sequence[Turn]) -> Any:
    """Return an array after some turns, with the shape that the last one leaves it in."""
    for sizes, axes in turns:
        array = array.reshape(sizes).transpose(axes)
    return array


def back(turns: Sequence[Turn]) -> list[Turn]:
    """Return the turns that undo others."""
    return [
        Turn(tuple(turn.sizes[axis] for axis in turn.axes), tuple(map(int, np.argsort(turn.axes))))
        for turn in reversed(turns)
    ]


def orders(shape: Shape, block: int | None) -> Iterator[tuple[tuple[Turn, ...], tuple[Shape, ...]]]:
    """Yield in what ways a filter may have been stored: the turns that restore it, and the shapes it may have had.

    It lies in blocks of output channels, or of output and input channels. Of 1 x 1 those are the same; then it may have
    been a matrix, too, either way round.

    Args:
        shape: Of what is stored.
        block: How many channels a block holds, or None without a blocked layout.
    """
    if block is None or len(shape) != 4 or shape[0] % block:
        return
    outputs, inputs, height, width = shape
    pixels = height * width
    outwards = Turn((outputs // block, inputs * pixels, block), (0, 2, 1))
    is_matrix = pixels == 1 and inputs % block == 0
    yield (outwards,), (shape, (outputs, inputs)) if is_matrix else (shape,)
    if is_matrix:
        yield (Turn((outputs // block, inputs // block, block, block), (1, 2, 0, 3)),), ((inputs, outputs),)
    elif inputs % block == 0:
        pixels_first = Turn((outputs * inputs // block**2, pixels, block**2), (1, 0, 2))
        outputs_outwards = Turn((pixels * outputs // block, inputs, block), (0, 2, 1))
        pixels_last = Turn((pixels, outputs * inputs), (1, 0))
        yield (pixels_first, outputs_outwards, pixels_last), (shape,)

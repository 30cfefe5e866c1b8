"""Which rows of what an operator reads the rows of what it gives need: windows, and what tells them.

Rows are the indices along one axis of a tensor, its split axis. Two machines share an operator where each computes some
rows of its output from some rows of its inputs. The rules are in row_rules.py and row_image_rules.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """Which rows of an input the rows `[start, stop)` of the output need, where the image has no end.

    Those from `floor((start * step + first) / per)` to `floor(((stop - 1) * step + last) / per)`, both included, each
    end moved outwards to a multiple of `align`.

    Attributes:
        step: Rows of the input for `per` rows of the output.
        per: See `step`.
        first: Of output row 0 the first input row, times `per`; negative where rows of padding come first.
        last: Of output row 0 the last input row, likewise.
        align: What first and last are a multiple of, where rows can be computed in groups only.
    """

    step: int = 1
    per: int = 1
    first: int = 0
    last: int = 0
    align: int = 1

    def rows(self, start: int, stop: int) -> tuple[int, int]:
        """Return the half-open range of rows that `[start, stop)` needs; it may reach beyond both ends."""
        first = (start * self.step + self.first) // self.per
        last = ((stop - 1) * self.step + self.last) // self.per + 1
        return first // self.align * self.align, -(-last // self.align) * self.align


SAME = Window()


class Need(NamedTuple):
    """What rows of an output need of an input.

    Attributes:
        axis: Of the input, along which its rows lie.
        window: Which rows.
    """

    axis: int
    window: Window = SAME


class Rows(NamedTuple):
    """How an operator's outputs depend on its inputs, row by row.

    Attributes:
        axis: Along which the rows of each output lie.
        needs: What rows need of each input, by its position; inputs that are left out are needed whole.
    """

    axis: int
    needs: Mapping[int, Need]


@dataclass(frozen=True)
class Operation:
    """An operator with the sizes of what it reads and gives.

    Attributes:
        kind: Its name.
        domain: Of its name; "" is ONNX's own.
        opset: Version of the domain.
        attributes: As Python values, text as bytes.
        inputs: The shape of each input; None where an optional one is left out.
        outputs: The shape of each output that is used; None where one is not.
        constants: Values of inputs that are small and fixed, by position.
    """

    kind: str
    domain: str
    opset: int
    attributes: Mapping[str, Any]
    inputs: tuple[Shape | None, ...]
    outputs: tuple[Shape | None, ...]
    constants: Mapping[int, np.ndarray[Any, Any]] = field(default_factory=dict)

    def integers(self, name: str, position: int) -> list[int] | None:
        """Return a list of integers that is an attribute, or since a later version an input; None where neither is."""
        if name in self.attributes:
            return [int(each) for each in self.attributes[name]]
        if position in self.constants:
            return [int(each) for each in self.constants[position].reshape(-1)]
        return None

    def is_given(self, position: int) -> bool:
        """Return whether there is an input at a position."""
        return position < len(self.inputs) and self.inputs[position] is not None


Rule = Callable[[Operation, Mapping[int, int]], Rows | None]
"""Returns how rows depend, of an operation and the split axis of each input that has one, by position."""


def first_input(operation: Operation, axes: Mapping[int, int], is_local: bool) -> Rows | None:
    """Rows of the output need the same ones of the first input, and of no other."""
    return Rows(axes[0], {0: Need(axes[0])}) if is_local and set(axes) == {0} else None

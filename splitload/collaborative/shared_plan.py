"""How a device and a server share an inference: which rows each computes, and where they exchange them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from splitload.collaborative.levels import Levels
from splitload.graphs.row_pieces import Range


@dataclass(frozen=True, slots=True)
class SharedPlan:
    """Who computes which rows.

    Between two neighbouring levels where rows are exchanged lies a segment. Of the level at its end the device computes
    the first rows and the server the others; what lies within is computed by each as far as it needs it, some rows
    by both. The server computes its rows in strips, from the last one to the first: rows come to it strip by strip, and
    what the device sends comes last.

    Attributes:
        exchanges: Numbers of the levels where rows are exchanged, ascending: from 0 to that of the outputs.
        device_rows: How many rows of each the device has before anything is sent; of the inputs all.
        strips: In how many strips the server computes its rows of each but the first.
    """

    exchanges: tuple[int, ...]
    device_rows: tuple[int, ...]
    strips: tuple[int, ...]

    @classmethod
    def device_only(cls, levels: Levels) -> SharedPlan:
        """Return the plan in which the device computes everything."""
        last = levels.num_units
        return cls((0, last), (levels.levels[0].num_rows, levels.levels[last].num_rows), (1,))

    @classmethod
    def layer_cut(cls, levels: Levels, level: int, *, strips: int = 1) -> SharedPlan:
        """Return the plan in which the device computes everything up to a level, and the server the rest.

        Args:
            levels: Of the model.
            level: 0 for the plan in which the server computes everything.
            strips: In how many strips it computes.
        """
        last, rows = levels.num_units, [each.num_rows for each in levels.levels]
        if level == 0:
            return cls((0, last), (rows[0], 0), (strips,))
        return cls((0, level, last), (rows[0], rows[level], 0), (1, strips))


class Segment(NamedTuple):
    """What lies between two levels where rows are exchanged.

    Attributes:
        first: Number of the level at its begin.
        last: Of that at its end.
        device: The rows of `last` that the device computes.
        device_needs: The rows of each strand of `first` that it needs for them.
        strips: The rows of `last` that the server computes, strip by strip in its order.
        strips_need: The same for each of them.
    """

    first: int
    last: int
    device: Range
    device_needs: tuple[Range, ...]
    strips: tuple[Range, ...]
    strips_need: tuple[tuple[Range, ...], ...]


def segments(levels: Levels, plan: SharedPlan) -> Iterator[Segment]:
    """Yield the segments of a plan."""
    for (first, last), rows, strips in zip(pairwise(plan.exchanges), plan.device_rows[1:], plan.strips, strict=True):
        count = levels.levels[last].num_rows
        ranges = strips_of(Range(rows, count), strips)
        device = Range(0, rows)
        needs = tuple(_strands_need(levels, first, last, each) for each in ranges)
        yield Segment(first, last, device, _strands_need(levels, first, last, device), ranges, needs)


def strips_of(rows: Range, count: int) -> tuple[Range, ...]:
    """Return rows in so many strips of about one size, the last rows first; fewer where there are fewer rows."""
    count = min(count, rows.size)
    bounds = [rows.start + rows.size * each // count for each in range(count + 1)] if count else []
    return tuple(Range(*each) for each in pairwise(bounds))[::-1]


def _strands_need(levels: Levels, first: int, last: int, rows: Range) -> tuple[Range, ...]:
    """Return the rows of each strand of a level that rows of a later one need."""
    behind = needed(levels, first + 1, last, rows)
    return tuple(strand.needs(behind) for strand in levels.strands[first])


def needed(levels: Levels, first: int, last: int, rows: Range) -> Range:
    """Return the rows of a level that rows of a later one need, whatever tensor of it; none where there are none."""
    for level in range(last, first, -1):
        if rows.size <= 0:
            return Range(0, 0)
        rows = Range(levels.starts[level][rows.start], levels.stops[level][rows.stop])
    return rows

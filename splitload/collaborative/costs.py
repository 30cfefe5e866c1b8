"""What an inference on two machines costs: seconds of each unit by its rows, and what a link carries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from splitload.graphs.row_pieces import Range


@dataclass(frozen=True, slots=True)
class MachineCosts:
    """What one machine takes.

    Attributes:
        units_s: For each level but 0, of each count of rows from 0 on: seconds for so many rows of it, from the level
            before; entry 0 of level 0 stands for none.
        call_s: Seconds of a segment besides, whatever it computes.
        carried_s_per_byte: Seconds that sending or receiving a byte takes from computing.
        message_s: Seconds that sending or receiving a message takes besides.
    """

    units_s: tuple[tuple[float, ...], ...]
    call_s: float = 0.0
    carried_s_per_byte: float = 0.0
    message_s: float = 0.0

    def carries_s(self, size: Any) -> Any:
        """Return the seconds that sending or receiving a message takes from computing.

        Args:
            size: Its bytes; of several, an array.
        """
        return self.message_s + size * self.carried_s_per_byte

    def segment_s(self, computed: Sequence[tuple[int, Range]]) -> float:
        """Return the seconds of a segment.

        Args:
            computed: Level and rows of each of its units.
        """
        return self.call_s + sum(self.units_s[level][rows.size] for level, rows in computed)


@dataclass(frozen=True, slots=True)
class Link:
    """What lies between two machines, the same in both directions.

    Attributes:
        bytes_per_s: What it carries in a second.
        latency_s: From the last byte sent to the last one received.
    """

    bytes_per_s: float
    latency_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What two machines take.

    Attributes:
        device: The one that has the inputs and gets the outputs.
        server: The other.
    """

    device: MachineCosts
    server: MachineCosts


def by_rows(measured_s: Mapping[int, float], num_rows: int) -> tuple[float, ...]:
    """Return seconds for each count of rows, from those of some: straight lines between them, and on before the first.

    Args:
        measured_s: Of at least one count of rows above 0.
        num_rows: The largest count.
    """
    counts = sorted(measured_s)
    lines = list(pairwise(counts)) or [(0, counts[0])]
    found = [0.0]
    for rows in range(1, num_rows + 1):
        low, high = next((line for line in lines if rows <= line[1]), lines[-1])
        low_s, high_s = measured_s.get(low, 0.0), measured_s[high]
        seconds = low_s + (high_s - low_s) * (rows - low) / (high - low)
        found.append(max(seconds, found[-1] if rows < counts[0] else 0.0, 0.0))
    return tuple(found)

"""What segments of shared plans cost, each worked out once: searches ask for the same ones again and again."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from splitload.collaborative.costs import Costs, Link
from splitload.collaborative.levels import Levels
from splitload.collaborative.shared_plan import SharedPlan, strips_of
from splitload.graphs.row_pieces import Range

_KEPT = 1 << 17  # ranges and segments that are remembered


class Chain(NamedTuple):
    """What rows of a level need of each level before it, by the number of that: arrays of as many entries.

    Attributes:
        starts: The first row that is needed.
        stops: Behind the last one.
        device_s: Seconds to compute them from there on the device, its call apart.
        server_s: The same on the server.
    """

    starts: np.ndarray[tuple[int], np.dtype[np.int64]]
    stops: np.ndarray[tuple[int], np.dtype[np.int64]]
    device_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    server_s: np.ndarray[tuple[int], np.dtype[np.float64]]


class SegmentCosts:
    """What plans take of two machines.

    Args:
        levels: Of the model.
        costs: Of both machines.
    """

    def __init__(self, levels: Levels, costs: Costs) -> None:
        self.levels, self.costs = levels, costs
        self.rows = [level.num_rows for level in levels.levels]
        self.row_bytes = [level.row_bytes for level in levels.levels]
        self.chain = lru_cache(_KEPT)(self._chain)
        self._segment = lru_cache(_KEPT)(self._segment_of)

    def latency_s(self, plan: SharedPlan, link: Link) -> float:
        """Return the seconds that an inference by a plan takes: what `simulate` comes to, and sooner."""
        device, server = self.costs.device, self.costs.server
        device_s = server_s = up_s = down_s = 0.0  # until when each machine, and each direction, is taken
        own = self.rows[0]  # rows that the device has of the level; the server has the others
        for at in range(1, len(plan.exchanges)):
            first, last = plan.exchanges[at - 1], plan.exchanges[at]
            needs, computes_s, strips = self._segment(first, last, plan.device_rows[at], plan.strips[at - 1])
            row_bytes = self.row_bytes[first]
            lacked = (needs.stop - max(needs.start, own)) * row_bytes
            arrives_s = 0.0
            if lacked > 0:
                down_s = max(down_s, server_s) + lacked / link.bytes_per_s
                arrives_s = down_s + link.latency_s
                server_s += server.carries_s(lacked)
            sent = own
            for start, stop, seconds in strips:
                lacks = (min(stop, sent) - start) * row_bytes
                if lacks > 0:
                    sent = start
                    up_s = max(up_s, device_s) + lacks / link.bytes_per_s
                    device_s += device.carries_s(lacks)
                    server_s = max(server_s, up_s + link.latency_s) + server.carries_s(lacks)
                server_s += seconds
            if lacked > 0:
                device_s = max(device_s, arrives_s) + device.carries_s(lacked)
            device_s += computes_s
            own = plan.device_rows[at]
        outputs = (self.rows[-1] - own) * self.row_bytes[-1]
        if outputs > 0:
            arrives_s = max(down_s, server_s) + outputs / link.bytes_per_s + link.latency_s
            device_s = max(device_s, arrives_s) + device.carries_s(outputs)
        return device_s

    def _segment_of(
        self, first: int, last: int, own: int, strips: int
    ) -> tuple[Range, float, tuple[tuple[int, int, float], ...]]:
        """Return what the device needs for its rows and takes, and what the server does for each of its strips."""
        needs, computes_s = Range(0, 0), 0.0
        if own:
            chain = self.chain(last, 0, own)
            needs = Range(int(chain.starts[first]), int(chain.stops[first]))
            computes_s = float(chain.device_s[first]) + self.costs.device.call_s
        found = []
        for rows in strips_of(Range(own, self.rows[last]), strips):
            chain = self.chain(last, *rows)
            seconds = float(chain.server_s[first]) + self.costs.server.call_s
            found.append((int(chain.starts[first]), int(chain.stops[first]), seconds))
        return needs, computes_s, tuple(found)

    def _chain(self, last: int, start: int, stop: int) -> Chain:
        starts, stops = np.zeros(last, np.int64), np.zeros(last, np.int64)
        device_s, server_s = np.zeros(last), np.zeros(last)
        own_s = other_s = 0.0
        for level in range(last, 0, -1):
            own_s += self.costs.device.units_s[level][stop - start]
            other_s += self.costs.server.units_s[level][stop - start]
            start, stop = self.levels.starts[level][start], self.levels.stops[level][stop]
            starts[level - 1], stops[level - 1], device_s[level - 1], server_s[level - 1] = start, stop, own_s, other_s
        return Chain(starts, stops, device_s, server_s)

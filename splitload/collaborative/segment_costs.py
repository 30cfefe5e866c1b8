"""What segments of shared plans cost, each worked out once: searches ask for the same ones again and again."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from splitload.collaborative.costs import Costs, Link
from splitload.collaborative.levels import Levels
from splitload.collaborative.shared_plan import SharedPlan, needed, strips_of
from splitload.graphs.row_pieces import Range

_KEPT = 1 << 17  # ranges and segments that are remembered


class Chain(NamedTuple):
    """What rows of a level need of each level before it, by the number of that: arrays of as many entries.

    Attributes:
        starts: The first row that is needed, of any strand.
        stops: Behind the last one.
        strand_starts: The same of each strand, in as many rows as the most strands that a level has.
        strand_stops: Likewise.
        device_s: Seconds to compute them from there on the device, its call apart.
        server_s: The same on the server.
    """

    starts: np.ndarray[tuple[int], np.dtype[np.int64]]
    stops: np.ndarray[tuple[int], np.dtype[np.int64]]
    strand_starts: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    strand_stops: np.ndarray[tuple[int, int], np.dtype[np.int64]]
    device_s: np.ndarray[tuple[int], np.dtype[np.float64]]
    server_s: np.ndarray[tuple[int], np.dtype[np.float64]]


_Needs = tuple[tuple[int, int, int], ...]  # of each strand the first row, behind the last one, and bytes of a row


class SegmentCosts:
    """What plans take of two machines.

    Args:
        levels: Of the model.
        costs: Of both machines.
    """

    def __init__(self, levels: Levels, costs: Costs) -> None:
        self.levels, self.costs = levels, costs
        self.rows = [level.num_rows for level in levels.levels]
        self.row_bytes = np.zeros((max(map(len, levels.strands)), len(levels.levels)), np.int64)  # of each strand
        for level, strands in enumerate(levels.strands):
            self.row_bytes[: len(strands), level] = [strand.row_bytes for strand in strands]
        self.output_row_bytes = levels.levels[-1].row_bytes
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
            lacked = sum(max(stop - max(start, own), 0) * row_bytes for start, stop, row_bytes in needs)
            arrives_s = 0.0
            if lacked > 0:
                down_s = max(down_s, server_s) + lacked / link.bytes_per_s
                arrives_s = down_s + link.latency_s
                server_s += server.carries_s(lacked)
            sent = [own] * len(needs)
            for strip_needs, seconds in strips:
                lacks = 0
                for place, (start, stop, row_bytes) in enumerate(strip_needs):
                    if (count := min(stop, sent[place]) - start) > 0:
                        lacks += count * row_bytes
                        sent[place] = start
                if lacks:
                    up_s = max(up_s, device_s) + lacks / link.bytes_per_s
                    device_s += device.carries_s(lacks)
                    server_s = max(server_s, up_s + link.latency_s) + server.carries_s(lacks)
                server_s += seconds
            if lacked > 0:
                device_s = max(device_s, arrives_s) + device.carries_s(lacked)
            device_s += computes_s
            own = plan.device_rows[at]
        outputs = (self.rows[-1] - own) * self.output_row_bytes
        if outputs > 0:
            arrives_s = max(down_s, server_s) + outputs / link.bytes_per_s + link.latency_s
            device_s = max(device_s, arrives_s) + device.carries_s(outputs)
        return device_s

    def _segment_of(
        self, first: int, last: int, own: int, strips: int
    ) -> tuple[_Needs, float, tuple[tuple[_Needs, float], ...]]:
        """Return what the device needs for its rows and takes, and what the server does for each of its strips."""
        needs: _Needs = ((0, 0, 0),) * len(self.levels.strands[first])
        computes_s = 0.0
        if own:
            chain = self.chain(last, 0, own)
            needs = self._needs(chain, first)
            computes_s = float(chain.device_s[first]) + self.costs.device.call_s
        found = []
        for rows in strips_of(Range(own, self.rows[last]), strips):
            chain = self.chain(last, *rows)
            seconds = float(chain.server_s[first]) + self.costs.server.call_s
            found.append((self._needs(chain, first), seconds))
        return needs, computes_s, tuple(found)

    def _needs(self, chain: Chain, first: int) -> _Needs:
        strands = self.levels.strands[first]
        edges = zip(chain.strand_starts[:, first].tolist(), chain.strand_stops[:, first].tolist(), strict=True)
        return tuple((*each, strand.row_bytes) for each, strand in zip(edges, strands, strict=False))

    def _chain(self, last: int, start: int, stop: int) -> Chain:
        starts, stops = np.zeros(last, np.int64), np.zeros(last, np.int64)
        strand_starts, strand_stops = (np.zeros((len(self.row_bytes), last), np.int64) for _ in range(2))
        device_s, server_s = np.zeros(last), np.zeros(last)
        own_s = other_s = 0.0
        for level in range(last, 0, -1):
            own_s += self.costs.device.units_s[level][stop - start]
            other_s += self.costs.server.units_s[level][stop - start]
            for place, strand in enumerate(self.levels.strands[level - 1]):
                strand_starts[place, level - 1], strand_stops[place, level - 1] = strand.needs(Range(start, stop))
            start, stop = needed(self.levels, level - 1, level, Range(start, stop))
            starts[level - 1], stops[level - 1], device_s[level - 1], server_s[level - 1] = start, stop, own_s, other_s
        return Chain(starts, stops, strand_starts, strand_stops, device_s, server_s)

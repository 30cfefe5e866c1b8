"""The links of a simulated crowd: each device has one, the client has one, and each carries one thing at a time."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

Gaps = Sequence[tuple[float, float]]


@dataclass
class Link:
    """A link that carries one thing at a time in each direction.

    Attributes:
        bytes_per_s: What it carries.
        gaps: Half-open spans of seconds in which it carries nothing.
        in_s: When its incoming direction is free.
        out_s: When its outgoing direction is free.
        busy_s: Seconds that either direction was in use.
    """

    bytes_per_s: float
    gaps: Gaps = ()
    in_s: float = 0.0
    out_s: float = 0.0
    busy_s: float = 0.0


def through(begin_s: float, seconds: float, gaps: Gaps) -> float:
    """Return when something that takes `seconds` ends if it stands still in the gaps."""
    end_s = begin_s
    for gap_begin_s, gap_end_s in sorted(gaps):
        if gap_end_s <= end_s:
            continue
        if gap_begin_s > end_s + seconds:
            break
        if gap_begin_s > end_s:
            seconds -= gap_begin_s - end_s
        end_s = gap_end_s
    return end_s + seconds


def transfer(source: Link, target: Link, num_bytes: int, now_s: float) -> float:
    """Return when bytes have passed both links; the slower one sets the pace, and each is held for its own part."""
    begin_s = max(now_s, source.out_s, target.in_s)
    out_s, in_s = num_bytes / source.bytes_per_s, num_bytes / target.bytes_per_s
    source.out_s = through(begin_s, out_s, source.gaps)
    target.in_s = through(begin_s, in_s, target.gaps)
    source.busy_s += out_s
    target.busy_s += in_s
    return max(through(begin_s, max(out_s, in_s), source.gaps), through(begin_s, max(out_s, in_s), target.gaps))


class StageSources:
    """Who has each stage and can send it: the client, and with `peers` every device that has it on disk.

    Of those, that sends whose link is free first, so that the copies double with each round.
    """

    def __init__(self, num_stages: int, client: Link, peers: bool) -> None:
        """Begin with the client alone."""
        self._client = client
        self._peers = peers
        self._heaps: list[list[tuple[float, str]]] = [[] for _ in range(num_stages)]

    def add(self, stage: int, name: str, now_s: float) -> None:
        """Let a device send a stage from now on."""
        if self._peers:
            heapq.heappush(self._heaps[stage], (now_s, name))

    def fetch(
        self, stage: int, num_bytes: int, links: dict[str, Link], alive: dict[str, float], name: str, now_s: float
    ) -> tuple[float, bool]:
        """Return when a device has received a stage, and whether the client sent it.

        Args:
            stage: The stage.
            num_bytes: Its bytes.
            links: The link of each device.
            alive: Until when each device lives.
            name: The device that receives.
            now_s: The time.
        """
        heap = self._heaps[stage]
        while heap and alive[heap[0][1]] <= now_s:
            heapq.heappop(heap)
        if not heap or self._client.out_s <= max(heap[0][0], now_s):
            return transfer(self._client, links[name], num_bytes, now_s), True
        _, sender = heapq.heappop(heap)
        end_s = transfer(links[sender], links[name], num_bytes, now_s)
        heapq.heappush(heap, (links[sender].out_s, sender))
        return end_s, False

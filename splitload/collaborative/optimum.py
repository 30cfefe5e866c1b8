"""The quickest of all shared plans whose rows are multiples of a share, and which exchange at any levels.

What comes behind a level depends on what came before it by five things alone: which rows the device has, and until when
both machines and both directions of the link are taken. So of plans up to a level only those are kept which no other
one with the same rows is sooner than in all four moments (labels of multi-criteria shortest paths: Martins, "On a
multicriteria shortest path problem", 1984), and which may still end before the best plan that is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from splitload.collaborative.costs import Link
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan, strips_of
from splitload.graphs.row_pieces import Range

SHARES = 8
STRIPS = (1, 2, 4)
MOST_LABELS = 64
_WEIGHTS = np.linspace(0.0, 1.0, 9)[:, None]  # of the device in bounds
_EQUAL = 1e-9

Array = np.ndarray[Any, Any]


class Optimum(NamedTuple):
    """The best plan of a grid.

    Attributes:
        plan: It; None where none is sooner than what was known.
        latency_s: When it answers; what was known where there is none.
        is_exact: Whether no plan of the grid can be sooner: not where so many labels came up that some were dropped.
    """

    plan: SharedPlan | None
    latency_s: float
    is_exact: bool


def grid_optimum(
    costs: SegmentCosts,
    link: Link,
    known_s: float,
    *,
    shares: int = SHARES,
    strips: Sequence[int] = STRIPS,
    most_labels: int = MOST_LABELS,
) -> Optimum:
    """Return the plan of a grid that answers soonest.

    Args:
        costs: Of segments.
        link: Between the machines.
        known_s: What a plan that is known takes, in seconds: those that cannot be sooner are given up.
        shares: The device has a multiple of one over this of the rows of each level where rows are exchanged.
        strips: In how many strips the server may compute.
        most_labels: That are kept of a level and its rows.
    """
    rest = _rest(costs)
    last, best_s, is_exact = costs.levels.num_units, known_s, True
    kept, best = _Labels.begin(costs.rows[0]), None
    for level in range(1, last + 1):
        found = [kept]
        for own in sorted({round(costs.rows[level] * share / shares) for share in range(shares + 1)}):
            options = (1,) if own == costs.rows[level] else strips
            made = _joined([_behind(costs, link, kept, level, own, count) for count in options])
            if level == last:
                made = _ended(costs, link, made)
                at = int(np.argmin(made.device_s))
                if made.device_s[at] < best_s - _EQUAL:
                    best_s, best = float(made.device_s[at]), made.chosen([at])
                continue
            made = made.chosen(np.flatnonzero(rest.least_s(level, made) < best_s - _EQUAL))
            ahead, is_all = _undominated(made, most_labels)
            is_exact = is_exact and is_all
            found.append(made.chosen(ahead))
        kept = _joined(found)
    return Optimum(None if best is None else _plan(costs, kept, best), best_s, is_exact)


class _Labels(NamedTuple):
    """Plans up to levels, an entry for each.

    Attributes:
        level: Where it has come to.
        own: Rows of that level that the device has.
        strips: Of the server behind the level before.
        before: Which one it goes on from, by its place among all that are kept.
        device_s: Until when the device computes.
        server_s: Until when the server does.
        up_s: When the next message to the server may leave.
        down_s: When the next one to the device may.
    """

    level: Array
    own: Array
    strips: Array
    before: Array
    device_s: Array
    server_s: Array
    up_s: Array
    down_s: Array

    @classmethod
    def begin(cls, rows: int) -> _Labels:
        """Return the one that has done nothing yet."""
        zero, none = np.zeros(1), np.zeros(1, np.int64)
        return cls(none, np.array([rows]), none, none, zero, zero, zero, zero)

    def chosen(self, places: Any) -> _Labels:
        """Return some of them."""
        return _Labels(*(each[places] for each in self))


def _joined(labels: Sequence[_Labels]) -> _Labels:
    return _Labels(*(np.concatenate(each) for each in zip(*labels, strict=True)))


def _behind(costs: SegmentCosts, link: Link, before: _Labels, level: int, own: int, strips: int) -> _Labels:
    """Return plans that go on from others to a level; what each segment takes is as in `SegmentCosts.latency_s`."""
    first, row_bytes = before.level, costs.row_bytes[:, before.level]
    device, server = costs.costs.device, costs.costs.server
    device_s, server_s, up_s, down_s = before.device_s, before.server_s, before.up_s, before.down_s
    lacked, computes_s = np.zeros(len(first)), np.zeros(len(first))
    if own:
        chain = costs.chain(level, 0, own)
        stops = chain.strand_stops[:, first]
        rows_lacked = np.maximum(stops - np.maximum(chain.strand_starts[:, first], before.own), 0)
        lacked = (rows_lacked * row_bytes).sum(axis=0)
        computes_s = chain.device_s[first] + device.call_s
    comes = lacked > 0
    down_s = np.where(comes, np.maximum(down_s, server_s) + lacked / link.bytes_per_s, down_s)
    arrives_s = np.where(comes, down_s + link.latency_s, 0.0)
    server_s = server_s + np.where(comes, server.carries_s(lacked), 0.0)
    sent = np.broadcast_to(before.own, row_bytes.shape)
    for rows in strips_of(Range(own, costs.rows[level]), strips):
        chain = costs.chain(level, *rows)
        starts = chain.strand_starts[:, first]
        rows_sent = np.maximum(np.minimum(chain.strand_stops[:, first], sent) - starts, 0)
        sent = np.where(rows_sent > 0, starts, sent)
        lacks = (rows_sent * row_bytes).sum(axis=0)
        goes = lacks > 0
        up_s = np.where(goes, np.maximum(up_s, device_s) + lacks / link.bytes_per_s, up_s)
        device_s = device_s + np.where(goes, device.carries_s(lacks), 0.0)
        received_s = np.maximum(server_s, up_s + link.latency_s) + server.carries_s(lacks)
        server_s = np.where(goes, received_s, server_s) + chain.server_s[first] + server.call_s
    device_s = np.where(comes, np.maximum(device_s, arrives_s) + device.carries_s(lacked), device_s) + computes_s
    every = np.ones(len(first), np.int64)
    return _Labels(
        level * every, own * every, strips * every, np.arange(len(first)), device_s, server_s,
        np.maximum(up_s, device_s), np.maximum(down_s, server_s),
    )  # fmt: skip


def _ended(costs: SegmentCosts, link: Link, labels: _Labels) -> _Labels:
    """Return plans of which the device has all outputs."""
    outputs = (costs.rows[-1] - labels.own) * costs.output_row_bytes
    arrives_s = labels.down_s + outputs / link.bytes_per_s + link.latency_s
    received_s = np.maximum(labels.device_s, arrives_s) + costs.costs.device.carries_s(outputs)
    return labels._replace(device_s=np.where(outputs > 0, received_s, labels.device_s))


def _undominated(labels: _Labels, most: int) -> tuple[list[int], bool]:
    """Return which plans no other one is sooner than in all moments, and whether these are all of them."""
    moments = np.stack([labels.device_s, labels.server_s, labels.up_s, labels.down_s], axis=1)
    places = np.argsort(moments.sum(axis=1), kind="stable")
    found: list[int] = []
    while len(places):
        if len(found) == most:
            return found, False
        found.append(int(places[0]))
        places = places[(moments[places] < moments[places[0]] - _EQUAL).any(axis=1)]
    return found, True


class _Rest:
    """What remains to be computed behind each level, at least.

    A row of a level that is read takes the device at least a, the server at least b seconds, and one of them computes
    it; between those that the first and the last rows of a later level need some may be read by nobody. So the end is
    no sooner than w times when the device is free, 1 - w times when the server is, and the least of w a and (1 - w) b
    for each row; whatever w from 0 to 1. Only a device that goes on alone does not wait for the server.
    """

    def __init__(self, costs: SegmentCosts) -> None:
        own, other = (
            np.array([0.0, *(min(s / (n + 1) for n, s in enumerate(each[1:])) for each in machine.units_s[1:])])
            for machine in (costs.costs.device, costs.costs.server)
        )
        rows = _read_rows(costs)
        self._shared_s = _sum_behind(rows * np.minimum(_WEIGHTS * own, (1 - _WEIGHTS) * other))
        self._alone_s = _sum_behind((rows * own)[None, :])[0]

    def least_s(self, level: int, labels: _Labels) -> Array:
        """Return when plans that have come to a level end, at least."""
        both_s = _WEIGHTS * labels.device_s + (1 - _WEIGHTS) * labels.server_s + self._shared_s[:, level, None]
        least_s: Array = np.minimum(both_s.max(axis=0), labels.device_s + self._alone_s[level])
        return least_s


@lru_cache(maxsize=4)
def _rest(costs: SegmentCosts) -> _Rest:
    """Return what is the same for each link."""
    return _Rest(costs)


def _read_rows(costs: SegmentCosts) -> Array:
    """Return how many rows of each level are computed at least, wherever machines part the rows of any later one."""
    rows = np.array(costs.rows)
    least = rows.copy()
    for last in range(1, len(rows)):
        for own in range(costs.rows[last] + 1):
            stops = costs.chain(last, 0, own).stops if own else np.zeros(last, np.int64)
            starts = costs.chain(last, own, costs.rows[last]).starts if own < costs.rows[last] else rows[:last]
            least[:last] = np.minimum(least[:last], rows[:last] - np.maximum(starts - stops, 0))
    return least


def _sum_behind(each: Array) -> Array:
    """Return the sum of what comes behind each place of a row."""
    behind: Array = each.sum(axis=1, keepdims=True) - np.cumsum(each, axis=1)
    return behind


def _plan(costs: SegmentCosts, kept: _Labels, end: _Labels) -> SharedPlan:
    """Return the plan that has come to an end."""
    exchanges, rows, strips = [costs.levels.num_units], [int(end.own[0])], [int(end.strips[0])]
    at = int(end.before[0])
    while kept.level[at]:
        exchanges.append(int(kept.level[at]))
        rows.append(int(kept.own[at]))
        strips.append(int(kept.strips[at]))
        at = int(kept.before[at])
    return SharedPlan((0, *exchanges[::-1]), (costs.rows[0], *rows[::-1]), tuple(strips[::-1]))

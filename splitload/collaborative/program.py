"""What a device and a server each do for an inference, step by step: compute rows, send some, wait for others.

Both programs follow from the plan alone. What one sends is what the other waits for, in the same order.
"""

from __future__ import annotations

from typing import NamedTuple

from splitload.collaborative.levels import Levels
from splitload.collaborative.shared_plan import SharedPlan, segments
from splitload.graphs.row_pieces import Range


class Send(NamedTuple):
    """Rows of each strand of a level are sent to the other machine, as soon as they are there."""

    level: int
    rows: tuple[Range, ...]


class Receive(NamedTuple):
    """Rows of each strand of a level are waited for."""

    level: int
    rows: tuple[Range, ...]


class Compute(NamedTuple):
    """Rows of a level are computed from those of an earlier one."""

    first: int
    last: int
    rows: Range


Step = Send | Receive | Compute


class Programs(NamedTuple):
    """What both machines do, each in its order."""

    device: tuple[Step, ...]
    server: tuple[Step, ...]


def programs(levels: Levels, plan: SharedPlan) -> Programs:
    """Return what a plan has both machines do.

    The device sends rows of the inputs at once and those of later levels when it has computed them, in the order in
    which the server's strips need them; the server sends what the device lacks before its next strips. The last thing
    is that the device waits for the outputs that the server has.
    """
    device: list[Step] = []
    server: list[Step] = []
    device_stop = server_start = levels.levels[0].num_rows  # rows before and from which on each has, of the level
    for segment in segments(levels, plan):
        level = segment.first
        lacked = tuple(_range(max(each.start, device_stop), each.stop) for each in segment.device_needs)
        if is_lacked := any(each.size for each in lacked):
            server.append(Send(level, lacked))
        sent = [server_start] * len(lacked)  # the server has what lies behind, or it is on its way
        for rows, needs in zip(segment.strips, segment.strips_need, strict=True):
            lacks = tuple(_range(each.start, min(each.stop, start)) for each, start in zip(needs, sent, strict=True))
            if any(each.size for each in lacks):
                device.append(Send(level, lacks))
                server.append(Receive(level, lacks))
                sent = [each.start if each.size else start for each, start in zip(lacks, sent, strict=True)]
            server.append(Compute(segment.first, segment.last, rows))
        if is_lacked:
            device.append(Receive(level, lacked))
        if segment.device.size:
            device.append(Compute(segment.first, segment.last, segment.device))
        device_stop = server_start = segment.device.stop
    last = levels.num_units
    outputs = Range(server_start, levels.levels[last].num_rows)
    if outputs.size:
        server.append(Send(last, (outputs,)))
        device.append(Receive(last, (outputs,)))
    return Programs(tuple(device), tuple(server))


def _range(start: int, stop: int) -> Range:
    return Range(start, stop) if start < stop else Range(0, 0)

"""What both machines and the link did in one shared inference, and when: as their clocks tell it, or as predicted."""

from __future__ import annotations

import array
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Literal

from splitload.base.errors import DeviceError
from splitload.base.record import Record
from splitload.bundle.collaboration import ArmEntry, ProgramStep

Span = tuple[float, float]  # begin and end, in seconds
Where = Literal["device", "up", "down", "server"]
_MOST_S = 3600.0


class Moment(Record):
    """Something that took time.

    Attributes:
        where: The machine that computed, or the direction in which rows went: "up" is to the server.
        number: Of the piece that was computed, or of the level whose rows went.
        start_s: When it began, in seconds from the begin of the inference.
        end_s: When it ended; of rows, when the other machine had taken them.
    """

    where: Where
    number: int
    start_s: float
    end_s: float


def packed(spans: Sequence[Span], begun_s: float, ended_s: float) -> bytes:
    """Return what the server tells of its steps.

    Args:
        spans: When each began and ended.
        begun_s: When the inference came, by the same clock.
        ended_s: When its answer goes.
    """
    moments = array.array("d", (ended_s - begun_s,))
    moments.extend(each - begun_s for span in spans for each in span)
    if sys.byteorder == "big":
        moments.byteswap()
    return moments.tobytes()


def unpacked(data: bytes | bytearray, steps: int) -> tuple[float, list[Span]]:
    """Return what `packed` was given, as seconds from the begin: the end, and the spans of so many steps.

    Raises:
        DeviceError: If it is nothing of that kind.
    """
    moments = array.array("d")
    if len(data) != moments.itemsize * (1 + 2 * steps):
        raise DeviceError(f"the server tells of its steps in {len(data)} bytes, there are {steps}")
    moments.frombytes(bytes(data))
    if sys.byteorder == "big":
        moments.byteswap()
    if not all(math.isfinite(each) and 0 <= each < _MOST_S for each in moments):
        raise DeviceError("the server tells of moments that there are not")
    return moments[0], list(zip(moments[1::2], moments[2::2], strict=True))


def joined(
    arm: ArmEntry, device: Sequence[Span], server: Sequence[Span], latency_s: float, server_s: float
) -> tuple[Moment, ...]:
    """Return what was done in an inference, by the device's clock.

    What the server's clock says is moved by half of what the inference took longer on the device than there: the first
    and the last message are as small as each other.

    Args:
        arm: Which was done.
        device: When its steps began and ended, in seconds from the begin.
        server: The same of the server.
        latency_s: When the device had the last message.
        server_s: When the server sent it.
    """
    later_s = max(latency_s - server_s, 0.0) / 2
    moved = [(start + later_s, end + later_s) for start, end in server]
    found: list[Moment] = []
    for where, steps, spans in (("device", arm.device, device), ("server", arm.server, moved)):
        own: Where = "device" if where == "device" else "server"
        found += [
            Moment(own, step.number, *span) for step, span in zip(steps, spans, strict=True) if step.kind == "compute"
        ]
    found += _travels("up", zip(arm.device, device, strict=True), zip(arm.server, moved, strict=True))
    found += _travels("down", zip(arm.server, moved, strict=True), zip(arm.device, device, strict=True))
    return tuple(sorted(found, key=lambda each: each.start_s))


def _travels(
    way: Where, sender: Iterator[tuple[ProgramStep, Span]], receiver: Iterator[tuple[ProgramStep, Span]]
) -> Iterator[Moment]:
    sent = [(step, span) for step, span in sender if step.kind == "send"]
    received = [span for step, span in receiver if step.kind == "receive"]
    for (step, (start_s, _)), (_, end_s) in zip(sent, received, strict=True):
        yield Moment(way, step.number, start_s, max(end_s, start_s))

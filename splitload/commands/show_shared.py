"""Draws what two machines and the link between them did in one shared inference, in text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from splitload.deploy.shared_timeline import Moment

WIDTH = 72
_LANES = ("device", "up", "down", "server")
_SIGNS = {"device": "█▓", "server": "█▓", "up": "━╌", "down": "━╌"}  # of one and of the next one


def picture(moments: Sequence[Moment], width: int = WIDTH) -> list[str]:
    """Return the lines of a picture: a lane for each machine and each direction of the link, over milliseconds.

    Neighbours in a lane have different signs; what is shorter than a column still takes one.

    Args:
        moments: What was done.
        width: Columns of a lane.
    """
    end_s = max((each.end_s for each in moments), default=0.0) or 1.0
    lines = [
        f"{name:>6} │{_lane(name, (each for each in moments if each.where == name), end_s, width)}│" for name in _LANES
    ]
    scale = [f"{1e3 * end_s * part / 4:.0f}" for part in range(5)]
    ruler = [" "] * (width + 8)
    for part, text in enumerate(scale):
        at = round(part * (width - 1) / 4)
        at = min(at, width - len(text))
        ruler[at : at + len(text)] = text
    return [*lines, f"{'ms':>6}  {''.join(ruler).rstrip()}"]


def _lane(name: str, moments: Iterable[Moment], end_s: float, width: int) -> str:
    columns = [" "] * width
    for number, each in enumerate(sorted(moments, key=lambda moment: moment.start_s)):
        first = min(int(each.start_s / end_s * width), width - 1)
        last = max(min(round(each.end_s / end_s * width), width), first + 1)
        columns[first:last] = _SIGNS[name][number % 2] * (last - first)
    return "".join(columns)

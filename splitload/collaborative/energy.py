"""What an inference takes of a device's battery: it computes, or communicates, or waits."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from splitload.collaborative.simulate import Timeline


@dataclass(frozen=True, slots=True)
class Power:
    """What a device draws, in watts.

    Attributes:
        computing_w: While it computes, whatever the link does.
        communicating_w: While rows travel and it does not compute.
        standby_w: While it waits.
    """

    computing_w: float
    communicating_w: float
    standby_w: float


def energy_j(timeline: Timeline, power: Power) -> float:
    """Return the energy that a simulated inference takes of the device, in joules.

    Args:
        timeline: Of it.
        power: What the device draws.
    """
    computes = [(task.start_s, task.end_s) for task in timeline.tasks if task.where == "device"]
    travels = [(task.start_s, task.end_s) for task in timeline.tasks if task.where in ("up", "down")]
    computing_s = _covered_s(computes)
    communicating_s = _covered_s([*computes, *travels]) - computing_s
    standby_s = max(timeline.latency_s - computing_s - communicating_s, 0.0)
    return power.computing_w * computing_s + power.communicating_w * communicating_s + power.standby_w * standby_s


def _covered_s(spans: Iterable[tuple[float, float]]) -> float:
    """Return how long at least one of some spans lasts."""
    covered_s = end_s = 0.0
    for start, end in sorted(spans):
        covered_s += max(end - max(start, end_s), 0.0)
        end_s = max(end_s, end)
    return covered_s

"""What a device says of its processors' temperature and clocks, and whether they were throttled meanwhile (Linux).

A measurement on a processor that slows down to cool is one of its cooling. What the system does not tell is None, and
counts as no sign.
Source: the kernel's thermal sysfs API, cpufreq's policy files, and intel's thermal_throttle counters.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from splitload.base.record import Record

SYSTEM = Path("/sys")
_STEPS_DOWN = ("passive", "hot", "critical")  # kinds of trip points at which a system begins to slow down


class Conditions(Record):
    """A moment of a device.

    Attributes:
        temperature_c: Of the hottest zone, in degrees Celsius.
        headroom_c: How far the zone that is nearest to its limit is below it.
        clock_hz: The least clock of the processors that are online.
        ceiling_hz: The highest clock that the system allows each of them at present, their mean: a phone's fast
            processors are slowed down first, to what its others always have.
        throttles: How often processors were throttled since the system started.
    """

    temperature_c: float | None
    headroom_c: float | None
    clock_hz: int | None
    ceiling_hz: int | None
    throttles: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return self._asdict()


def conditions(system: Path = SYSTEM) -> Conditions:
    """Return the present moment.

    Args:
        system: Where the kernel's sysfs is mounted.
    """
    zones = [_zone(zone) for zone in sorted(system.glob("class/thermal/thermal_zone*"))]
    temperatures = [here for here, _ in zones if here is not None]
    rooms = [limit - here for here, limit in zones if here is not None and limit is not None]
    processors = sorted(system.glob("devices/system/cpu/cpu[0-9]*"))
    counts = [_number(each / "thermal_throttle/core_throttle_count") for each in processors]
    ceilings = _clocks_hz(processors, "scaling_max_freq")
    known = [count for count in counts if count is not None]
    return Conditions(
        max(temperatures, default=None),
        min(rooms, default=None),
        min(_clocks_hz(processors, "scaling_cur_freq"), default=None),
        None if not ceilings else round(sum(ceilings) / len(ceilings)),
        sum(known) if known else None,
    )


def throttled(before: Conditions, after: Conditions, usual_ceiling_hz: int | None) -> str | None:
    """Return how it is known that processors were throttled between two moments; None where nothing says so.

    Args:
        before: The moment before.
        after: The moment after.
        usual_ceiling_hz: The highest `ceiling_hz` that was seen on the device.
    """
    if before.throttles is not None and after.throttles is not None and after.throttles > before.throttles:
        return f"its processors were throttled {after.throttles - before.throttles} times"
    if usual_ceiling_hz is not None and after.ceiling_hz is not None and after.ceiling_hz < usual_ceiling_hz:
        return f"the system allows its processors {after.ceiling_hz / 1e6:.0f} of {usual_ceiling_hz / 1e6:.0f} MHz"
    if after.headroom_c is not None and after.headroom_c <= 0:
        return f"it is {after.temperature_c:.0f} °C hot, at its limit"
    return None


def processors_of(system: Path = SYSTEM) -> list[dict[str, Any]]:
    """Return number, least and highest clock of each processor that is online, None where the system does not tell."""
    online = set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    found = []
    for number in sorted(online):
        policy = system / f"devices/system/cpu/cpu{number}/cpufreq"
        least, most = (_hz(policy / name) for name in ("cpuinfo_min_freq", "cpuinfo_max_freq"))
        found.append({"number": number, "min_clock_hz": least, "max_clock_hz": most})
    return found


def _zone(zone: Path) -> tuple[float | None, float | None]:
    """Return the temperature of a zone, and at which it begins to slow down."""
    here = _number(zone / "temp")
    limits = []
    for kind in zone.glob("trip_point_*_type"):
        limit = _number(kind.with_name(kind.name.replace("_type", "_temp")))
        if _text(kind) in _STEPS_DOWN and limit is not None and limit > 0:
            limits.append(limit / 1e3)
    return None if here is None else here / 1e3, min(limits, default=None)


def _clocks_hz(processors: list[Path], name: str) -> list[int]:
    return [hz for each in processors if (hz := _hz(each / "cpufreq" / name)) is not None]


def _hz(file: Path) -> int | None:
    khz = _number(file)
    return None if khz is None else khz * 1000


def _number(file: Path) -> int | None:
    try:
        return int(_text(file))
    except ValueError:
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):  # offline, or not ours to read
        return ""

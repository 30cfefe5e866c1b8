"""Temperatures, clocks and throttling as Linux tells them, read from a tree of files like the kernel's."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitload.deploy.conditions import Conditions, conditions, processors_of, throttled

QUIET = Conditions(50.0, 40.0, 1_000_000_000, 2_000_000_000, 3)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def phone(root: Path, fast_khz: int = 2_800_000) -> Path:
    """A phone: a slow processor and a fast one, and three zones, of which one is none of a processor's limits."""
    cpu = "devices/system/cpu/cpu"
    zone = "class/thermal/thermal_zone"
    return write(
        root,
        {
            f"{cpu}0/cpufreq/scaling_cur_freq": "600000\n",
            f"{cpu}0/cpufreq/scaling_max_freq": "1800000\n",
            f"{cpu}0/cpufreq/cpuinfo_min_freq": "300000\n",
            f"{cpu}0/cpufreq/cpuinfo_max_freq": "1800000\n",
            f"{cpu}1/cpufreq/scaling_cur_freq": "1200000\n",
            f"{cpu}1/cpufreq/scaling_max_freq": f"{fast_khz}\n",
            f"{cpu}0/thermal_throttle/core_throttle_count": "4\n",
            f"{zone}0/temp": "61500\n",
            f"{zone}0/trip_point_0_type": "active\n",  # a fan begins
            f"{zone}0/trip_point_0_temp": "45000\n",
            f"{zone}0/trip_point_1_type": "passive\n",
            f"{zone}0/trip_point_1_temp": "85000\n",
            f"{zone}0/trip_point_2_type": "critical\n",
            f"{zone}0/trip_point_2_temp": "105000\n",
            f"{zone}1/temp": "70000\n",
            f"{zone}2/temp": "not available\n",
            f"{zone}2/trip_point_0_type": "passive\n",
            f"{zone}2/trip_point_0_temp": "-274000\n",
        },
    )


def test_what_a_phone_says(tmp_path: Path) -> None:
    assert conditions(phone(tmp_path)) == Conditions(70.0, 23.5, 600_000_000, 2_300_000_000, 4)


def test_a_system_that_tells_nothing_is_no_sign(tmp_path: Path) -> None:
    found = conditions(tmp_path)
    assert found == Conditions(None, None, None, None, None)
    assert throttled(found, found, None) is None
    assert throttled(found, QUIET, None) is None


def test_fast_processors_that_are_slowed_to_the_slow_ones_clock_are_seen(tmp_path: Path) -> None:
    before = conditions(phone(tmp_path))
    after = conditions(phone(tmp_path, fast_khz=1_800_000))
    assert throttled(before, after, before.ceiling_hz) == "the system allows its processors 1800 of 2300 MHz"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, None),
        ({"throttles": 5}, "its processors were throttled 2 times"),
        ({"throttles": None}, None),
        ({"ceiling_hz": 1_500_000_000}, "the system allows its processors 1500 of 2000 MHz"),
        ({"temperature_c": 91.0, "headroom_c": -1.0}, "it is 91 °C hot, at its limit"),
    ],
)
def test_how_throttling_is_known(change: dict[str, float | None], reason: str | None) -> None:
    assert throttled(QUIET, QUIET._replace(**change), 2_000_000_000) == reason


def test_this_machine_has_processors(tmp_path: Path) -> None:
    assert [each["number"] for each in processors_of()]
    first = processors_of(phone(tmp_path))[0]
    assert first["max_clock_hz"] in (1_800_000_000, None)

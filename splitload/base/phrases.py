"""Counts and durations as people read them."""

from __future__ import annotations


def milliseconds(seconds: float) -> str:
    """Return a duration, for example "12.3 ms"."""
    return f"{seconds * 1e3:.1f} ms"


def count_of(number: int, noun: str) -> str:
    """Return "1 stage" or "4 stages"."""
    return f"{number} {noun}{'' if number == 1 else 's'}"

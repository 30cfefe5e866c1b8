"""Values as words say them: each function here returns one, or says in a line what it must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from splitload.base.errors import unknown_name


def one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """Return what takes the known names; other words are a ValueError that names the nearest."""

    def read(word: str) -> str:
        if word not in known:
            raise unknown_name(kind, word, known)
        return word

    return read


def at_least_one(word: str) -> int:
    """Return a whole number of at least 1, or raise ValueError."""
    if not word.isdecimal() or int(word) < 1:
        raise ValueError(f"it must be a whole number of at least 1, not '{word}'")
    return int(word)


def count(word: str) -> int:
    """Return a whole number of at least 0, or raise ValueError."""
    if not word.isdecimal():
        raise ValueError(f"it must be a whole number of at least 0, not '{word}'")
    return int(word)


def port(word: str) -> int:
    """Return a port to listen at, 0 for any that is free, or raise ValueError."""
    if not word.isdecimal() or int(word) > 65535:
        raise ValueError(f"it must be a port from 0 to 65535, not '{word:.20}'")
    return int(word)


def above_zero(word: str) -> float:
    """Return a finite number above 0, or raise ValueError."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise ValueError(f"it must be a number above 0, not '{word}'")
    return value


def split_points(word: str) -> tuple[int, ...]:
    """Return block numbers that were given with commas between, or raise ValueError."""
    parts = [part for part in word.split(",") if part]
    if not all(part.isdecimal() for part in parts):
        raise ValueError(f"it must be block numbers with commas between, not '{word}'")
    return tuple(int(part) for part in parts)

"""Answers that are kept."""

from __future__ import annotations

import pytest

from splitload.base.kept import kept


def test_a_function_is_asked_once_for_the_same_arguments() -> None:
    asked = []

    @kept
    def double(number: int) -> int:
        """Return twice the number."""
        asked.append(number)
        return 2 * number

    assert [double(2), double(3), double(2)] == [4, 6, 4]
    assert asked == [2, 3]
    assert double.__doc__ == "Return twice the number."
    double.cache_clear()
    assert double(2) == 4
    assert asked == [2, 3, 2]


def test_what_is_raised_is_not_kept() -> None:
    asked = []

    @kept
    def fails(name: str) -> None:
        asked.append(name)
        raise LookupError(name)

    for _ in range(2):
        with pytest.raises(LookupError):
            fails("x")
    assert asked == ["x", "x"]


def test_no_more_is_kept_than_a_process_has_room_for() -> None:
    asked = []

    @kept
    def same(number: int) -> int:
        asked.append(number)
        return number

    assert [same(number) for number in range(1000)] == list(range(1000))
    assert same(999) == 999
    assert len(asked) == 1000
    assert same(0) == 0
    assert len(asked) == 1001

"""The least ceiling that a refusal names: found from above and from below, in few attempts."""

from __future__ import annotations

import pytest

from splitload.planner.least_ceiling import STEP_BYTES, CeilingTooLowError
from splitload.planner.residency import advised

MB = 1_000_000


@pytest.mark.parametrize(
    ("asked", "first", "does"),
    [
        (5, 6_900_000, 6_100_000),
        (100_000, 11_900_000, 6_100_000),
        (5_900_000, 6_000_000, 6_100_000),
        (MB, 30 * MB, 29 * MB),
    ],
)
def test_the_least_that_does_is_named(asked: int, first: int, does: int) -> None:
    attempts = []

    def attempt(ceiling_bytes: int) -> None:
        attempts.append(ceiling_bytes)
        if ceiling_bytes < does:
            raise CeilingTooLowError("it is too low", ceiling_bytes + STEP_BYTES)

    told = advised(CeilingTooLowError("so it is", first), asked, attempt)
    assert does <= told.least_bytes <= max(does + STEP_BYTES, does * 1.02)
    assert told.least_bytes in attempts, "it was tried"
    assert "so it is" in str(told)
    assert len(attempts) <= 10

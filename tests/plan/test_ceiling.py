"""A ceiling: the plans it allows, against all plans there are, and what has to come again under it."""

from __future__ import annotations

from itertools import combinations

import pytest
from synthetic import needs

from splitload.plan.ceiling import Ceiling
from splitload.plan.memory import peak_bytes
from splitload.plan.partition import Partition

MODEL = needs([5_000_000, 300_000, 2_000_000, 900_000, 3_000_000, 400_000], [200_000] * 6)


ARENA = 700_000


def peak(plan: Partition) -> int:
    return peak_bytes([MODEL.stage(*stage) for stage in plan.stages()], ARENA)


def plans(count: int, trainable_from: int | None) -> list[Partition]:
    every = combinations(range(1, 6), count - 1)
    return [Partition(6, points) for points in every if trainable_from in (None, (0, *points)[-1])]


@pytest.mark.parametrize("trainable_from", [None, 5, 2])
@pytest.mark.parametrize("ceiling_bytes", [5_900_000, 6_400_000, 7_000_000, 13_000_000])
def test_ends_lead_to_the_plans_that_fit_and_to_no_others(ceiling_bytes: int, trainable_from: int | None) -> None:
    ceiling = Ceiling(MODEL, ceiling_bytes, ARENA)
    counted = []
    for count in range(1, 7 if trainable_from is None else trainable_from + 2):
        ends, found = ceiling.ends(count, trainable_from), [(0,)]
        for left in range(count, 0, -1):
            assert left == count or all(ends[left][each[-1]] for each in found), "something always follows"
            found = [(*each, end) for each in found for end in ends[left][each[-1]]]
        fitting = [plan for plan in plans(count, trainable_from) if peak(plan) <= ceiling_bytes]
        assert [Partition(6, each[1:-1]) for each in found] == fitting
        assert all(ceiling.allows(plan) == (plan in fitting) for plan in plans(count, trainable_from))
        counted += [count] * bool(fitting)
    most = 6 if trainable_from is None else trainable_from + 1
    assert ceiling.counts(most, trainable_from) == tuple(counted)
    assert trainable_from is not None or ceiling.holds_all == (1 in counted)


def test_what_comes_again() -> None:
    stages = [(0, 1), (1, 4), (4, 6)]
    room = Ceiling(MODEL, 9_000_000, ARENA).room_bytes(3)
    weights = sum(MODEL.mapped_bytes[0][6:])
    assert Ceiling(MODEL, 9_000_000, ARENA).streamed_bytes(stages) == weights + MODEL.stage(0, 1).weights_bytes - room
    assert Ceiling(MODEL, 20_000_000, ARENA).streamed_bytes(stages) == 0
    for ceiling_bytes in range(5_900_000, 12_500_000, 300_000):
        ceiling = Ceiling(MODEL, ceiling_bytes, ARENA)
        fitting = [plan for count in range(1, 7) for plan in plans(count, None) if ceiling.allows(plan)]
        assert all((ceiling.streamed_bytes(list(plan.stages())) > 0) != ceiling.holds_all for plan in fitting)

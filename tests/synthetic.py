"""Profiles of models that exist nowhere, and what these need of memory, for the tests of the agents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from splitload.plan.memory import MemoryNeeds
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention


def make(loads: Sequence[float], *, fixed: float = 0.0, threads: int = 16, infer_share: float = 0.3) -> Profile:
    blocks = tuple(
        BlockProfile(f"block{index}", int(load * 1e9), Cost(load + fixed, load * infer_share, load * infer_share / 2))
        for index, load in enumerate(map(float, loads))
    )
    return Profile(
        "synthetic", "0" * 64, "native", "test", "simulated", blocks, fixed, Contention(threads, 0.2, 0.1)
    )  # fmt: skip


def needs(weights_bytes: Sequence[int], tensors_bytes: Sequence[int]) -> MemoryNeeds:
    """Return what a chain of blocks of one node needs; each makes a tensor, which the next one reads."""
    size = len(weights_bytes) + 1

    def table(value: Callable[[int, int], int]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(value(start, end) if start < end else 0 for end in range(size)) for start in range(size))

    return MemoryNeeds(
        table(lambda start, end: int(sum(weights_bytes[start:end]))),
        table(lambda start, end: int(max(tensors_bytes[start:end]) + (tensors_bytes[start - 1] if start else 0))),
        table(lambda start, end: 1000 * (start > 1)),
        (1,) * (size - 1),
    )

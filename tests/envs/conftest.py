"""Synthetic profiles for the tests of the environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., Profile]:
    """Return a factory of profiles: of each block the seconds of its load, without the fixed part, of its inference
    and of its reads, which are part of the load."""

    def make(
        loads: Sequence[float],
        infers: Sequence[float] | None = None,
        *,
        reads: Sequence[float] | None = None,
        fixed: float = 0.0,
        threads: int = 8,
        serial_share: float = 0.2,
        segments: dict[tuple[int, int], Cost] | None = None,
    ) -> Profile:
        infers = [load / 4 for load in loads] if infers is None else infers
        reads = [0.0] * len(loads) if reads is None else reads
        blocks = tuple(
            BlockProfile(f"block{index}", int(load * 1e9), Cost(load + fixed, infer, infer / 2, read))
            for index, (load, infer, read) in enumerate(zip(loads, infers, reads, strict=True))
        )
        contention = Contention(threads, serial_share, thread_penalty=0.1)
        return Profile("synthetic", "0" * 64, "native", "test", "simulated", blocks, fixed, contention, segments or {})

    return make


@pytest.fixture
def profile(make_profile: Callable[..., Profile]) -> Profile:
    """Return six blocks that load in 1 s in all: T/2 = 0.5 is reached by a cut at 3."""
    return make_profile([0.1, 0.1, 0.3, 0.1, 0.2, 0.2])

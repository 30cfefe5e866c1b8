"""Synthetic profiles for the tests of the environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from splitload.profile import BlockProfile, Cost, Profile
from splitload.schedule import Contention


@pytest.fixture(scope="session")
def make_profile() -> Callable[..., Profile]:
    """Return a factory: load seconds per block without the fixed part, inference seconds per block."""

    def make(
        loads: Sequence[float],
        infers: Sequence[float] | None = None,
        *,
        fixed: float = 0.0,
        threads: int = 8,
        serial_share: float = 0.2,
        segments: dict[tuple[int, int], Cost] | None = None,
    ) -> Profile:
        infers = [load / 4 for load in loads] if infers is None else infers
        blocks = tuple(
            BlockProfile(f"block{index}", int(load * 1e9), Cost(load + fixed, infer, infer / 2))
            for index, (load, infer) in enumerate(zip(loads, infers, strict=True))
        )
        contention = Contention(threads, serial_share, thread_penalty=0.1)
        return Profile("synthetic", "0" * 64, "native", "test", "simulated", blocks, fixed, contention, segments or {})

    return make


@pytest.fixture
def profile(make_profile: Callable[..., Profile]) -> Profile:
    """Return six blocks that load in 1 s in all: T/2 = 0.5 is reached by a cut at 3."""
    return make_profile([0.1, 0.1, 0.3, 0.1, 0.2, 0.2])

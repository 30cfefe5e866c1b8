"""Profiles of models that exist nowhere, for the tests of the agents."""

from __future__ import annotations

from collections.abc import Sequence

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

"""Synthetic profiles for the tests of the agents: the shapes that models have, and those that are hard."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from splitload.profile import BlockProfile, Cost, Profile
from splitload.schedule import Contention


def make(loads: Sequence[float], *, fixed: float = 0.0, threads: int = 16, infer_share: float = 0.3) -> Profile:
    blocks = tuple(
        BlockProfile(f"block{index}", int(load * 1e9), Cost(load + fixed, load * infer_share, load * infer_share / 2))
        for index, load in enumerate(map(float, loads))
    )
    return Profile(
        "synthetic", "0" * 64, "native", "test", "simulated", blocks, fixed, Contention(threads, 0.2, 0.1)
    )  # fmt: skip


def superlinear(profile: Profile) -> Profile:
    """Return the profile with long segments measured as slower than their sum, as large sessions are."""
    whole_s, count = profile.whole().load_s, profile.num_blocks
    segments = {}
    for start in range(count):
        for end in range(start + 1, count + 1):
            cost = profile.cost(start, end)
            segments[start, end] = replace(cost, load_s=cost.load_s + 0.8 * whole_s * ((end - start) / count) ** 2)
    return replace(profile, segments=segments)


def _profiles() -> dict[str, Profile]:
    rng = np.random.default_rng(0)
    vgg = [0.007, 0.15, 0.3, 0.6, 1.2, 2.4, 2.4, 2.4, 4.7, 9.4, 9.4, 9.4, 9.4, 9.4, 9.4, 9.4, 411, 67, 16.4]
    return {
        "equal": make([0.01] * 24),
        "vgg": make(np.array(vgg) / 1e3),
        "resnet": make([0.0004] + [0.0009] * 3 + [0.0045] * 8 + [0.017] * 12 + [0.06] * 3 + [0.008]),
        "uneven": make(rng.lognormal(-4, 1.5, 30)),
        "large fixed cost": make(rng.lognormal(-4, 1, 16), fixed=0.05),
        "superlinear": superlinear(make(rng.uniform(0, 0.05, 20))),
        "two blocks": make([0.1, 0.3]),
    }


PROFILES = _profiles()

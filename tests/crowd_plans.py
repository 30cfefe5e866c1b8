"""Crowds and models that exist nowhere, for the tests of plans for a crowd."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from synthetic import make, needs

from splitload.plan.crowd import Crowd, WorkerGroup
from splitload.plan.crowd_ceiling import CrowdCeiling
from splitload.plan.profile import BlockProfile, Cost, Profile

EQUAL = Crowd((WorkerGroup(5, 14_000_000, 0.5, 5e6),), 20)
UNEQUAL = Crowd((WorkerGroup(2, 14_000_000, 0.5, 5e6), WorkerGroup(3, 9_000_000, 2.0, 20e6)), 20)


def model(num_blocks: int = 10, seed: int = 0) -> tuple[Profile, CrowdCeiling]:
    """Return a profile of uneven blocks of 1 to 6 MB, and what the unequal workers can hold of them."""
    rng = np.random.default_rng(seed)
    weights = rng.integers(1_000_000, 6_000_000, num_blocks).tolist()
    infers = rng.uniform(0.02, 0.2, num_blocks).tolist()
    tensors = rng.integers(10_000, 400_000, num_blocks).tolist()
    blocks = tuple(
        BlockProfile(f"b{number}", size, Cost(size / 1e8, 2 * infer_s, infer_s))
        for number, (size, infer_s) in enumerate(zip(weights, infers, strict=True))
    )
    ceiling = CrowdCeiling(
        needs(weights, tensors),
        UNEQUAL.memory_bytes,
        0,
        crowd=UNEQUAL,
        arena_share=2.0,
        sent_bytes=tuple(weights),
        boundary_bytes=(150_000, *tensors),
    )
    return replace(make([1.0]), blocks=blocks), ceiling


def on(ceiling: CrowdCeiling, crowd: Crowd) -> CrowdCeiling:
    """Return what another crowd can hold of the same model."""
    return replace(ceiling, crowd=crowd, ceiling_bytes=crowd.memory_bytes)

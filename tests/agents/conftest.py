"""Synthetic profiles for the tests of the agents: the shapes that models have, and those that are hard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from synthetic import make

from splitload.plan.profile import Profile


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


@pytest.fixture(params=PROFILES, scope="session")
def any_profile(request: pytest.FixtureRequest) -> Profile:
    return PROFILES[request.param]


@pytest.fixture(params=[name for name, profile in PROFILES.items() if not profile.segments], scope="session")
def additive_profile(request: pytest.FixtureRequest) -> Profile:
    return PROFILES[request.param]


@pytest.fixture(scope="session")
def uneven_profile() -> Profile:
    return make([0.02, 0.01, 0.05, 0.01, 0.03, 0.02, 0.04, 0.01, 0.01])

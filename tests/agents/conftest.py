"""Profiles as fixtures of the tests of the agents."""

from __future__ import annotations

import pytest
from synthetic import PROFILES, make

from splitload.profile import Profile


@pytest.fixture(params=PROFILES, scope="session")
def any_profile(request: pytest.FixtureRequest) -> Profile:
    return PROFILES[request.param]


@pytest.fixture(params=[name for name, profile in PROFILES.items() if not profile.segments], scope="session")
def additive_profile(request: pytest.FixtureRequest) -> Profile:
    return PROFILES[request.param]


@pytest.fixture(scope="session")
def uneven_profile() -> Profile:
    return make([0.02, 0.01, 0.05, 0.01, 0.03, 0.02, 0.04, 0.01, 0.01])

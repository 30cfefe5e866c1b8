"""Names under which earlier versions documented something, and which stay."""

from __future__ import annotations

import splitload.profile
from splitload.plan import profile


def test_profiles_keep_their_name() -> None:
    for name in splitload.profile.__all__:
        assert getattr(splitload.profile, name) is getattr(profile, name)

"""`splitload.profile` is `splitload.plan.profile`: the name under which earlier versions documented it."""

from splitload.plan.profile import BlockProfile, Cost, Profile

__all__ = ["BlockProfile", "Cost", "Profile"]

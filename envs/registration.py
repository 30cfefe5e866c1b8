"""Registers the environment with Gymnasium."""

from gymnasium.envs import registration

ENV_ID = "splitload/Split-v0"


def register() -> None:
    """Register `splitload/Split-v0` with Gymnasium; does nothing when it is registered already."""
    if ENV_ID not in registration.registry:
        registration.register(id=ENV_ID, entry_point="splitload.envs.split:SplitEnv")

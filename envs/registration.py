"""Registers the environment with Gymnasium; what the package's entry point names."""

ENV_ID = "splitload/Split-v0"


def register() -> None:
    """Register `splitload/Split-v0` with Gymnasium; does nothing when it is registered already."""
    # Gymnasium before 1.0 calls this halfway through its own import, and that may be halfway through the import of
    # `splitload.envs`: so this module is whole before it asks for Gymnasium, and takes only what is there by then.
    from gymnasium.envs.registration import register, registry

    if ENV_ID not in registry:
        register(id=ENV_ID, entry_point="splitload.envs.split:SplitEnv")

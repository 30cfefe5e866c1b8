"""The search for a partition as a Gymnasium environment, `splitload/Split-v0`.

Importing this package registers the environment, as does naming it in the id:
`gymnasium.make("splitload.envs:splitload/Split-v0", profile=profile)`. There is no third way: Gymnasium 1.0 dropped
the loader that once read packages' entry points.
"""

import gymnasium

from splitload.envs.costs import CostMatrices, cost_matrices
from splitload.envs.split import SplitEnv

ENV_ID = "splitload/Split-v0"

__all__ = ["ENV_ID", "CostMatrices", "SplitEnv", "cost_matrices", "register"]


def register() -> None:
    """Register `splitload/Split-v0` with Gymnasium; does nothing when it is registered already."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(id=ENV_ID, entry_point="splitload.envs.split:SplitEnv")


register()

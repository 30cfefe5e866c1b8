"""The search for a partition as a Gymnasium environment, `splitload/Split-v0`.

Naming this package in the id registers it:
`gymnasium.make("splitload.envs:splitload/Split-v0", profile=profile)`. So does importing this package, after which
the plain id will do.
"""

from splitload.envs.costs import cost_matrices
from splitload.envs.registration import ENV_ID, register
from splitload.envs.split import SplitEnv
from splitload.plan.costs import CostMatrices

__all__ = ["ENV_ID", "CostMatrices", "SplitEnv", "cost_matrices", "register"]

register()

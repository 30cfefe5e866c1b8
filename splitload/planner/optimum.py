"""What a plan is worth by an objective, and the best plan there is: jobs that search processes are sent."""

from __future__ import annotations

from collections.abc import Sequence

from splitload import agents
from splitload.agents.exact_ttfo import Optimum
from splitload.envs.costs import cost_matrices
from splitload.plan.costs import CostMatrices
from splitload.plan.objectives import objective_named
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile


def least_s_of(profile: Profile, objective: str, partition: Partition) -> float:
    """Return `Objective.least_s` of a plan, in seconds."""
    return objective_named(objective).least_s(profile, partition)


def optimum(
    profile: Profile,
    objective: str,
    num_stages: int,
    limit_s: float,
    trainable_from: int | None = None,
    starts: Sequence[Sequence[int]] = (),
    costs: CostMatrices | None = None,
) -> Optimum:
    """Return the best plan of so many stages, and a bound where the time for a proof was over.

    Args:
        profile: Costs of the model on the device.
        objective: Its name.
        num_stages: k.
        limit_s: Seconds for the proof.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.
        starts: Plans to begin with, where the search takes some.
        costs: What `cost_matrices` returns for the profile, where it is there already.
    """
    best = objective_named(objective).optimum(
        costs or cost_matrices(profile),
        num_stages,
        agents,
        trainable_from=trainable_from,
        limit_s=limit_s,
        starts=starts,
    )
    return Optimum(*best)

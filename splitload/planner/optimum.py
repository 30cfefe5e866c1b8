"""What a plan is worth by an objective, and the best plan there is."""

from __future__ import annotations

from collections.abc import Sequence

from splitload.agents import exact
from splitload.agents.exact_ttfo import Optimum, ttfo
from splitload.envs.costs import CostMatrices, cost_matrices
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile


def least_s_of(profile: Profile, objective: str, partition: Partition) -> float:
    """Return what the objective makes small: the largest stage load, or the time to first output, in seconds."""
    return profile.largest_stage_load_s(partition) if objective == "balance" else profile.schedule(partition).ttfo_s


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
        objective: "balance", where there always is a proof, or "ttfo".
        num_stages: k.
        limit_s: Seconds for the proof.
        trainable_from: First trainable block; it and all after it lie in the last stage.
        starts: For "ttfo" plans to begin with.
        costs: What `cost_matrices` returns for the profile, where it is there already.
    """
    costs, contention = costs or cost_matrices(profile), profile.contention
    slowdown = contention.slowdown(num_stages)
    if objective == "balance":
        points, largest_s = exact.balance(costs.load_s, num_stages, trainable_from)
        return Optimum(points, largest_s * slowdown, largest_s * slowdown)
    found = ttfo(
        costs.load_s,
        costs.first_inference_s + contention.beside_s(num_stages),
        num_stages,
        contention.threads,
        slowdown,
        trainable_from,
        read=costs.read_s,
        limit_s=limit_s,
        starts=starts,
    )
    start_s = contention.start_s  # nothing loads before, so that every plan answers later by it
    return Optimum(found.split_points, found.value_s + start_s, found.bound_s + start_s)

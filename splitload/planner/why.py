"""Why a plan is as it is: the best plan for each number of stages, and what a cut costs and could save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitload.plan.partition import Partition
from splitload.plan.profile import Profile

MAX_PLANS = 24  # that a manifest keeps


def reasons(profile: Profile, chosen: Partition, plans: Mapping[int, Partition]) -> dict[str, Any]:
    """Return what decided about a plan, as JSON values for the manifest.

    Args:
        profile: Costs of the model on the device.
        chosen: The plan that was taken.
        plans: The best plan found for each number of stages.

    Returns:
        `plans`, one for each number of stages, at most `MAX_PLANS`, with its predicted seconds until all is loaded and
        until the first output; `stage_s`, what each stage of a cut costs besides its share of the model; `saving_s`,
        what loading in parallel and inferring meanwhile could save of the first output at most, were cuts free.
    """
    contention, whole = profile.contention, profile.whole()
    one = Partition(profile.num_blocks)
    kept = {1: one, **dict(sorted(plans.items())[:MAX_PLANS]), chosen.num_stages: chosen}
    rows = []
    for count, plan in sorted(kept.items()):
        schedule = profile.schedule(plan)
        rows.append(
            {
                "num_stages": count,
                "split_points": list(plan.split_points),
                "loaded_s": schedule.load_makespan_s,
                "ttfo_s": schedule.ttfo_s,
            }
        )
    in_parallel = contention.serial_share + (1 - contention.serial_share) / contention.threads
    least_s = contention.start_s + max(whole.first_inference_s, whole.load_s * in_parallel)
    return {
        "plans": rows,
        "stage_s": profile.stage_fixed_s + contention.cut_infer_s,
        "saving_s": max(profile.schedule(one).ttfo_s - least_s, 0.0),
    }

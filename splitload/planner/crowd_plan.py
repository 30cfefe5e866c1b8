"""A plan for a crowd: what its workers can hold, what a plan takes there, and how long."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from splitload.base.errors import UsageError
from splitload.base.phrases import count_of
from splitload.base.sizes import megabytes
from splitload.plan.crowd import Crowd
from splitload.plan.crowd_ceiling import CrowdCeiling
from splitload.plan.graph import ModelGraph
from splitload.plan.memory import memory_needs
from splitload.plan.objectives import OBJECTIVES
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.least_ceiling import MOST_STAGES, least_ceiling, phrase_of
from splitload.planner.residency import PlanMemory
from splitload.runtime.residency import ARENA_SHARE


def crowd_ceiling(crowd: Crowd, graph: ModelGraph) -> CrowdCeiling:
    """Return what the workers of a crowd can hold of a model; tensors of unknown size count as 0."""
    bounds = [graph.boundary(block.start) for block in graph.blocks[1:]]
    boundaries = (graph.inputs, *bounds, graph.outputs)
    return CrowdCeiling(
        memory_needs(graph),
        crowd.memory_bytes,
        0,
        crowd=crowd,
        arena_share=ARENA_SHARE,
        sent_bytes=tuple(block.weights_bytes for block in graph.blocks),
        boundary_bytes=tuple(sum(graph.tensors[name].nbytes or 0 for name in names) for names in boundaries),
    )


def check_holders(ceiling: CrowdCeiling, names: Sequence[str], max_stages: int | None) -> None:
    """Make sure that some plan of up to so many stages can be held, each of its stages by some worker.

    Args:
        ceiling: What the workers can hold.
        names: Of the blocks.
        max_stages: The most stages; None for as many as are ever planned.

    Raises:
        UsageError: If there is none; it says which stage is too large, and by how much.
    """
    most = min(max_stages or MOST_STAGES, ceiling.needs.num_blocks)
    if ceiling.counts(most):
        return
    least, has_bytes = least_ceiling(ceiling, most, None), ceiling.ceiling_bytes
    raise UsageError(
        f"no worker can hold the stage '{phrase_of(names, least.largest)}': it takes {megabytes(least.ceiling_bytes)} "
        f"even in the best of up to {count_of(most, 'stage')}, and the largest worker has {megabytes(has_bytes)} "
        f"beside the runtime, {megabytes(least.ceiling_bytes - has_bytes)} too little; give a worker more memory"
    )


def crowd_memory(ceiling: CrowdCeiling, plan: Partition) -> PlanMemory:
    """Return what a plan needs of memory, predicted; its `peak_bytes` is that of one device that runs all of it."""
    stages = tuple(ceiling.needs.stage(*stage) for stage in plan.stages())
    return PlanMemory(ceiling.needs, stages, math.ceil(ceiling.arena_share * ceiling.needs.live_bytes(plan)))


def prediction(ceiling: CrowdCeiling, profile: Profile, plan: Partition) -> dict[str, Any]:
    """Return what a plan comes to on a crowd, as JSON values: seconds, rate, and for each stage its bytes and holders.

    Args:
        ceiling: The crowd.
        profile: Costs of the model on the device that the workers' speeds are of.
        plan: The plan.
    """
    latency, throughput = (OBJECTIVES[name].value_s(profile, plan, ceiling) for name in ("latency", "throughput"))
    stages = []
    for start, end in plan.stages():
        cost = profile.cost(start, end)
        seconds = ceiling.seconds(start, end, cost.load_s, cost.inference_s)
        held_bytes = ceiling.weights_bytes[start][end]
        holders = sum(group.count for group in ceiling.crowd.holders(held_bytes))
        stages.append(
            {
                "worker_bytes": held_bytes,
                "workers": holders,
                "input_bytes": ceiling.boundary_bytes[start],
                "first_s": seconds.first_s,
                "each_s": ceiling.each_s(seconds, plan.num_stages),
            }
        )
    return {
        "source": "predicted",
        "batch": ceiling.crowd.batch,
        "num_workers": ceiling.crowd.num_workers,
        "latency_s": latency,
        "throughput_per_s": 1 / throughput,
        "worker_bytes": ceiling.peak_bytes(list(plan.stages())),
        "stages": stages,
    }

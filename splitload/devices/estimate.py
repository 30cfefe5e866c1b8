"""A profile from few measured stages: what each block costs is guessed, then corrected until the stages come out right.

The correction is the multiplicative reconstruction of tomography (Gordon, Bender and Herman, "Algebraic reconstruction
techniques", J. Theor. Biol. 29, 1970): where a stage takes longer than its blocks say, each of its blocks does.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitload.plan.costs import LoadCosts, LoadSums
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile, Segment
from splitload.plan.schedule import Contention

# What a block costs before anything is measured; only the shares matter, as the whole model is measured first.
NODE_LOAD_S = 41e-6  # making the session of a small graph, for each node
BYTE_FAULT_S = 0.2e-9  # first touch of a mapped weight, for each byte
FLOP_S = 1e-11
LEAST_LOAD_S = 1e-6  # of what storage leaves of a load
_SWEEPS = 40
_DAMPING = 0.5


def guess(graph: ModelGraph, device: str, threads: int, environment: Mapping[str, str]) -> Profile:
    """Return a profile that follows from nodes, bytes and operations alone: simulated."""
    blocks = []
    for block in graph.blocks:
        infer_s = block.flops * FLOP_S + block.weights_bytes * BYTE_FAULT_S
        cost = Cost((block.end - block.start) * NODE_LOAD_S, infer_s, infer_s)
        blocks.append(BlockProfile(block.name, block.weights_bytes, cost))
    return Profile(
        model=graph.name,
        model_sha256=graph.source_sha256,
        graph=graph.kind,
        device=device,
        source="simulated",
        blocks=tuple(blocks),
        stage_fixed_s=0.0,
        contention=Contention(threads),
        environment=environment,
    )


def estimate(prior: Profile, plans: Sequence[Partition], measured: Mapping[Segment, Cost]) -> Profile:
    """Return the prior, corrected until the stages of some plans cost what was measured.

    Loads follow the stages, but for what storage takes of them, which each block has its share of by its bytes;
    inferences follow them in their shares, and the whole model in their sum.

    Args:
        prior: What each block costs before the correction; its contention is kept.
        plans: Partitions that were measured, the whole model as one stage among them.
        measured: Costs of their stages, by half-open block range.
    """
    everything = (0, prior.num_blocks)
    read_s = measured[everything].read_s
    prepared = {
        stage: replace(cost, load_s=max(cost.load_s - cost.read_s, LEAST_LOAD_S), read_s=0.0)
        for stage, cost in measured.items()
    }
    whole = prepared[everything]
    finest = [prepared[stage] for stage in max(plans, key=lambda plan: plan.num_stages).stages()]
    stages = {stage: prepared[stage] for plan in plans for stage in plan.stages() if stage != everything}
    # What a stage pays once: what those of the finest plan take beyond the whole model, for each cut.
    beyond_s = sum(cost.load_s for cost in finest) - whole.load_s
    most_s = 0.9 * min((cost.load_s for cost in stages.values()), default=0.0)
    fixed_s = min(max(beyond_s / max(len(finest) - 1, 1), 0.0), most_s)
    inferred_s = sum(cost.first_inference_s for cost in finest)
    inference_share = whole.first_inference_s / inferred_s if inferred_s > 0 else 1.0
    loads = _scaled([block.cost.load_s for block in prior.blocks], whole.load_s)
    infers = _scaled([block.cost.first_inference_s for block in prior.blocks], whole.first_inference_s)

    for _ in range(_SWEEPS):
        model = LoadCosts.fitted(fixed_s, _alone(loads, fixed_s), whole.load_s)
        for (start, end), cost in stages.items():
            inside = loads[start:end]
            besides_s = model.load_s(_alone(inside, fixed_s)) - inside.sum()  # what the stage pays beyond its blocks
            for values, wanted_s, got_s in (
                (inside, cost.load_s - besides_s, inside.sum()),
                (infers[start:end], cost.first_inference_s * inference_share, infers[start:end].sum()),
            ):
                values *= (max(wanted_s, 0.01 * got_s) / got_s) ** _DAMPING
    byte_s = read_s / max(sum(block.weights_bytes for block in prior.blocks), 1)
    blocks = tuple(
        replace(block, cost=_block_cost(load + fixed_s, infer, byte_s * block.weights_bytes))
        for block, load, infer in zip(prior.blocks, loads.tolist(), infers.tolist(), strict=True)
    )
    return replace(
        prior,
        source="measured",
        blocks=blocks,
        stage_fixed_s=fixed_s,
        segments={everything: measured[everything]},
        environment={**prior.environment, "blocks": f"estimated from {len(measured)} measured stages"},
    )


def _block_cost(prepare_s: float, infer_s: float, read_s: float) -> Cost:
    return Cost(prepare_s + read_s, infer_s, infer_s, read_s)


class FirstOutput(NamedTuple):
    """When a plan that was loaded as a bundle's was there, and when it answered; seconds from the load call."""

    load_s: float
    ttfo_s: float

    @classmethod
    def median(cls, samples: Sequence[FirstOutput]) -> FirstOutput:
        """Return the median of each part."""
        return cls(*(statistics.median(part) for part in zip(*samples, strict=True)))


def with_first_outputs(profile: Profile, cut: Partition, whole: FirstOutput, first: FirstOutput) -> Contention:
    """Return the contention of a profile, with what a load call and a cut cost besides.

    Loading starts as much later as the whole model was loaded later than its load alone takes. What a cut answers later
    than all that says is spread over its stages: the least for each that makes the cut come out right, and not below 0.

    Args:
        profile: What is known of loads and inferences, each alone.
        cut: A plan of several stages, or the whole model where it cannot be cut.
        whole: When the whole model as one stage was loaded, measured.
        first: When the cut answered.
    """
    start_s = max(0.0, whole.load_s - profile.whole().load_s)
    contention = profile.contention._replace(start_s=start_s, cut_infer_s=0.0)
    if cut.num_stages == 1:
        return contention
    tasks = replace(profile, contention=contention).schedule(cut).tasks
    loaded_s = {task.stage: task.end_s for task in tasks if task.kind == "load"}
    infer_s = {task.stage: task.end_s - task.start_s for task in tasks if task.kind == "infer"}
    # the cut answers when it and all before are loaded, and all from any one on have inferred, each that much later
    left_s, later_s = first.ttfo_s, []
    for number, stage in enumerate(reversed(range(cut.num_stages)), start=1):
        left_s -= infer_s[stage]
        later_s.append((left_s - loaded_s[stage]) / number)
    return contention._replace(cut_infer_s=max(0.0, min(later_s)))


def _alone(loads: NDArray[np.float64], fixed_s: float) -> LoadSums[float]:
    """Return the sums over blocks that add these loads to a stage: alone each takes what a stage pays besides."""
    return LoadSums.of((loads + fixed_s).tolist())


def _scaled(values: Sequence[float], total: float) -> NDArray[np.float64]:
    """Return the values with this sum; none of them 0, so that a correction can raise it."""
    raised = np.maximum(np.array(values), 1e-3 * (sum(values) or 1.0) / len(values))
    scaled: NDArray[np.float64] = raised * (total / raised.sum())
    return scaled

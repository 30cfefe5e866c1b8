"""A profile from few measured stages: what each block costs is guessed, then corrected until the stages come out right.

The correction is the multiplicative reconstruction of tomography (Gordon, Bender and Herman, "Algebraic reconstruction
techniques", J. Theor. Biol. 29, 1970): where a stage takes longer than its blocks say, each of its blocks does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from splitload.devices.ledger import Segment
from splitload.graph import ModelGraph
from splitload.partition import Partition
from splitload.profile import BlockProfile, Cost, Profile
from splitload.schedule import Contention

# What a block costs before anything is measured; only the shares matter, as the whole model is measured first.
NODE_LOAD_S = 41e-6  # making the session of a small graph, for each node
BYTE_FAULT_S = 0.2e-9  # first touch of a mapped weight, for each byte
FLOP_S = 1e-11
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


def estimate(
    prior: Profile, plans: Sequence[Partition], measured: Mapping[Segment, Cost], serial_share: float = 0.0
) -> Profile:
    """Return the prior, corrected until the stages of some plans cost what was measured.

    Loads follow the stages; inferences follow them in their shares, and the whole model in their sum.

    Args:
        prior: What each block costs before the correction.
        plans: Partitions that were measured, the whole model as one stage among them.
        measured: Costs of their stages, by half-open block range.
        serial_share: Of `Contention`, measured.
    """
    everything = (0, prior.num_blocks)
    whole = measured[everything]
    finest = [measured[stage] for stage in max(plans, key=lambda plan: plan.num_stages).stages()]
    stages = {stage: measured[stage] for plan in plans for stage in plan.stages() if stage != everything}
    # What a stage pays once: what those of the finest plan take beyond the whole model, for each cut.
    beyond_s = sum(cost.load_s for cost in finest) - whole.load_s
    most_s = 0.9 * min((cost.load_s for cost in stages.values()), default=0.0)
    fixed_s = min(max(beyond_s / max(len(finest) - 1, 1), 0.0), most_s)
    inferred_s = sum(cost.first_inference_s for cost in finest)
    inference_share = whole.first_inference_s / inferred_s if inferred_s > 0 else 1.0
    loads = _scaled([block.cost.load_s for block in prior.blocks], whole.load_s)
    infers = _scaled([block.cost.first_inference_s for block in prior.blocks], whole.first_inference_s)

    for _ in range(_SWEEPS):
        growth = _growth(loads, fixed_s, whole.load_s)
        for (start, end), cost in stages.items():
            inside = loads[start:end]
            grown_s = growth * _pairs(inside + fixed_s)
            for values, wanted_s, got_s in (
                (inside, cost.load_s - fixed_s - grown_s, inside.sum()),
                (infers[start:end], cost.first_inference_s * inference_share, infers[start:end].sum()),
            ):
                values *= (max(wanted_s, 0.01 * got_s) / got_s) ** _DAMPING
    blocks = tuple(
        replace(block, cost=Cost(load + fixed_s, infer, infer))
        for block, load, infer in zip(prior.blocks, loads.tolist(), infers.tolist(), strict=True)
    )
    return replace(
        prior,
        source="measured",
        blocks=blocks,
        stage_fixed_s=fixed_s,
        contention=prior.contention._replace(serial_share=serial_share),
        segments={everything: whole},
        environment={**prior.environment, "blocks": f"estimated from {len(measured)} measured stages"},
    )


def _growth(loads: NDArray[np.float64], fixed_s: float, whole_s: float) -> float:
    """Return `Profile.load_growth` of these blocks, which load in `loads + fixed_s` each."""
    beyond_s = whole_s - fixed_s - loads.sum()
    pairs = _pairs(loads + fixed_s)
    return float(beyond_s / pairs) if beyond_s > 0 and pairs > 0 else 0.0


def _pairs(loads: NDArray[np.float64]) -> float:
    """Return the sum of the products of each two."""
    return float(loads.sum() ** 2 - (loads**2).sum())


def _scaled(values: Sequence[float], total: float) -> NDArray[np.float64]:
    """Return the values with this sum; none of them 0, so that a correction can raise it."""
    raised = np.maximum(np.array(values), 1e-3 * (sum(values) or 1.0) / len(values))
    scaled: NDArray[np.float64] = raised * (total / raised.sum())
    return scaled

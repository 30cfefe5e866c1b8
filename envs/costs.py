"""What every segment of a profile costs, as matrices: what the environment steps on and the exact solver reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from splitload.plan.ceiling import Ceiling
from splitload.plan.costs import CostMatrices, LoadSums
from splitload.plan.profile import Profile


def cost_matrices(profile: Profile, ceiling: Ceiling | None = None) -> CostMatrices:
    """Return `profile.cost(s, e)` for every segment; equal to it up to the rounding of a sum. A ceiling is kept beside.

    Prefix sums make this O(N²); asking the profile for each segment would take O(N³).
    """
    size = profile.num_blocks + 1
    legal = np.triu(np.ones((size, size), dtype=bool), k=1)
    loads = np.array([float(block.cost.load_s) for block in profile.blocks])
    firsts = np.array([float(block.cost.first_inference_s) for block in profile.blocks])
    firsts *= profile.inference_scale("first_inference_s")
    laters = np.array([float(block.cost.inference_s) for block in profile.blocks])
    laters *= profile.inference_scale("inference_s")

    def sums(values: NDArray[np.float64]) -> NDArray[np.float64]:
        upto = np.concatenate(([0.0], np.cumsum(values)))
        between: NDArray[np.float64] = np.maximum(upto[None, :] - upto[:, None], 0.0)
        return between

    slowest = np.zeros((size, size))
    for start in range(profile.num_blocks):
        slowest[start, start + 1 :] = np.maximum.accumulate(loads[start:])
    counts = np.arange(size, dtype=np.float64)[None, :] - np.arange(size)[:, None]
    blocks = LoadSums(counts, sums(loads), sums(loads**2), slowest)
    load_s = profile.load_model.load_s(blocks, larger=np.maximum)
    read_s = np.minimum(sums(np.array([block.cost.read_s for block in profile.blocks])), load_s)
    load_s, first_s, read_s, later_s = (
        np.where(legal, cost, np.inf) for cost in (load_s, sums(firsts), read_s, sums(laters))
    )
    further = profile.contention, profile.cut_inference_s, profile.come_again_s_per_byte, ceiling
    matrices = CostMatrices(load_s, first_s, read_s, later_s, *further)
    for (start, end), cost in profile.segments.items():
        matrices.load_s[start, end] = cost.load_s
        matrices.first_inference_s[start, end] = cost.first_inference_s
        matrices.read_s[start, end] = cost.read_s
        matrices.inference_s[start, end] = cost.inference_s
    return matrices

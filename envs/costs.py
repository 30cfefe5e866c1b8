"""What every segment of a profile costs, as matrices: what the environment steps on and the exact solver reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitload.profile import Profile


@dataclass(frozen=True, slots=True, eq=False)
class CostMatrices:
    """Seconds of every segment, alone and without contention.

    Both are of shape `(N + 1, N + 1)` and type float64: entry `[s, e]` is the cost of the blocks `[s, e)`, and
    infinite where `s >= e`.

    Attributes:
        load_s: Seconds until the segment is loaded.
        first_inference_s: Seconds of its first inference.
    """

    load_s: NDArray[np.float64]
    first_inference_s: NDArray[np.float64]


def cost_matrices(profile: Profile) -> CostMatrices:
    """Return `profile.cost(s, e)` for every segment; equal to it up to the rounding of a sum.

    Prefix sums make this O(N²); asking the profile for each segment would take O(N³).
    """
    size = profile.num_blocks + 1
    legal = np.triu(np.ones((size, size), dtype=bool), k=1)
    loads = np.array([block.cost.load_s for block in profile.blocks]) - profile.stage_fixed_s
    infers = np.array([block.cost.first_inference_s for block in profile.blocks])

    def segments(values: NDArray[np.float64], fixed: float) -> NDArray[np.float64]:
        sums = np.concatenate(([0.0], np.cumsum(values)))
        return np.where(legal, np.maximum(sums[None, :] - sums[:, None], 0.0) + fixed, np.inf)

    load_s, first_inference_s = segments(loads, profile.stage_fixed_s), segments(infers, 0.0)
    for (start, end), cost in profile.segments.items():
        load_s[start, end] = cost.load_s
        first_inference_s[start, end] = cost.first_inference_s
    return CostMatrices(load_s, first_inference_s)

"""Which plans are measured once more: those that may be the best, until what they take is known well enough.

Samples scatter by a hundredth on storage of 20 MB/s and by a tenth on a quarter of a processor. So many rounds as the
second needs would take hours on the first; so few as the first needs would let noise say which plan is the best.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence

from splitload.planner.race import median_error

Samples = Sequence[Mapping[str, float] | None]
FEWEST_RUNS = 5
NEAR = 0.12  # a plan so much behind the best after `FEWEST_RUNS` is not measured again
KNOWN = 0.01  # relative standard error of a median at which it is known well enough


def contenders(
    samples: Sequence[Samples], running: Collection[int], judged: int, fitting: Collection[int]
) -> list[int]:
    """Return which plans another round is measured of; none where all that counts is known.

    Those are the ones near the best of all, and the ones near the best of those that count as best.

    Args:
        samples: Of each plan.
        running: The plans that were measured in the last round.
        judged: The plan that all this is about, which is always measured.
        fitting: The plans that keep to the memory of the class.
    """
    if min(len(samples[number]) for number in running) < FEWEST_RUNS:
        return list(running)
    medians_s = {number: median_s(samples[number]) for number in running}
    near = [number for number in running if number == judged or _is_near(number, medians_s, fitting)]
    return near if any(relative_error(samples[number]) > KNOWN for number in near) else []


def _is_near(number: int, medians_s: Mapping[int, float], fitting: Collection[int]) -> bool:
    """Return whether a plan is near the best of all, or of those that fit if it does."""
    rivals = [seconds for other, seconds in medians_s.items() if number not in fitting or other in fitting]
    return medians_s[number] <= (1 + NEAR) * min(rivals)


def median_s(samples: Samples) -> float:
    """Return the median time to first output, a failed sample being the worst there is, in seconds."""
    return statistics.median([math.inf if each is None else each["ttfo_s"] for each in samples])


def relative_error(samples: Samples) -> float:
    """Return the standard error of the median of some samples, relative to it; see `median_error`."""
    middle_s = median_s(samples)
    if math.isinf(middle_s):
        return 0.0  # more samples would not mend it
    return median_error([math.inf if each is None else each["ttfo_s"] for each in samples]) / middle_s

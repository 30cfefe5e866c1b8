"""What an environment pays for a stage; the other reward, TTFO, is `splitload.plan.schedule.Clock`'s."""

from __future__ import annotations

__all__ = ["balance_reward"]


def balance_reward(load_s: float, target_s: float, tolerance_s: float, one_sided: bool = False) -> float:
    """Return 0.0 if a stage's load time is within the tolerance of its target, else -1.0.

    Source: eq. 4 of the ICLR 2021 submission, `|τ - T/C| <= ε`; with `one_sided` the form of its prose, "at max
    equal", `τ <= T/C + ε`, for which a negative tolerance is meaningful too.

    Args:
        load_s: τ, seconds the stage takes to load alone.
        target_s: T/C, seconds the whole model takes to load, divided by the number of stages.
        tolerance_s: ε in seconds.
        one_sided: Whether a stage that loads faster than the target is always right.
    """
    excess_s = load_s - target_s
    within = excess_s <= tolerance_s and (one_sided or -excess_s <= tolerance_s)
    return 0.0 if within else -1.0

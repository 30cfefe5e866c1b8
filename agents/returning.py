"""Return first, then explore: which plan an episode returns to, and where it departs from it.

Where rewards depend on the past (more stages than threads), no value of a state says how good it is, and episodes that
begin anew seldom end near the best. So most of them return to the plan where the search stands, and depart from it at
one place (A. Ecoffet et al., "First return, then explore", Nature 590, 2021). Two rules make that quick:

- *Blame.* A reward is minus the seconds by which a stage moves the first output. The last stage that earned less than 0
  holds all up, and so do those that its load waited for, where the environment says which (`info["held_up_by"]`). An
  episode mostly has one of these give blocks to another stage, and all cuts between the two move along; sometimes any
  stage gives, or one cut is made anywhere else.
- *A lowered bar.* The search stands wherever an episode ended whose return is at most so much below the one before as
  an exponential draw with the mean `temperature * |record|` allows; an episode that falls below is left. That is the
  rule of N. Metropolis et al., "Equation of state calculations by fast computing machines", J. Chem. Phys. 21, 1953,
  with its draw made before the episode, and the temperature constant.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["Stand", "departed"]

_ELSEWHERE = 0.1  # of the departures make one cut anywhere else; of all others
_LAST, _BLAMED = 0.33, 0.67  # so many begin at the stage that holds all up, up to so many at it or what it waited for
_LOG_FURTHER = math.log(0.45)  # of the share of departures that move one block further


@dataclass(frozen=True, slots=True)
class Stand:
    """The plan that episodes return to.

    Attributes:
        reward: Its return.
        actions: What led to it.
        blamed: The stages that hold it up, from 0; at least one.
    """

    reward: float
    actions: Sequence[int]
    blamed: Sequence[int]

    def lowered(self, bar: float, temperature: float, draw: Callable[[], float]) -> float:
        """Return the return above which the search stands where an episode ends.

        Args:
            bar: The record's return.
            temperature: By what share of that an episode may be worse, in the mean.
            draw: Returns a number from 0 to below 1.
        """
        return self.reward + temperature * bar * -math.log(1 - draw())


def departed(stand: Stand, lowest: int, draw: Callable[[], float]) -> list[int]:
    """Return the actions of an episode that departs from a plan: mostly one stage gives blocks to another.

    Args:
        stand: The plan, of at least two stages.
        lowest: The least action that is legal at the start.
        draw: Returns a number from 0 to below 1.
    """
    actions = list(stand.actions)
    if draw() < _ELSEWHERE:
        del actions[int(draw() * (len(actions) - 1))]
        return sorted({*actions, lowest + int(draw() * (actions[-1] - lowest))})
    blame = draw()
    givers = stand.blamed[:1] if blame < _LAST else stand.blamed if blame < _BLAMED else range(len(actions))
    giver = givers[int(draw() * len(givers))]
    taker = int(draw() * (len(actions) - 1))
    taker += taker >= giver
    spare = actions[giver] - (actions[giver - 1] if giver else lowest - 1) - 1
    moved = min(1 + int(math.log(1 - draw()) / _LOG_FURTHER), spare)
    if taker > giver:
        for place in range(giver, taker):
            actions[place] -= moved
    else:
        for place in range(taker, giver):
            actions[place] += moved
    return actions

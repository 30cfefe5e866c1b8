"""Who searches: every agent by the word that `--agent` takes, and the rules that a learned plan stands beside.

A learning agent is trained on the environment, see `Search`. All others are rules: they cut a model into a given number
of stages. What they need is imported where they are called, so that a command line names them without it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitload.agents.exact_ttfo import Optimum
    from splitload.agents.q_learning import QLearning
    from splitload.envs.split import SplitEnv
    from splitload.plan.ceiling import Ceiling
    from splitload.plan.costs import CostMatrices
    from splitload.plan.profile import Profile


@dataclass(frozen=True, slots=True)
class Question:
    """What a rule is asked: to cut a profiled model into so many stages.

    Attributes:
        profile: Costs of the model on the device.
        costs: The same as matrices.
        num_stages: How many stages.
        trainable_from: First trainable block; the last stage begins there. None where none is trained.
        seed: Of rules that draw.
        value: Returns what the objective makes small of some split points, in seconds; infinite where they do not fit.
        optimum: Returns the best plan there is for the objective.
    """

    profile: Profile
    costs: CostMatrices
    num_stages: int
    trainable_from: int | None
    seed: int
    value: Callable[[tuple[int, ...]], float]
    optimum: Callable[[], Optimum]

    def fitted(self, split_points: tuple[int, ...]) -> tuple[int, ...]:
        """Return the split points, or under a ceiling that does not allow them the nearest that it does."""
        allowed = self.costs.allowed(self.num_stages)
        if allowed is None:
            return split_points
        from splitload.agents.baselines import nearest_allowed

        return nearest_allowed(split_points, allowed, self.trainable_from)


Rule = Callable[[Question], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Agent:
    """One who searches: either a rule, or one that learns.

    Attributes:
        rule: Returns the split points; None for an agent that learns.
        learner: Returns what learns on an environment, by a seed; None for a rule.
        seeded: Whether another seed may give another plan.
        takes_best: Whether the best plan known is taken, be it that of a rule; otherwise the agent's own.
    """

    rule: Rule | None = None
    learner: Callable[[SplitEnv, int], QLearning] | None = None
    seeded: bool = False
    takes_best: bool = False


def _q_learning(env: SplitEnv, seed: int) -> QLearning:
    from splitload.agents.q_learning import QLearning

    return QLearning(env, seed=seed)


def _sarsa(env: SplitEnv, seed: int) -> QLearning:
    from splitload.agents.q_learning import QLearning

    return QLearning(env, sarsa=True, seed=seed)


def _exact(asked: Question) -> Sequence[int]:
    return asked.optimum().split_points


def _annealing(asked: Question) -> Sequence[int]:
    from splitload.agents.annealing import anneal
    from splitload.agents.baselines import random_partition

    where = asked.profile.num_blocks, asked.num_stages, asked.trainable_from
    return anneal(asked.value, *where, seed=asked.seed, start=asked.fitted(random_partition(*where, seed=asked.seed)))


def _uniform_bytes(asked: Question) -> Sequence[int]:
    from splitload.agents.baselines import uniform_bytes

    weights_bytes = [block.weights_bytes for block in asked.profile.blocks]
    return asked.fitted(uniform_bytes(weights_bytes, asked.num_stages, asked.trainable_from))


def _uniform_blocks(asked: Question) -> Sequence[int]:
    from splitload.agents.baselines import uniform_blocks

    return asked.fitted(uniform_blocks(asked.profile.num_blocks, asked.num_stages, asked.trainable_from))


def _random(asked: Question) -> Sequence[int]:
    from splitload.agents.baselines import random_partition

    where = asked.profile.num_blocks, asked.num_stages, asked.trainable_from
    return asked.fitted(random_partition(*where, seed=asked.seed))


def _even_loads(asked: Question) -> Sequence[int]:
    from splitload.agents.exact import balance

    allowed = asked.costs.allowed(asked.num_stages)
    return balance(asked.costs.load_s, asked.num_stages, asked.trainable_from, allowed=allowed)[0]


DEFAULT_AGENT = "best"
AGENTS = {
    "best": Agent(learner=_q_learning, seeded=True, takes_best=True),
    "q-learning": Agent(learner=_q_learning, seeded=True),
    "sarsa": Agent(learner=_sarsa, seeded=True),
    "exact": Agent(_exact),
    "annealing": Agent(_annealing, seeded=True),
    "uniform": Agent(_uniform_bytes),
    "random": Agent(_random, seeded=True),
}
LEARNERS = tuple(name for name, agent in AGENTS.items() if agent.learner)
SEEDED = tuple(name for name, agent in AGENTS.items() if agent.seeded)
BASELINES: dict[str, Rule] = {  # that are valued beside every plan
    "exact": _exact,
    "annealing": _annealing,
    "uniform_bytes": _uniform_bytes,
    "uniform_blocks": _uniform_blocks,
    "random": _random,
}
QUICK: dict[str, Rule] = {  # that tell how many stages are worth looking at
    "even_loads": _even_loads,
    "uniform_bytes": _uniform_bytes,
    "uniform_blocks": _uniform_blocks,
}


def agent_named(name: str) -> Agent:
    """Return an agent, or a baseline as one."""
    return AGENTS[name] if name in AGENTS else Agent(BASELINES[name])


def within(
    ceiling: Ceiling, num_stages: int, value: Callable[[tuple[int, ...]], float]
) -> Callable[[tuple[int, ...]], float]:
    """Return what values the plans of so many stages that fit; others are infinitely bad."""
    weights_bytes, room_bytes = ceiling.weights_bytes, ceiling.room_bytes(num_stages)
    num_blocks = ceiling.needs.num_blocks

    def value_within(points: tuple[int, ...]) -> float:
        fits = all(weights_bytes[start][end] <= room_bytes for start, end in pairwise((0, *points, num_blocks)))
        return value(points) if fits else math.inf

    return value_within

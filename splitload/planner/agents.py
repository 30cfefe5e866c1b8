"""Who searches: every agent by the word that `--agent` takes, and the rules that a learned plan stands beside.

A learning agent is trained on the environment, see `Search`. All others are rules: they cut a model into a given number
of stages. What they need is imported where they are called, so that a command line names them without it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from splitload.agents.exact_ttfo import Optimum
    from splitload.plan.costs import CostMatrices
    from splitload.plan.profile import Profile


@dataclass(frozen=True, slots=True)
class Question:
    """What a rule is asked: to cut a profiled model into so many stages.

    Attributes:
        profile: Costs of the model on the device.
        costs: The same as matrices.
        num_stages: How many stages.
        trainable_from: First trainable block; it and all after it lie in the last stage. None where none is trained.
        seed: Of rules that draw.
        value: Returns what the objective makes small of some split points, in seconds.
        optimum: Returns the best plan there is for the objective.
    """

    profile: Profile
    costs: CostMatrices
    num_stages: int
    trainable_from: int | None
    seed: int
    value: Callable[[tuple[int, ...]], float]
    optimum: Callable[[], Optimum]


Rule = Callable[[Question], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Agent:
    """One who searches.

    Attributes:
        rule: Returns the split points; None for an agent that learns.
        seeded: Whether another seed may give another plan.
    """

    rule: Rule | None
    seeded: bool = False


def _exact(asked: Question) -> Sequence[int]:
    return asked.optimum().split_points


def _annealing(asked: Question) -> Sequence[int]:
    from splitload.agents.annealing import anneal

    return anneal(asked.value, asked.profile.num_blocks, asked.num_stages, asked.trainable_from, seed=asked.seed)


def _uniform_bytes(asked: Question) -> Sequence[int]:
    from splitload.agents.baselines import uniform_bytes

    weights_bytes = [block.weights_bytes for block in asked.profile.blocks]
    return uniform_bytes(weights_bytes, asked.num_stages, asked.trainable_from)


def _uniform_blocks(asked: Question) -> Sequence[int]:
    from splitload.agents.baselines import uniform_blocks

    return uniform_blocks(asked.profile.num_blocks, asked.num_stages, asked.trainable_from)


def _random(asked: Question) -> Sequence[int]:
    from splitload.agents.baselines import random_partition

    return random_partition(asked.profile.num_blocks, asked.num_stages, asked.trainable_from, seed=asked.seed)


def _even_loads(asked: Question) -> Sequence[int]:
    from splitload.agents.exact import balance

    return balance(asked.costs.load_s, asked.num_stages, asked.trainable_from)[0]


AGENTS = {
    "q-learning": Agent(None, seeded=True),
    "sarsa": Agent(None, seeded=True),
    "exact": Agent(_exact),
    "annealing": Agent(_annealing, seeded=True),
    "uniform": Agent(_uniform_bytes),
    "random": Agent(_random, seeded=True),
}
LEARNERS = tuple(name for name, agent in AGENTS.items() if agent.rule is None)
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


def rule_of(name: str) -> Rule | None:
    """Return the rule of an agent or a baseline; None for an agent that learns."""
    return AGENTS[name].rule if name in AGENTS else BASELINES[name]

"""Agents that choose split points: tabular reinforcement learning, the exact optimum, and baselines.

An agent knows an environment or a cost matrix, not a neural network: nothing here imports the rest of splitload.
"""

from splitload.agents.annealing import anneal
from splitload.agents.baselines import nearest_allowed, random_partition, uniform_blocks, uniform_bytes
from splitload.agents.exact import balance
from splitload.agents.exact_steady import steady
from splitload.agents.exact_ttfo import Optimum, ttfo
from splitload.agents.q_learning import QLearning
from splitload.agents.results import Plan, Progress, SearchResult

__all__ = [
    "Optimum",
    "Plan",
    "Progress",
    "QLearning",
    "SearchResult",
    "anneal",
    "balance",
    "nearest_allowed",
    "random_partition",
    "steady",
    "ttfo",
    "uniform_blocks",
    "uniform_bytes",
]

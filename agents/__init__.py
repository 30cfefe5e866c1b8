"""Agents that choose split points: tabular reinforcement learning, the exact optimum, and simple baselines.

An agent knows an environment or a cost matrix, not a neural network: nothing here imports the rest of splitload.
"""

from splitload.agents.baselines import random_partition, uniform_blocks, uniform_bytes
from splitload.agents.exact import balance, ttfo
from splitload.agents.q_learning import Plan, Progress, QLearning, SearchResult

__all__ = [
    "Plan",
    "Progress",
    "QLearning",
    "SearchResult",
    "balance",
    "random_partition",
    "ttfo",
    "uniform_blocks",
    "uniform_bytes",
]

"""What a search can be asked for."""

from __future__ import annotations

AGENTS = ("q-learning", "sarsa", "exact", "annealing", "uniform", "random")
LEARNERS = ("q-learning", "sarsa")
OBJECTIVES = ("balance", "ttfo")

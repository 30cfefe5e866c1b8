"""Learned plans and the optima they are held against, as jobs that `run_all` runs beside each other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from splitload.agents import baselines
from splitload.agents.q_learning import QLearning
from splitload.agents.results import Plan, StopReason
from splitload.envs.split import SplitEnv
from splitload.plan.objectives import objective_named
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.optimum import least_s_of

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Setting:
    """How a plan is learned; by default as `splitload train` does it, but each number of stages to the end.

    Attributes:
        agent: Arguments of `QLearning`, besides the environment and the seed.
        env: Arguments of `SplitEnv`, besides the profile, the objective and the most stages.
        train: Arguments of `QLearning.train`, besides the numbers of stages and where to start.
        rewarded: The objective whose reward is learned, where it is not the one that plans are valued by.
        warm: Whether the first episode follows the plan of equal bytes.
        gives_up: Whether numbers of stages that are far behind others are given up, as `splitload train` has it.
    """

    agent: Mapping[str, Any] = field(default_factory=dict)
    env: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    rewarded: str | None = None
    warm: bool = False
    gives_up: bool = False


@dataclass(frozen=True, slots=True)
class LearnedPlan:
    """What a search came to for one number of stages.

    Attributes:
        num_stages: k.
        value_s: What the objective makes small, in seconds.
        best_at: Episodes of this k until its best plan.
        episodes: Episodes of this k until the search stopped.
        stopped: Why it did.
    """

    num_stages: int
    value_s: float
    best_at: int
    episodes: int
    stopped: StopReason


@dataclass(frozen=True, slots=True)
class Learned:
    """A search with one seed: its plans, fewest stages first, and the seconds that all of them took."""

    seed: int
    plans: tuple[LearnedPlan, ...]
    search_s: float


def call(function: Callable[..., Result], *arguments: Any) -> Result:
    """Return `function(*arguments)`: the one function of jobs that call different ones."""
    return function(*arguments)


def learn(profile: Profile, objective: str, counts: Sequence[int], seed: int, setting: Setting) -> Learned:
    """Learn a plan for each number of stages, in one search as `splitload train` does it.

    Args:
        profile: Costs of the model on the device.
        objective: What plans are valued by.
        counts: The numbers of stages, the most last.
        seed: Of the agent.
        setting: How to learn.
    """
    start_s = time.perf_counter()
    env = SplitEnv(profile, objective=setting.rewarded or objective, max_stages=counts[-1], **setting.env)
    agent = QLearning(env, seed=seed, **setting.agent)
    start = {count: _equal_bytes(profile, count) for count in counts} if setting.warm else None
    by = objective_named(objective)

    def decides(plan: Plan) -> float:
        return by.deciding_s(profile, Partition(profile.num_blocks, plan.split_points))

    result = agent.train(num_stages=counts, start=start, decides=decides if setting.gives_up else None, **setting.train)
    search_s = time.perf_counter() - start_s
    plans = []
    for count in counts:
        plan, curve = result.plans[count], result.curves[count]
        value_s = plan.value_s
        if setting.rewarded not in (None, objective):
            value_s = least_s_of(profile, objective, Partition.of(profile.num_blocks, plan.split_points))
        episodes = len(result.returns[count])
        plans.append(LearnedPlan(count, value_s, curve[-1][0], episodes, result.stopped[count]))
    return Learned(seed, tuple(plans), search_s)


def figures(stages: Sequence[Mapping[str, Any]], agent: str) -> dict[str, Any]:
    """Return what an agent's plans come to, over the numbers of stages and seeds.

    Plans whose search was given up, as their number of stages was outdone, are counted and left out of all else. A
    ratio is the plan's value divided by the optimum, or by that of the best known plan where nothing is proved; there
    `worst_over_bound` is what the worst plan comes to above the lower bound, and `largest_gap` by what share the best
    known plan can at most be worse than the optimum. Both are None where everything is proved.

    Args:
        stages: Of rows of the record.
        agent: One of those in them.
    """
    found = ratios(stages, agent)
    open_ = [stage for stage in stages if not stage["proved"]]
    over_bound = [each / stage["bound_s"] for stage in open_ for each in _searched_s(stage, agent)]
    return {
        "num_plans": len(found),
        "num_outdone": sum(reason == "outdone" for stage in stages for reason in stage["stopped"][agent]),
        "p90_ratio": float(np.quantile(found, 0.9)),
        "worst_ratio": max(found),
        "worst_over_bound": max(over_bound, default=None),
        "num_proved_by_agent": sum(reason == "proved" for stage in stages for reason in stage["stopped"][agent]),
        "num_optima": len(stages),
        "num_optima_proved": len(stages) - len(open_),
        "largest_gap": max((stage["known_s"] / stage["bound_s"] - 1 for stage in open_), default=None),
    }


def ratios(stages: Sequence[Mapping[str, Any]], agent: str) -> list[float]:
    """Return what each plan that was searched to the end is worth, divided by the optimum or the best known plan."""
    return [learned_s / stage["known_s"] for stage in stages for learned_s in _searched_s(stage, agent)]


def _searched_s(stage: Mapping[str, Any], agent: str) -> list[float]:
    """Return the values of the plans that were searched to the end."""
    found = zip(stage["learned_s"][agent], stage["stopped"][agent], strict=True)
    return [learned_s for learned_s, reason in found if reason != "outdone"]


def trained_ratios(row: Mapping[str, Any]) -> Iterator[tuple[float, float, bool]]:
    """Yield of each run of `as_trained` learned ÷ best known, learned ÷ bound, and whether the optimum is proved."""
    optima = {each["num_stages"]: each for each in row["optima"]}
    for run in row["runs"]:
        best = optima[run["num_stages"]]
        yield run["learned_s"] / best["known_s"], run["learned_s"] / best["bound_s"], best["proved"]


def trained_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what the plans of some rows of `as_trained` come to.

    Learned ÷ exact counts the proved optimum, and elsewhere the best plan known; `worst_over_bound` counts the proved
    bound there.
    """
    found = [each for row in rows for each in trained_ratios(row)]
    known = [ratio for ratio, _, _ in found]
    runs = [run for row in rows for run in row["runs"]]
    return {
        "num_plans": len(found),
        "num_proved": sum(proved for *_, proved in found),
        "p90_ratio": float(np.quantile(known, 0.9)),
        "worst_ratio": max(known),
        "p90_over_bound": float(np.quantile([ratio for _, ratio, _ in found], 0.9)),
        "worst_over_bound": max(ratio for _, ratio, _ in found),
        "worst_deciding": max(run["learned_deciding_s"] / run["taken_deciding_s"] for run in runs),
        "num_taken": sum(run["found_by"] == "q-learning" for run in runs),
        "most_learn_s": max(run["learn_s"] for run in runs),
        "most_search_s": max(run["search_s"] for run in runs),
    }


def _equal_bytes(profile: Profile, count: int) -> list[int]:
    """Return the actions that cut into stages of about equal bytes; see `SplitEnv` for how actions are numbered."""
    points = baselines.uniform_bytes([block.weights_bytes for block in profile.blocks], count)
    return [(count - 1) * profile.num_blocks + end - 1 for end in (*points, profile.num_blocks)]

"""Tabular Q-learning and SARSA over an environment that cuts a model into stages, readable top to bottom.

Source: "Reinforcement Learning Based Asymmetrical DNN Modularization for Optimal Loading", ICLR 2021 submission:
the look-up table and its update, eq. 5, `Q(s,a) += α (r + γ Q(s',a') - Q(s,a))`. The paper prints `a' ~ π(·|s')`,
which is SARSA, and calls it Q-learning; here the maximum over the legal a' is the default and SARSA an option.

Where this differs from the paper, which gives neither α, γ, the exploration, ε of the reward nor a stopping rule:

1.  Actions are masked: only legal ones enter the table.
2.  Each number of stages C is searched on its own, in turns, with `reset(options={"num_stages": C})`.
3.  Optimistic start. Rewards are never positive, so Q = 0 promises more than any action can keep, and the greedy
    policy tries everything that might still be perfect; ties are broken at random. ε-greedy comes on top.
4.  α = 1 and γ = 1: transitions are deterministic and an episode has at most C steps.
5.  Q-learning applies eq. 5 from the last step of an episode to the first, so that what the end taught reaches
    the start at once. SARSA applies it from first to last, as printed.
6.  The tolerance of the reward (eq. 4) is tightened: it starts without bound, and each plan better than all
    before sets it just below what that plan needs. Reward 0 for every stage then means: the record is beaten.
    A smaller tolerance can only lower a return, so the table stays optimistic and is kept.
7.  That makes a proof. Under optimism (3) the value of an action on a path of return 0 never leaves 0, whatever
    α and γ are; so once every value of the starting state is below 0, no plan of return 0 is left. (SARSA
    proves it only without exploration, as its a' must be the best.)
8.  Eq. 4 is two-sided and cannot say "lighter than the target is fine". When the band around T/C is empty or
    worn out (rule below), the search goes on with the one-sided form of the paper's prose, "at max equal", and a
    new table. It ends with the proof that no plan has a smaller largest load. `finish=False` leaves this out:
    eq. 4 alone, with ε-greedy play once the band is empty.

The rule for stopping one C: its proof (7), or `patience` episodes in a row without a better plan.

The defaults are those that found the exact optimum in every trial on synthetic profiles, for both objectives; with
point 8 left out, plans of profiles whose segments cost more than their parts fell behind. For "ttfo" the finish of the
stages before is not in the state, so that nothing is proved and the patience must suffice to try every action. How
near the plans of real models come to the optimum is recorded in results/.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import gymnasium
import numpy as np

__all__ = ["DEFAULT_EPISODES", "Plan", "Progress", "QLearning", "SearchResult"]

DEFAULT_EPISODES = 20_000
"""Most episodes for each number of stages, where the caller sets no budget."""

_EQUAL = 1e-9  # Plans whose values differ by a smaller share count as equal, so that rounding makes no record.

StopReason = Literal["running", "proved", "patience", "episodes", "stopped"]


@dataclass(frozen=True, slots=True)
class Plan:
    """A partition that an episode ended with.

    Attributes:
        num_stages: C.
        split_points: The ends of all stages but the last, in blocks.
        value_s: What the environment's objective makes small, in seconds.
        load_makespan_s: Seconds until every stage is loaded.
        episode: The episode of the whole search that found it, from 1.
    """

    num_stages: int
    split_points: tuple[int, ...]
    value_s: float
    load_makespan_s: float
    episode: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a search stands after an episode.

    Attributes:
        episode: Episodes so far, of all numbers of stages together.
        episodes: The budget; a search may stop before.
        num_stages: C of this episode.
        reward: Its return, the sum of its rewards.
        epsilon: Share of actions drawn at random in it.
        best_value_s: Value in seconds of the best plan so far for this C.
        best_split_points: Its split points.
    """

    episode: int
    episodes: int
    num_stages: int
    reward: float
    epsilon: float
    best_value_s: float
    best_split_points: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found, whole or interrupted.

    Attributes:
        plans: The best plan for each number of stages that had an episode.
        returns: The return of every episode, in order, for each number of stages.
        stopped: Why the search of each number of stages ended: "proved", "patience", "episodes" (the budget),
            "stopped" (on request), or "running" if it was interrupted.
        episodes: Episodes run in all.
    """

    plans: Mapping[int, Plan]
    returns: Mapping[int, tuple[float, ...]]
    stopped: Mapping[int, StopReason]
    episodes: int

    @property
    def best(self) -> Plan:
        """The plan with the smallest value; of equals the one with the fewest stages."""
        return min(self.plans.values(), key=lambda plan: (plan.value_s, plan.num_stages))


@dataclass(slots=True)
class _Search:
    """The state of the search for one number of stages."""

    options: dict[str, Any]
    table: dict[bytes, tuple[list[int], list[float]]] = field(default_factory=dict)
    plan: Plan | None = None
    returns: list[float] = field(default_factory=list)
    idle: int = 0
    band_empty: bool = False
    stopped: StopReason = "running"


class QLearning:
    """Tabular Q-learning or SARSA.

    The environment must take the reset options `num_stages` and `tolerance_s`, give array observations and no
    positive rewards, and give in `info` the `action_mask`, and at the end `split_points`, `value_s` and
    `load_makespan_s`. If it also gives `excess_s` and `one_sided`, its rewards are of eq. 4, and the tolerance is
    tightened by the reset options `tolerance_s` and `one_sided`. `splitload.envs.SplitEnv` does all that.

    Everything found so far is in `result()` at any time, so also after a `KeyboardInterrupt` left `train`.

    Args:
        env: The environment.
        sarsa: Update with the action taken next instead of the best one.
        learning_rate: α, in (0, 1].
        discount_factor: γ, in [0, 1].
        epsilon_start: Share of random actions in the first episode of a number of stages, in [0, 1].
        epsilon_end: The share it falls to, linearly.
        epsilon_episodes: The episodes this takes, at least 1.
        seed: Seed of ties and exploration.

    Raises:
        ValueError: If a number is outside its range.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        *,
        sarsa: bool = False,
        learning_rate: float = 1.0,
        discount_factor: float = 1.0,
        epsilon_start: float = 0.1,
        epsilon_end: float = 0.02,
        epsilon_episodes: int = 2_000,
        seed: int = 0,
    ) -> None:
        if not 0 < learning_rate <= 1:
            raise ValueError(f"learning_rate must be above 0 and at most 1, it is {learning_rate}")
        shares = {"discount_factor": discount_factor, "epsilon_start": epsilon_start, "epsilon_end": epsilon_end}
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, it is {share}")
        if epsilon_episodes < 1:
            raise ValueError(f"epsilon_episodes must be at least 1, it is {epsilon_episodes}")
        self.env = env
        self.sarsa = sarsa
        self.learning_rate = learning_rate
        self.discount_factor = discount_factor
        self.epsilon_start = epsilon_start
        self.epsilon_end = epsilon_end
        self.epsilon_episodes = epsilon_episodes
        self.seed = seed
        self._rng = random.Random(seed)  # noqa: S311 - not for secrets
        self._searches: dict[int, _Search] = {}
        self._episode = 0

    def train(
        self,
        *,
        num_stages: Sequence[int],
        episodes: int | None = None,
        patience: int = 4_000,
        finish: bool = True,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> SearchResult:
        """Search the best plan for each number of stages, taking turns, and return what was found.

        A search starts anew at each call.

        Args:
            num_stages: The numbers of stages C to search; each is searched once.
            episodes: Most episodes in all; by default `DEFAULT_EPISODES` for each C.
            patience: Episodes in a row without a better plan after which a C is given up, or its one-sided search
                begins.
            finish: Whether the one-sided search follows, point 8 in the head of this file.
            on_progress: Called after each episode.
            should_stop: Asked before each episode; true ends the search.

        Raises:
            ValueError: If there is nothing to search, or `episodes` or `patience` is below 1.
        """
        counts = sorted(set(num_stages))
        if not counts:
            raise ValueError("num_stages is empty: give at least one number of stages")
        budget = DEFAULT_EPISODES * len(counts) if episodes is None else episodes
        for name, value in {"episodes": budget, "patience": patience}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, it is {value}")
        self._rng = random.Random(self.seed)  # noqa: S311 - not for secrets
        self._searches = {count: _Search({"num_stages": count, "tolerance_s": math.inf}) for count in counts}
        self._episode = 0
        self.env.reset(seed=self.seed)
        reason: StopReason = "episodes"
        while active := [search for search in self._searches.values() if search.stopped == "running"]:
            for search in active:
                if should_stop is not None and should_stop():
                    reason = "stopped"
                elif self._episode < budget:
                    epsilon = self._epsilon(len(search.returns))
                    info = self._play(search, epsilon)
                    plan = self._judge(search, info, patience, finish)
                    if on_progress is not None:
                        on_progress(self._progress(search, plan, budget, epsilon))
                    continue
                for unfinished in active:
                    if unfinished.stopped == "running":
                        unfinished.stopped = reason
                break
        return self.result()

    def result(self) -> SearchResult:
        """Return what has been found so far."""
        searches = self._searches
        return SearchResult(
            plans={count: search.plan for count, search in searches.items() if search.plan is not None},
            returns={count: tuple(search.returns) for count, search in searches.items()},
            stopped={count: search.stopped for count, search in searches.items()},
            episodes=self._episode,
        )

    def _epsilon(self, episode: int) -> float:
        """Return the share of random actions in a search's episode, counted from 0."""
        done = min(1.0, episode / self.epsilon_episodes)
        return self.epsilon_start + done * (self.epsilon_end - self.epsilon_start)

    def _play(self, search: _Search, epsilon: float) -> dict[str, Any]:
        """Play one episode, learn from it, and return its last `info`."""
        env, rng, table = self.env, self._rng, search.table
        observation, info = env.reset(options=search.options)
        path: list[tuple[list[float], int, float]] = []  # values of the state, which of them was taken, reward
        over = False
        while not over:
            key = observation.tobytes()
            row = table.get(key)
            if row is None:
                actions = np.flatnonzero(info["action_mask"]).tolist()
                row = table[key] = (actions, [0.0] * len(actions))
            actions, values = row
            if epsilon and rng.random() < epsilon:
                taken = int(rng.random() * len(values))
            else:
                most = max(values)
                ties = [index for index, value in enumerate(values) if value == most]
                taken = ties[int(rng.random() * len(ties))]
            observation, reward, terminated, truncated, info = env.step(actions[taken])
            over = terminated or truncated
            path.append((values, taken, float(reward)))
        self._learn(path)
        self._episode += 1
        search.returns.append(sum(reward for _, _, reward in path))
        return info

    def _learn(self, path: list[tuple[list[float], int, float]]) -> None:
        """Apply eq. 5 along an episode; see point 5 in the head of this file."""
        alpha, gamma = self.learning_rate, self.discount_factor
        if self.sarsa:
            following = [values[taken] for values, taken, _ in path[1:]] + [0.0]
            for (values, taken, reward), after in zip(path, following, strict=True):
                values[taken] += alpha * (reward + gamma * after - values[taken])
        else:
            after = 0.0
            for values, taken, reward in reversed(path):
                values[taken] += alpha * (reward + gamma * after - values[taken])
                after = max(values)

    def _judge(self, search: _Search, info: dict[str, Any], patience: int, finish: bool) -> Plan:
        """Keep the plan if it is the best, tighten the tolerance, and decide whether and how the search goes on.

        Returns the best plan so far.
        """
        value_s = info["value_s"]
        search.idle += 1
        plan = search.plan
        if plan is None or value_s < plan.value_s * (1 - _EQUAL):
            points = tuple(info["split_points"])
            search.plan = plan = Plan(len(points) + 1, points, value_s, info["load_makespan_s"], self._episode)
            search.idle = 0
            if "excess_s" in info:
                search.options["tolerance_s"] = info["excess_s"] - _EQUAL * value_s
        if "excess_s" in info and not search.band_empty and self._start_below_zero(search):
            search.band_empty = True
            if info["one_sided"]:
                search.stopped = "proved"
            elif finish:
                self._finish(search)
            else:
                search.idle = 0
        if search.stopped == "running" and search.idle >= patience:
            if finish and "excess_s" in info and not info["one_sided"] and "one_sided" not in search.options:
                self._finish(search)
            else:
                search.stopped = "patience"
        return plan

    def _finish(self, search: _Search) -> None:
        """Turn to the one-sided reward; what was learned of the two-sided one is no longer optimistic."""
        search.options["one_sided"] = True
        search.table = {}
        search.idle = 0
        search.band_empty = False

    def _start_below_zero(self, search: _Search) -> bool:
        """Return whether it is proved that no plan of return 0 is left; the table's first row is the start's."""
        if self.sarsa and (self.epsilon_start > 0 or self.epsilon_end > 0):
            return False
        _, values = next(iter(search.table.values()), ([], [0.0]))
        return max(values) < 0

    def _progress(self, search: _Search, plan: Plan, episodes: int, epsilon: float) -> Progress:
        reward = search.returns[-1]
        return Progress(self._episode, episodes, plan.num_stages, reward, epsilon, plan.value_s, plan.split_points)

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
6.  What is learned is whether the record can be beaten. The tolerance of eq. 4 is tightened: it starts without bound,
    and each plan better than all before sets it just below what that plan needs. Where rewards have no tolerance
    ("ttfo"), the agent learns from 0 for each step up to where the return falls to the record's, and -1 for that one;
    the rest of the episode then teaches nothing and is left out. Reward 0 for every step means: the record is beaten.
7.  A search stops with a proof that no plan beats the record, where what is learned depends on state and action alone;
    otherwise when it has been patient enough. `splitload.agents.stopping` has the rule, the proof and an example.
8.  Eq. 4 is two-sided at first. When its band around T/C is empty or worn out, the search goes on with the one-sided
    form of the paper's prose, "at max equal". `finish=False` leaves this out: eq. 4 alone, with ε-greedy play once the
    band is empty.
9.  Where what an action earns depends on the past (more stages than threads: a load waits for those before), most
    episodes return to a plan that was found, and depart from it at one place: `splitload.agents.returning`.
10. Numbers of stages that are far behind another one are given up, where the caller says what decides between them:
    point "outdone" in `splitload.agents.stopping`.

Why the defaults are what they are is recorded in results/ (the ablation), and how near the plans of real models come to
the optimum.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from splitload.agents.results import Plan, Progress, SearchResult, StopReason
from splitload.agents.returning import departed
from splitload.agents.stopping import EQUAL, SearchState, StoppingRule

__all__ = ["DEFAULT_EPISODES", "QLearning"]

DEFAULT_EPISODES = 3_000
"""Most episodes for each number of stages, where the caller sets no budget."""

_LONGEST = 0.5  # of the episodes of the one-sided form break ties by the longest stage


class QLearning:
    """Tabular Q-learning or SARSA.

    The environment must take the reset options `num_stages` and `tolerance_s`, give array observations and no
    positive rewards, and give in `info` the `action_mask`, and at the end `split_points`, `value_s`,
    `load_makespan_s` and `separable` (`splitload.agents.stopping` says what for). If it also gives `excess_s` and
    `one_sided`, its rewards are of eq. 4, and the tolerance is tightened by the reset options `tolerance_s` and
    `one_sided`; otherwise the larger return must mean the smaller value. Actions that are close in number must mean
    cuts that are close. `splitload.envs.SplitEnv` does all that.

    Everything found so far is in `result()` at any time, so also after a `KeyboardInterrupt` left `train`; and
    `splitload.agents.checkpoint` saves and restores all of it. Between two episodes (`on_progress`, `should_stop`)
    nothing is lost: a search that resumes from there ends as it would have ended.

    Args:
        env: The environment.
        sarsa: Update with the action taken next instead of the best one.
        learning_rate: α, in (0, 1].
        discount_factor: γ, in [0, 1].
        epsilon_start: Share of random actions in the first episode of a number of stages, in [0, 1].
        epsilon_end: The share it falls to, linearly.
        epsilon_episodes: The episodes this takes, at least 1.
        return_share: Share of the episodes that return to a plan, in [0, 1], where rewards depend on more than the
            state.
        temperature: By what share of the record a plan to return to may be worse than the one before, in the mean; not
            negative.
        optimistic: Whether values start at 0; otherwise at -1, as if every action were known to fail.
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
        return_share: float = 0.9,
        temperature: float = 0.006,
        optimistic: bool = True,
        seed: int = 0,
    ) -> None:
        if not 0 < learning_rate <= 1:
            raise ValueError(f"learning_rate must be above 0 and at most 1, it is {learning_rate}")
        shares = {
            "discount_factor": discount_factor,
            "epsilon_start": epsilon_start,
            "epsilon_end": epsilon_end,
            "return_share": return_share,
        }
        for name, share in shares.items():
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must be from 0 to 1, it is {share}")
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be finite and not negative, it is {temperature}")
        if epsilon_episodes < 1:
            raise ValueError(f"epsilon_episodes must be at least 1, it is {epsilon_episodes}")
        self.env = env
        self.sarsa = sarsa
        self.learning_rate = learning_rate
        self.discount_factor = discount_factor
        self.epsilon_start = epsilon_start
        self.epsilon_end = epsilon_end
        self.epsilon_episodes = epsilon_episodes
        self.return_share = return_share
        self.temperature = temperature
        self.optimistic = optimistic
        self.seed = seed
        self.rng = random.Random(seed)  # noqa: S311 - not for secrets
        self.searches: dict[int, SearchState] = {}
        self.episode = 0

    def train(
        self,
        *,
        num_stages: Sequence[int],
        episodes: int | None = None,
        patience: int = 1_500,
        finish: bool = True,
        start: Mapping[int, Sequence[int]] | None = None,
        decides: Callable[[Plan], float] | None = None,
        resume: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> SearchResult:
        """Search the best plan for each number of stages, taking turns, and return what was found.

        A search starts anew at each call, unless it resumes.

        Args:
            num_stages: The numbers of stages C to search; each is searched once.
            episodes: Most episodes in all; by default `DEFAULT_EPISODES` for each C.
            patience: Episodes in a row without a better plan that end a round, see `splitload.agents.stopping`.
            finish: Whether the one-sided search follows, point 8 in the head of this file.
            start: For some C the actions of the first episode: a plan to improve on.
            decides: Returns what decides between plans of different numbers of stages, in seconds; a search whose plan
                is far behind is then given up.
            resume: Go on with the searches that this agent holds, restored or interrupted ones; those of other C are
                dropped, and those that ended at their budget or on request go on.
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
        rule = StoppingRule(patience, finish, self._proves)
        self._begin(counts, start or {}, resume)
        self.env.reset(seed=self.seed)
        reason: StopReason = "episodes"
        while active := [search for search in self.searches.values() if search.stopped == "running"]:
            played = min(len(search.returns) for search in active)  # a resumed search may start amid a round of turns
            active = [search for search in active if len(search.returns) == played]
            for search in active:
                if should_stop is not None and should_stop():
                    reason = "stopped"
                elif self.episode < budget:
                    epsilon = self._epsilon(len(search.returns))
                    info = self._play(search, epsilon)
                    rule.judge(search, info, self.episode)
                    if decides is not None and rule.compares(search):
                        rule.give_up(search, self.searches.values(), decides)
                    if on_progress is not None and (now := self._progress(search, budget, epsilon)) is not None:
                        on_progress(now)
                    continue
                for unfinished in self.searches.values():
                    if unfinished.stopped == "running":
                        unfinished.stopped = reason
                break
        return self.result()

    def result(self) -> SearchResult:
        """Return what has been found so far."""
        searches = self.searches
        return SearchResult(
            plans={count: search.plan for count, search in searches.items() if search.plan is not None},
            returns={count: tuple(search.returns) for count, search in searches.items()},
            curves={count: tuple(search.curve) for count, search in searches.items()},
            stopped={count: search.stopped for count, search in searches.items()},
            episodes=self.episode,
        )

    @property
    def _proves(self) -> bool:
        """Whether values of the starting state below 0 show that no plan of return 0 is left."""
        explores = self.epsilon_start > 0 or self.epsilon_end > 0
        return self.optimistic and not (self.sarsa and explores)

    def _begin(self, counts: Sequence[int], start: Mapping[int, Sequence[int]], resume: bool) -> None:
        """Make the searches of these numbers of stages ready: new ones, or those that are resumed."""
        held = self.searches if resume else {}
        self.searches = {
            count: held.get(count)
            or SearchState({"num_stages": count, "tolerance_s": math.inf}, tuple(start.get(count, ())))
            for count in counts
        }
        if not resume:
            self.rng = random.Random(self.seed)  # noqa: S311 - not for secrets
            self.episode = 0
        for search in self.searches.values():
            if search.stopped in ("episodes", "stopped"):
                search.stopped = "running"

    def _epsilon(self, episode: int) -> float:
        """Return the share of random actions in a search's episode, counted from 0."""
        done = min(1.0, episode / self.epsilon_episodes)
        return self.epsilon_start + done * (self.epsilon_end - self.epsilon_start)

    def _play(self, search: SearchState, epsilon: float) -> dict[str, Any]:
        """Play one episode, learn from it, and return its last `info`; one that cannot be worth its end is left."""
        env, draw, table = self.env, self.rng.random, search.table
        bar = search.bar * (1 - EQUAL)  # returns are negative: this is a little above the record's
        hopeless_below_zero = search.tolerant and search.one_sided
        longest = hopeless_below_zero and draw() < _LONGEST
        known_below_zero = self._proves and hopeless_below_zero
        observation, info = env.reset(options=search.options)
        guide, left_below = self._guide(search, info["action_mask"])
        guided = iter(guide)
        path: list[tuple[list[float], int, float]] = []  # values of the state, which of them was taken, reward
        taken: list[int] = []
        total, last, after, beaten, over = 0.0, 0, 0.0, False, False
        while not over:
            key = observation.tobytes()
            row = table.get(key)
            if row is None or not row[0]:
                actions = np.flatnonzero(info["action_mask"]).tolist()
                values = row[1] if row else []
                if len(values) != len(actions):
                    values = [0.0 if self.optimistic else -1.0] * len(actions)
                row = table[key] = (actions, values)
            actions, values = row
            if known_below_zero and path and (most := max(values)) < 0:
                after = most  # no plan that begins so betters the record
                break
            wanted = next(guided, -1)
            place = bisect_left(actions, wanted)
            if place < len(actions) and actions[place] == wanted:
                index = place
            elif epsilon and draw() < epsilon:
                index = int(draw() * len(values))
            else:
                most = max(values)
                ties = [place for place, value in enumerate(values) if value == most]
                index = ties[-1] if longest else ties[int(draw() * len(ties))]
            observation, given, terminated, truncated, info = env.step(actions[index])
            reward, over = float(given), terminated or truncated
            total += reward
            if reward < EQUAL * total:
                last = len(taken)
            taken.append(actions[index])
            if search.tolerant:
                path.append((values, index, reward))
                if hopeless_below_zero and reward < 0:
                    break
            else:
                if not beaten:
                    beaten = total <= bar
                    path.append((values, index, -1.0 if beaten else 0.0))
                if beaten and total <= left_below:
                    break
        self._learn(path, after)
        self.episode += 1
        search.returns.append(total)
        stands = total > min(left_below, search.bar)
        blamed = info.get("held_up_by", (last,))
        return {**info, "actions": taken, "held_up_by": blamed, "stands": stands} if over else {}

    def _guide(self, search: SearchState, mask: NDArray[np.int8]) -> tuple[Sequence[int], float]:
        """Return the actions this episode follows where they are legal, and the return at which it may be left.

        Args:
            search: Of this number of stages.
            mask: Which first actions are legal.
        """
        stand, draw = search.stand, self.rng.random
        if not search.returns:
            return search.start, -math.inf
        if stand is None:
            return (), -math.inf
        sure = search.separable or search.tolerant  # the table alone ends with a proof, and sooner
        if sure or len(stand.actions) < 2 or draw() >= self.return_share:
            return (), math.inf
        return departed(stand, int(mask.argmax()), draw), stand.lowered(search.bar, self.temperature, draw)

    def _learn(self, path: list[tuple[list[float], int, float]], after: float = 0.0) -> None:
        """Apply eq. 5 along an episode; see point 5 in the head of this file.

        Args:
            path: Values of each state, which of them was taken, and its reward.
            after: The value of the state where it ended: 0, unless it was left there.
        """
        alpha, gamma = self.learning_rate, self.discount_factor
        if self.sarsa:
            following = [values[taken] for values, taken, _ in path[1:]] + [after]
            for (values, taken, reward), after in zip(path, following, strict=True):
                values[taken] += alpha * (reward + gamma * after - values[taken])
        else:
            for values, taken, reward in reversed(path):
                values[taken] += alpha * (reward + gamma * after - values[taken])
                after = max(values)

    def _progress(self, search: SearchState, episodes: int, epsilon: float) -> Progress | None:
        plan, reward = search.plan, search.returns[-1]
        if plan is None:
            return None
        return Progress(self.episode, episodes, plan.num_stages, reward, epsilon, plan.value_s, plan.split_points)

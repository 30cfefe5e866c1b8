"""SplitEnv: an episode cuts one model into stages, the first stage first."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from splitload.envs.costs import cost_matrices
from splitload.envs.rewards import balance_reward
from splitload.errors import UsageError, unknown_name
from splitload.profile import Profile
from splitload.schedule import Clock

OBJECTIVES = ("balance", "ttfo")
OPTIONS = ("num_stages", "tolerance_s", "one_sided")

Observation = NDArray[np.int64]


class SplitEnv(gymnasium.Env[Observation, np.int64]):
    """Cut a model of N blocks into at most K stages that load in parallel.

    ## Description
    A controller walks along the blocks of a profiled model and ends one stage after the other. Each stage is
    charged what the profile says it takes to load (and, for objective "ttfo", to infer). Transitions are
    deterministic.

    ## Action Space
    `Discrete(K * N)`. Action `(C - 1) * N + (end - 1)` is the pair (C, end) of the paper's `C × I`: the model gets
    C stages, and the current stage ends before block `end`, in 1 … N. The first action fixes C; from then on only
    actions of that C are legal. A stage holds at least one block and leaves one for each later stage; the last
    stage ends at N. With `trainable_from`, the last of two or more stages holds every trainable block.

    Which actions are legal stands in `info["action_mask"]` and `action_masks()`. An illegal action is never
    remapped: it ends the episode, see Reward and Episode End. It does not raise, because Gymnasium's contract
    (and `check_env`, which samples without the mask) holds every member of the action space steppable. An action
    outside the space does raise.

    ## Observation Space
    `MultiDiscrete([K + 1, K + 1, N + 1, N + 1])`, the paper's state (C, I, n_p, n_r), int64 of shape (4,):
    number of stages (0 while it is open), stages already cut, blocks in them, blocks left. `n_p + n_r = N`.

    ## Starting State
    (0, 0, 0, N), or (C, 0, 0, N) after `reset(options={"num_stages": C})`: that episode must use C. It also reads

    - `tolerance_s`: ε in seconds for that episode, in place of `tolerance * T / C`; infinite is legal, and so is
      negative, which only a one-sided reward can meet;
    - `one_sided`: the form of the reward for that episode, in place of the argument.

    Both change "balance" only, as "ttfo" has no tolerance. Unknown options raise `UsageError`.

    ## Reward
    - "balance": for each stage as it is cut, 0 if `|τ - T/C| <= ε` and -1 otherwise; τ is the stage's load time
      alone, T the whole model's, `ε = tolerance * T / C`. With `one_sided`, 0 if `τ <= T/C + ε`.
    - "ttfo": minus the seconds by which the stage moves the time to first output that its cuts so far allow: when
      the stage has inferred, plus the inference of all blocks after it. These moves add up to the time to first
      output, so that the return is `-profile.schedule(partition).ttfo_s`. Only waiting for a load costs anything
      after the first stage; where inference times add up, no reward is positive.
    - An illegal action earns `illegal_reward`, which is below the return of every legal episode.

    ## Episode End
    Terminates when the last stage is cut, or at an illegal action. Never truncates.

    ## Information
    Always `action_mask`, int8 of shape (K * N,), 1 where legal, all 0 at the end. After a legal end also

    - `split_points`: tuple of ints, the ends of all stages but the last; `num_stages`: C;
    - `value_s`: what the objective makes small, in seconds: the largest stage load under contention
      ("balance"), or the time to first output ("ttfo");
    - `load_makespan_s`: seconds until every stage is loaded, by the execution policy;
    - `markov`: whether the rewards of this episode depend on nothing but state and action. With "ttfo" that is so
      where no load waits for a thread (stages <= threads), and seconds of inferring and of reading add up;
    - only for "balance", `excess_s`: largest τ minus T/C, in seconds, the one-sided tolerance this plan just meets;
      and `one_sided`: which form of the reward the episode had.

    After an illegal action instead `illegal_action`, a sentence that says what was legal.

    ## Arguments
    - `profile`: a `splitload.profile.Profile`.
    - `objective`: "balance" or "ttfo".
    - `max_stages`: K, at least 1; a model of fewer blocks gets a smaller K.
    - `tolerance`: ε of the reward as a share of T/C, not negative.
    - `one_sided`: a stage may load faster than the target.
    - `trainable_from`: index of the first trainable block, in 0 … N - 1, or None.
    - `render_mode`: "ansi" (the plan so far as one line of text) or None.

    Wrong arguments raise `UsageError`.

    ## References
    "Reinforcement Learning Based Asymmetrical DNN Modularization for Optimal Loading", ICLR 2021 submission,
    eq. 4. Differs: the paper leaves ε, the legality of actions and the fixing of C open.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - declared so by Gymnasium

    def __init__(
        self,
        profile: Profile,
        *,
        objective: Literal["balance", "ttfo"] = "balance",
        max_stages: int = 8,
        tolerance: float = 0.05,
        one_sided: bool = False,
        trainable_from: int | None = None,
        render_mode: str | None = None,
    ) -> None:
        num_blocks = profile.num_blocks
        if objective not in OBJECTIVES:
            raise unknown_name("objective", objective, OBJECTIVES)
        if max_stages < 1:
            raise UsageError(f"max_stages must be at least 1, it is {max_stages}")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise UsageError(f"tolerance must be a finite share of T/C, not negative; it is {tolerance}")
        if trainable_from is not None and not 0 <= trainable_from < num_blocks:
            raise UsageError(f"trainable_from must be a block, 0 to {num_blocks - 1}; it is {trainable_from}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise unknown_name("render mode", render_mode, self.metadata["render_modes"])
        self.profile = profile
        self.objective = objective
        self.max_stages = min(max_stages, num_blocks)
        self.tolerance = tolerance
        self.one_sided = one_sided
        self.trainable_from = trainable_from
        self.render_mode = render_mode
        self.num_blocks = num_blocks
        size = self.max_stages * num_blocks
        self.action_space = spaces.Discrete(size)
        self.observation_space = spaces.MultiDiscrete(
            [self.max_stages + 1, self.max_stages + 1, num_blocks + 1, num_blocks + 1]
        )
        costs = cost_matrices(profile)
        # Lists: reading one number from an array costs several times as much.
        self._load_s: list[list[float]] = costs.load_s.tolist()
        self._infer_s: list[list[float]] = costs.first_inference_s.tolist()
        self._read_s: list[list[float]] = costs.read_s.tolist()
        self._additive = _additive(costs.first_inference_s) and _additive(costs.read_s)
        self._left_s = [row[-1] for row in self._infer_s[:-1]] + [0.0]  # seconds to infer all blocks from here on
        slowdowns = [profile.contention.slowdown(count) for count in range(1, self.max_stages + 1)]
        self._slowdown = [1.0, *slowdowns]
        # No plan takes longer than all its loads one after the other and then all its inferences.
        stage_s = float(np.max(costs.load_s[np.isfinite(costs.load_s)])) * max(slowdowns)
        stage_s += float(np.max(costs.first_inference_s[np.isfinite(costs.first_inference_s)]))
        self.illegal_reward = -float(self.max_stages + 1) if objective == "balance" else -self.max_stages * stage_s - 1
        self._ttfo = objective == "ttfo"
        self._num_stages = 0
        self._bounds = [0]
        self._over = True
        self._tolerance_s: float | None = None
        self._episode_one_sided = one_sided

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see Starting State for `options`.

        Raises:
            UsageError: If an option is unknown or cannot be meant.
        """
        super().reset(seed=seed)
        options = options or {}
        for name in options:
            if name not in OPTIONS:
                raise unknown_name("reset option", name, OPTIONS)
        num_stages = options.get("num_stages")
        if num_stages is not None and not (isinstance(num_stages, int | np.integer) and self.feasible(int(num_stages))):
            most = max(count for count in range(1, self.max_stages + 1) if self.feasible(count))
            raise UsageError(f"num_stages must be from 1 to {most} for this model, it is {num_stages!r}")
        tolerance_s = options.get("tolerance_s")
        if tolerance_s is not None and math.isnan(tolerance_s):
            raise UsageError("tolerance_s must be a number of seconds, it is not a number")
        self._num_stages = 0 if num_stages is None else int(num_stages)
        self._tolerance_s = tolerance_s
        self._episode_one_sided = options.get("one_sided", self.one_sided)
        self._bounds = [0]
        self._over = False
        self._clock = Clock(self.profile.contention.threads, self._slowdown[self._num_stages])
        return self._observation(), {"action_mask": self._mask()}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """End the current stage; see Action Space and Reward.

        Raises:
            gymnasium.error.ResetNeeded: If the episode is over.
            gymnasium.error.InvalidAction: If the action is outside the action space.
        """
        if self._over:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() before step()")
        num_blocks = self.num_blocks
        size = self.max_stages * num_blocks
        if not 0 <= action < size:
            raise gymnasium.error.InvalidAction(f"action must be from 0 to {size - 1}, it is {action!r}")
        num_stages, end = divmod(int(action), num_blocks)
        num_stages, end = num_stages + 1, end + 1
        bounds = self._bounds
        start = bounds[-1]
        low, high = self._ends(num_stages, len(bounds) - 1, start)
        if (self._num_stages and num_stages != self._num_stages) or not low <= end <= high:
            return self._illegal(num_stages, end)
        if not self._num_stages:
            self._num_stages = num_stages
            self._clock.slowdown = self._slowdown[num_stages]
        bounds.append(end)
        load_s = self._load_s[start][end]
        if self._ttfo:
            left_s = self._left_s
            moved_s = self._clock.add(load_s, self._infer_s[start][end], self._read_s[start][end])
            reward = (left_s[start] if start else 0.0) - left_s[end] - moved_s
        else:
            target_s = self._load_s[0][-1] / num_stages
            tolerance_s = self._tolerance_s
            if tolerance_s is None:
                tolerance_s = self.tolerance * target_s
            reward = balance_reward(load_s, target_s, tolerance_s, self._episode_one_sided)
        self._over = end == num_blocks
        info: dict[str, Any] = {"action_mask": self._mask()}
        if self._over:
            info.update(self._summary())
        return self._observation(), reward, self._over, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are legal now, bool of shape (K * N,); the name is sb3-contrib's."""
        return self._mask().astype(np.bool_)

    def feasible(self, num_stages: int) -> bool:
        """Return whether the model can be cut into `num_stages` stages."""
        most = self.num_blocks if self.trainable_from is None else self.trainable_from + 1
        return 1 <= num_stages <= min(self.max_stages, most)

    def render(self) -> str | None:
        """Return the plan so far as one line, for example `[0, 5) [5, 9) … of 12 blocks`, in mode "ansi"."""
        if self.render_mode is None:
            return None
        cut = "".join(f"[{start}, {end}) " for start, end in pairwise(self._bounds))
        return f"{cut}{'' if self._bounds[-1] == self.num_blocks else '… '}of {self.num_blocks} blocks"

    def _ends(self, num_stages: int, cut: int, start: int) -> tuple[int, int]:
        """Return the first and last legal end of the stage after `cut` stages; first > last where none is."""
        later = num_stages - cut - 1
        if later == 0:
            return self.num_blocks, self.num_blocks
        high = self.num_blocks - later
        if self.trainable_from is not None:
            # The last of these later stages must still begin at or before the first trainable block.
            high = min(high, self.trainable_from - later + 1)
        return start + 1, high

    def _mask(self) -> NDArray[np.int8]:
        mask = np.zeros(self.max_stages * self.num_blocks, dtype=np.int8)  # a new one: users keep what they get
        if not self._over:
            cut, start = len(self._bounds) - 1, self._bounds[-1]
            counts = (self._num_stages,) if self._num_stages else range(1, self.max_stages + 1)
            for num_stages in counts:
                low, high = self._ends(num_stages, cut, start)
                row = (num_stages - 1) * self.num_blocks
                mask[row + low - 1 : row + max(high, low - 1)] = 1
        return mask

    def _observation(self) -> Observation:
        start = self._bounds[-1]
        return np.array((self._num_stages, len(self._bounds) - 1, start, self.num_blocks - start), dtype=np.int64)

    def _illegal(self, num_stages: int, end: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        wanted = f"{self._num_stages} stages" if self._num_stages else "any number of stages that leaves room"
        message = (
            f"stage {len(self._bounds)} of {num_stages} cannot end at block {end}: legal are {wanted} "
            "and the ends in info['action_mask'] of the step before"
        )
        self._over = True
        info = {"action_mask": self._mask(), "illegal_action": message}
        return self._observation(), self.illegal_reward, True, False, info

    def _summary(self) -> dict[str, Any]:
        bounds, num_stages = self._bounds, self._num_stages
        largest_s = max(self._load_s[start][end] for start, end in pairwise(bounds))
        if not self._ttfo:  # There no reward needs the clock, and it runs once an episode instead of at each step.
            for start, end in pairwise(bounds):
                self._clock.add(self._load_s[start][end], self._infer_s[start][end], self._read_s[start][end])
        summary: dict[str, Any] = {
            "split_points": tuple(bounds[1:-1]),
            "num_stages": num_stages,
            "value_s": self._clock.inferred_s if self._ttfo else largest_s * self._slowdown[num_stages],
            "load_makespan_s": self._clock.loaded_s,
            "markov": not self._ttfo or (self._additive and num_stages <= self.profile.contention.threads),
        }
        if not self._ttfo:
            summary["excess_s"] = largest_s - self._load_s[0][-1] / num_stages
            summary["one_sided"] = self._episode_one_sided
        return summary


def _additive(cost_s: NDArray[np.float64]) -> bool:
    """Return whether each segment costs what its blocks do, up to rounding."""
    upto = np.concatenate(([0.0], cost_s[0, 1:]))
    legal = np.isfinite(cost_s)
    return bool(np.allclose(cost_s[legal], (upto[None, :] - upto[:, None])[legal], rtol=1e-9, atol=1e-9 * upto[-1]))

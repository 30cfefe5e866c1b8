"""SplitEnv: an episode cuts one model into stages, the first stage first."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from itertools import pairwise
from operator import index
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from splitload.base.errors import UsageError, unknown_name
from splitload.envs.costs import cost_matrices
from splitload.plan.ceiling import Ceiling
from splitload.plan.objectives import DEFAULT_OBJECTIVE, objective_named
from splitload.plan.profile import Profile

OPTIONS = ("num_stages", "tolerance_s", "one_sided")
USUAL_STAGES = 8  # at most, where the caller names no limit

Observation = NDArray[np.int64]
Mask = NDArray[np.int8]
_Legal = range | frozenset[int]
_State = tuple[Observation, _Legal, Mask]
_NONE = range(0)
_INTEGERS = (int, np.integer)
_NUMBERS = (int, float, np.integer, np.floating)


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
    stage ends at N. With `trainable_from`, the last stage is the trainable blocks, so that there are at
    least two, unless all are trainable.

    Which actions are legal stands in `info["action_mask"]` and `action_masks()`, the name that sb3-contrib asks
    for. An illegal action is never remapped: it ends the episode, see Reward and Episode End. It does not raise,
    because Gymnasium's contract (and `check_env`, which samples without the mask) holds every member of the action
    space steppable. An action outside the space does raise.

    ## Observation Space
    `MultiDiscrete([K + 1, K + 1, N + 1, N + 1])`, the paper's state (C, I, n_p, n_r), int64 of shape (4,):
    number of stages (0 while it is open), stages already cut, blocks in them, blocks left. `n_p + n_r = N`.
    Each observation is a new array, the caller's own.

    ## Starting State
    (0, 0, 0, N), or (C, 0, 0, N) after `reset(options={"num_stages": C})`: that episode must use C. It also reads

    - `tolerance_s`: ε in seconds for that episode, in place of `tolerance * T / C`; infinite is legal, and so is
      negative, which only a one-sided reward can meet;
    - `one_sided`: the form of the reward for that episode, in place of the argument.

    Both change "balance" only, as the others have no tolerance. Unknown options raise `UsageError`.

    ## Reward
    - "balance": for each stage as it is cut, 0 if `|τ - T/C| <= ε` and -1 otherwise; τ is the stage's load time
      alone, T the whole model's, `ε = tolerance * T / C`. With `one_sided`, 0 if `τ <= T/C + ε`.
    - "ttfo": minus the seconds by which the stage moves the time to first output that its cuts so far allow: when
      the stage has inferred, plus the least that inferring all blocks after it can take, however they are cut, plus
      what each stage of a cut infers longer, for as many stages as are left. These moves add up to the time to first
      output, so that the return is `-profile.schedule(partition).ttfo_s`. No reward is positive; where inference times
      add up, only waiting for a load costs anything after the first stage.
    - "steady": minus the seconds by which the stage moves the later inference that its cuts so far allow: likewise with
      what each stage adds, and the largest room that one needs under the ceiling. The return is minus the seconds of a
      later inference.
    - "latency" and "throughput": likewise with what each stage adds and the slowest one on the crowd that the ceiling
      is of, see `CrowdCeiling`. The return is minus the seconds of a batch, or of each input.
    - An illegal action earns `illegal_reward`, which is below the return of every legal episode.

    ## Episode End
    Terminates when the last stage is cut, or at an illegal action; after C steps at most. Never truncates. A vector
    environment that resets an ended episode in its next step ignores the action of that step.

    ## Information
    Always `action_mask`, int8 of shape (K * N,), 1 where legal, all 0 at the end; a new array each time, as is what
    `action_masks()` returns. After a legal end also

    - `split_points`: tuple of ints, the ends of all stages but the last; `num_stages`: C;
    - `value_s`: what the objective makes small, in seconds: the largest stage load under contention
      ("balance"), the time to first output ("ttfo"), the time of a later inference ("steady"), of a batch on a crowd
      ("latency") or of each input there ("throughput");
    - `load_makespan_s`: seconds until every stage is loaded, by the execution policy;
    - `separable`: with "ttfo", whether the return after each stage is the least of terms that each depend on one state
      and action alone: minus when a stage is loaded and all blocks from there on have inferred. That is so where no
      load waits for a thread (stages <= threads) and seconds of inferring and of reading add up. With "steady" that is
      so where seconds of inferring and weights add up; with "latency" where first inputs add up, and with "throughput"
      always. With "balance" each reward is such a term, and this is true;
    - only for "ttfo", `held_up_by`: which stages hold up the first output, from 0, last first: the last one that infers
      as soon as it is loaded, the stage that loaded before on its thread, and so on;
    - only for "balance", `excess_s`: largest τ minus T/C, in seconds, the one-sided tolerance this plan just meets;
      and `one_sided`: which form of the reward the episode had.

    After an illegal action instead `illegal_action`, a sentence that says what was legal.

    ## Arguments
    - `profile`: a `splitload.plan.profile.Profile`, or the path of its file.
    - `objective`: "balance", "latency", "steady", "throughput" or "ttfo": the name of a file in
      `splitload.plan.objectives`.
    - `max_stages`: at least 1; None is 8. K is as many, or as the model can have where that is less: N, or
      `trainable_from + 1`.
    - `tolerance`: ε of the reward as a share of T/C, not negative.
    - `one_sided`: a stage may load faster than the target.
    - `trainable_from`: index of the first trainable block, in 0 … N - 1, or None.
    - `ceiling`: a `splitload.plan.ceiling.Ceiling` of the same blocks, or None. Some number of stages up to K must fit.
      "latency" and "throughput" need one of a crowd, a `splitload.plan.crowd_ceiling.CrowdCeiling`: a stage that no
      worker can hold is illegal.
    - `render_mode`: "ansi" (the plan so far as one line of text) or None.

    Wrong arguments raise `UsageError`.

    ## References
    "Reinforcement Learning Based Asymmetrical DNN Modularization for Optimal Loading", ICLR 2021 submission,
    eq. 4. Differs: the paper leaves ε, the legality of actions and the fixing of C open.
    """

    metadata = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - declared so by Gymnasium

    def __init__(
        self,
        profile: Profile | str | os.PathLike[str],
        *,
        objective: str = DEFAULT_OBJECTIVE,
        max_stages: int | None = None,
        tolerance: float = 0.05,
        one_sided: bool = False,
        trainable_from: int | None = None,
        ceiling: Ceiling | None = None,
        render_mode: str | None = None,
    ) -> None:
        if isinstance(profile, str | os.PathLike):
            profile = Profile.read(profile)
        if not isinstance(profile, Profile):
            raise UsageError(f"profile must be a Profile or the path of its file; it is {profile!r:.80}")
        _check_whole(max_stages=max_stages, trainable_from=trainable_from)
        wanted = objective_named(objective)
        self._check(profile, tolerance, one_sided, trainable_from, render_mode)
        num_blocks = profile.num_blocks
        max_stages = stages_there_are(
            USUAL_STAGES if max_stages is None else int(max_stages), num_blocks, trainable_from
        )
        counts = (
            range(fewest_stages(trainable_from), max_stages + 1)
            if ceiling is None
            else _counts(ceiling, max_stages, num_blocks, trainable_from)
        )
        self.profile = profile
        self.objective = objective
        self.max_stages = max_stages
        self.tolerance = tolerance
        self.one_sided = one_sided
        self.trainable_from = trainable_from
        self.ceiling = ceiling
        self.render_mode = render_mode
        self.num_blocks = num_blocks
        self.action_space = spaces.Discrete(max_stages * num_blocks)
        self.observation_space = spaces.MultiDiscrete([max_stages + 1, max_stages + 1, num_blocks + 1, num_blocks + 1])
        self._rewards = wanted.rewards(cost_matrices(profile, ceiling).rows(), max_stages, tolerance)
        self._pay = self._rewards.pay
        self.illegal_reward = self._rewards.illegal
        self._size = max_stages * num_blocks
        # A stage with m stages after it ends at most m blocks before here.
        self._limit = num_blocks if trainable_from is None else trainable_from + 1
        self._ends = {} if ceiling is None else {count: ceiling.ends(count, trainable_from) for count in counts}
        self._strips: dict[bytes, Mask] = {}
        self._states: dict[int, _State] = {}
        self._starts = {count: self._state(count, 0, 0) for count in counts}
        self._starts[0] = self._opening()
        self._num_stages = 0
        self._bounds = [0]
        self._legal: _Legal = _NONE  # empty where no episode is under way
        self._mask = self._window(_NONE)
        self._option_s: float | None = None
        self._one_sided = one_sided

    def _check(
        self,
        profile: Profile,
        tolerance: float,
        one_sided: bool,
        trainable_from: int | None,
        render_mode: str | None,
    ) -> None:
        """Raise `UsageError` for an argument that cannot be meant."""
        if not isinstance(one_sided, bool | np.bool_):
            raise UsageError(f"one_sided must be true or false, it is {one_sided!r:.40}")
        if not (math.isfinite(tolerance) and tolerance >= 0):
            raise UsageError(f"tolerance must be a finite share of T/C, not negative; it is {tolerance}")
        if trainable_from is not None and not 0 <= trainable_from < profile.num_blocks:
            raise UsageError(f"trainable_from must be a block, 0 to {profile.num_blocks - 1}; it is {trainable_from}")
        if render_mode is not None and render_mode not in self.metadata["render_modes"]:
            raise unknown_name("render mode", render_mode, self.metadata["render_modes"])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode; see Starting State for `options`.

        Raises:
            UsageError: If an option is unknown or cannot be meant.
        """
        super().reset(seed=seed)
        options = options or {}
        if not isinstance(options, dict):
            raise UsageError(f"options must be a dict, it is {options!r:.40}")
        for name in options:
            if name not in OPTIONS:
                raise unknown_name("reset option", name, OPTIONS)
        num_stages = options.get("num_stages")
        if num_stages is not None and not (isinstance(num_stages, _INTEGERS) and self.feasible(int(num_stages))):
            fit = "" if self.ceiling is None else ", and must fit under the ceiling"
            fewest = min(count for count in self._starts if count)
            raise UsageError(
                f"num_stages must be from {fewest} to {self.max_stages} for this model{fit}; it is {num_stages!r}"
            )
        tolerance_s = options.get("tolerance_s")
        if tolerance_s is not None and (not isinstance(tolerance_s, _NUMBERS) or math.isnan(tolerance_s)):
            raise UsageError(f"tolerance_s must be a number of seconds, it is {tolerance_s!r}")
        one_sided = options.get("one_sided", self.one_sided)
        if not isinstance(one_sided, bool | np.bool_):
            raise UsageError(f"one_sided must be true or false, it is {one_sided!r}")
        self._option_s = None if tolerance_s is None else float(tolerance_s)
        self._one_sided = bool(one_sided)
        self._bounds = [0]
        self._num_stages = 0
        if num_stages is not None:
            self._fix(int(num_stages))
        observation, self._legal, self._mask = self._starts[self._num_stages]
        return observation.copy(), {"action_mask": self._mask.copy()}

    def step(self, action: np.int64 | int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """End the current stage; see Action Space and Reward.

        Raises:
            gymnasium.error.ResetNeeded: If the episode is over.
            gymnasium.error.InvalidAction: If the action is outside the action space, or no whole number.
        """
        try:
            number = index(action)  # a plain int: those of numpy are several times as slow
        except TypeError:
            raise gymnasium.error.InvalidAction(f"action must be one whole number, it is {action!r}") from None
        if number not in self._legal:
            return self._refuse(number)
        if not self._num_stages:
            self._fix(number // self.num_blocks + 1)
        bounds = self._bounds
        start, end = bounds[-1], number % self.num_blocks + 1
        reward = self._pay(start, end)
        key = len(bounds) * self._size + number  # how many stages are cut now, of how many, and where the last ends
        bounds.append(end)
        state = self._states.get(key)
        if state is None:
            state = self._states[key] = self._state(self._num_stages, len(bounds) - 1, end)
        observation, self._legal, self._mask = state
        info: dict[str, Any] = {"action_mask": self._mask.copy()}
        over = end == self.num_blocks
        if over:
            info |= {"split_points": tuple(bounds[1:-1]), "num_stages": self._num_stages}
            info |= self._rewards.outcome(bounds)
        return observation.copy(), reward, over, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return which actions are legal now, bool of shape (K * N,); the name is sb3-contrib's."""
        return self._mask.astype(np.bool_)

    def feasible(self, num_stages: int) -> bool:
        """Return whether the model can be cut into `num_stages` stages here."""
        return num_stages > 0 and num_stages in self._starts

    def render(self) -> str | None:
        """Return the plan so far as one line, for example `[0, 5) [5, 9) … of 12 blocks`, in mode "ansi"."""
        if self.render_mode is None:
            return None
        cut = "".join(f"[{start}, {end}) " for start, end in pairwise(self._bounds))
        return f"{cut}{'' if self._bounds[-1] == self.num_blocks else '… '}of {self.num_blocks} blocks"

    def _fix(self, num_stages: int) -> None:
        """Let the episode have `num_stages` stages; what depends on their number is worked out once."""
        self._num_stages = num_stages
        self._rewards.begin(num_stages, self._option_s, self._one_sided)

    def _state(self, num_stages: int, cut: int, start: int) -> _State:
        """Return the state where `cut` of `num_stages` stages hold the blocks before `start`.

        Users keep and change what they get, so they get copies of its arrays: half the time of making them anew.
        """
        later = num_stages - cut - 1
        first = start + 1 if later != 1 or self.trainable_from is None else self.trainable_from
        row = (num_stages - 1) * self.num_blocks - 1
        legal: _Legal
        if self._ends and later >= 0:
            legal = frozenset(row + end for end in self._ends[num_stages][later + 1][start])
        elif later > 0:
            legal = range(row + first, row + self._limit - later + 1)
        else:
            legal = range(row + self.num_blocks, row + self.num_blocks + 1) if later == 0 else _NONE
        observation = np.array((num_stages, cut, start, self.num_blocks - start), dtype=np.int64)
        return observation, legal, self._window(legal)

    def _opening(self) -> _State:
        """Return the starting state where the number of stages is open."""
        legal = frozenset[int]().union(*(state[1] for state in self._starts.values()))
        mask = np.zeros(self._size, dtype=np.int8)
        mask[list(legal)] = 1
        mask.flags.writeable = False
        return np.array((0, 0, 0, self.num_blocks), dtype=np.int64), legal, mask

    def _window(self, legal: _Legal) -> Mask:
        """Return the mask of some actions: a window on a strip that all masks of the same pattern share.

        A mask of its own for each state would take gigabytes where models are large.
        """
        first, after = (min(legal), max(legal) + 1) if legal else (0, 0)
        pattern = (
            b"\1" * len(legal) if isinstance(legal, range) else bytes(map(legal.__contains__, range(first, after)))
        )
        strip = self._strips.get(pattern)
        if strip is None:
            strip = self._strips[pattern] = np.zeros(2 * self._size + len(pattern), dtype=np.int8)
            strip[self._size : self._size + len(pattern)] = np.frombuffer(pattern, dtype=np.int8)
            strip.flags.writeable = False
        return strip[self._size - first :][: self._size]

    def _refuse(self, action: int) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Return the step that an illegal action makes, or raise where not even that is one."""
        if not self._legal:
            raise gymnasium.error.ResetNeeded("the episode is over: call reset() before step()")
        if not 0 <= action < self._size:
            raise gymnasium.error.InvalidAction(f"action must be from 0 to {self._size - 1}, it is {action}")
        cut, start = len(self._bounds) - 1, self._bounds[-1]
        wanted = f"{self._num_stages} stages" if self._num_stages else "any number of stages that leaves room"
        message = (
            f"stage {cut + 1} of {action // self.num_blocks + 1} cannot end at block {action % self.num_blocks + 1}: "
            f"legal are {wanted} and the ends in info['action_mask'] of the step before"
        )
        self._legal, self._mask = _NONE, self._window(_NONE)
        observation = np.array((self._num_stages, cut, start, self.num_blocks - start), dtype=np.int64)
        info = {"action_mask": self._mask.copy(), "illegal_action": message}
        return observation, self.illegal_reward, True, False, info


def stages_there_are(max_stages: int, num_blocks: int, trainable_from: int | None) -> int:
    """Return `max_stages`, or as many as the model can have where that is less.

    Raises:
        UsageError: If `max_stages` is less than there must be.
    """
    if max_stages < (fewest := fewest_stages(trainable_from)):
        raise UsageError(f"max_stages must be at least {fewest}, it is {max_stages}")
    return min(max_stages, num_blocks if trainable_from is None else trainable_from + 1)


def fewest_stages(trainable_from: int | None) -> int:
    """Return the fewest stages: two where some blocks are trained and some are not."""
    return 2 if trainable_from else 1


def _counts(ceiling: Ceiling, max_stages: int, num_blocks: int, trainable_from: int | None) -> Sequence[int]:
    """Return the numbers of stages that there may be: those that fit under the ceiling.

    Raises:
        UsageError: If the ceiling is of another model, or none fits.
    """
    if ceiling.needs.num_blocks != num_blocks:
        raise UsageError(f"the ceiling is of {ceiling.needs.num_blocks} blocks, the profile has {num_blocks}")
    counts = ceiling.counts(max_stages, trainable_from)
    if not counts:
        raise UsageError(f"no plan of up to {max_stages} stages fits under {ceiling.ceiling_bytes} bytes; allow more")
    return counts


def _check_whole(**counts: object) -> None:
    """Raise `UsageError` for a count that is given and is no whole number."""
    for name, count in counts.items():
        if count is not None and (isinstance(count, bool) or not isinstance(count, _INTEGERS)):
            raise UsageError(f"{name} must be a whole number, it is {count!r:.40}")

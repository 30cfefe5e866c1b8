"""How many steps a second the environment makes in one process: `python -m splitload.studies.steps --help`.

Actions are drawn beforehand, so that nothing is timed but `reset` and `step` with all that they return. Environments
are new for each sample: what they keep of the states they have seen is worked out within it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

from splitload.commands.console import Console
from splitload.envs import ENV_ID, SplitEnv
from splitload.plan.objectives import OF_LOADING
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

NUM_BLOCKS, MAX_STAGES, NUM_ENVS = 64, 8, 8
# What an agent does at first, and what it ends up doing: the last of the legal actions makes K stages, the longest
# episodes there are, always the same.
PLAYS = ("random", "last")
THROUGH = ("SplitEnv", "gymnasium.make", "SyncVectorEnv")

Actions = NDArray[np.int64]
Choose = Callable[[Actions], int]
Vector: TypeAlias = "gymnasium.vector.VectorEnv[Any, Any, Any]"


def made_up_profile(num_blocks: int) -> Profile:
    """Return a profile of uneven blocks; loads read from storage for a third of their time."""
    loads = np.random.default_rng(0).lognormal(-5, 1, num_blocks).tolist()
    blocks = tuple(
        BlockProfile(f"block{index}", int(load_s * 1e9), Cost(load_s, load_s / 4, load_s / 5, load_s / 3))
        for index, load_s in enumerate(loads)
    )
    return Profile("made up", "0" * 64, "native", "made up", "simulated", blocks, 0.0, Contention(8, 0.2, 0.1))


def choosing(play: str, seed: int) -> Choose:
    """Return what picks one of the legal actions, by the name of a play."""
    rng = np.random.default_rng(seed)
    return (lambda legal: int(rng.choice(legal))) if play == "random" else (lambda legal: int(legal[-1]))


def alone_steps_per_s(env: gymnasium.Env[Any, Any], twin: SplitEnv, choose: Choose, steps: int) -> float:
    """Return the steps a second of one environment, over whole episodes of `steps` steps or some more in all.

    Args:
        env: A new environment.
        twin: Another that is equal; on it the actions are drawn.
        choose: Picks one of the legal actions.
        steps: The fewest steps to time.
    """
    episodes: list[list[int]] = []
    drawn = 0
    while drawn < steps:
        _, info = twin.reset()
        actions: list[int] = []
        over = False
        while not over:
            actions.append(choose(np.flatnonzero(info["action_mask"])))
            _, _, over, _, info = twin.step(actions[-1])
        episodes.append(actions)
        drawn += len(actions)
    reset, step = env.reset, env.step
    start = time.perf_counter()
    for actions in episodes:
        reset()
        for action in actions:
            step(action)
    return drawn / (time.perf_counter() - start)


def vector_steps_per_s(envs: Vector, twins: Vector, choose: Choose, steps: int) -> float:
    """Return the steps a second of all environments of a vector together; see `alone_steps_per_s`.

    Those in which the vector resets an environment by itself are not counted as its steps.
    """
    rows: list[Actions] = []
    played = 0
    _, infos = twins.reset()
    while played < steps:
        legal = [np.flatnonzero(mask) for mask in infos["action_mask"]]
        played += sum(1 for each in legal if len(each))
        rows.append(np.array([choose(each) if len(each) else 0 for each in legal], dtype=np.int64))
        infos = twins.step(rows[-1])[4]
    start = time.perf_counter()
    envs.reset()
    for row in rows:
        envs.step(row)
    return played / (time.perf_counter() - start)


def sample(through: str, objective: str, play: str, steps: int, seed: int) -> float:
    """Return the steps a second of new environments.

    Args:
        through: One of `THROUGH`.
        objective: One of `splitload.plan.objectives.OBJECTIVES`.
        play: One of `PLAYS`.
        steps: The fewest steps to time.
        seed: Seed of the actions.
    """
    kwargs: dict[str, Any] = {
        "profile": made_up_profile(NUM_BLOCKS),
        "objective": objective,
        "max_stages": MAX_STAGES,
    }
    choose = choosing(play, seed)
    if through == "SyncVectorEnv":
        envs, twins = (
            gymnasium.make_vec(ENV_ID, num_envs=NUM_ENVS, vectorization_mode="sync", **kwargs) for _ in range(2)
        )
        return vector_steps_per_s(envs, twins, choose, steps)
    env = SplitEnv(**kwargs) if through == "SplitEnv" else gymnasium.make(ENV_ID, **kwargs)
    return alone_steps_per_s(env, SplitEnv(**kwargs), choose, steps)


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure every way to step, for both objectives, in turns; print and perhaps record the steps a second."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("steps", __doc__)
    parser.add_argument(
        "--runs", type=at_least(1), default=15, metavar="N", help="samples of each (default: %(default)s)"
    )
    parser.add_argument(
        "--steps", type=at_least(1), default=20_000, metavar="N", help="in a sample (default: %(default)s)"
    )
    options = parser.parse_args(words)
    console = Console(json=False)
    arms = [(through, objective, play) for through in THROUGH for objective in OF_LOADING for play in PLAYS]
    samples: dict[tuple[str, str, str], list[float]] = {arm: [] for arm in arms}
    for run in range(options.runs):
        for arm in arms:
            samples[arm].append(sample(*arm, options.steps, seed=run))
    rows = []
    for (through, objective, play), found in samples.items():
        median, least, most = statistics.median(found), min(found), max(found)
        console.print(f"{through:<14} {objective:<8} {play:<7} {median:>8.0f} steps/s ({least:.0f} to {most:.0f})")
        rows.append(
            {
                "through": through,
                "num_envs": NUM_ENVS if through == "SyncVectorEnv" else 1,
                "objective": objective,
                "play": play,
                "num_blocks": NUM_BLOCKS,
                "max_stages": MAX_STAGES,
                "steps": options.steps,
                "steps_per_s": {"median": median, "min": least, "max": most, "samples": found},
            }
        )
    if options.output:
        write_record(options.output, "steps", "splitload.studies.steps", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

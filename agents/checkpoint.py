"""Checkpoints of a search: everything an agent has learned as plain JSON values, and back, each value checked."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import gymnasium
import numpy as np

from splitload.agents.q_learning import QLearning
from splitload.agents.results import Plan, StopReason
from splitload.agents.returning import Stand
from splitload.agents.stopping import ROUNDS, SearchState

__all__ = ["dump", "restore"]

_SETTINGS = (
    "sarsa", "learning_rate", "discount_factor", "epsilon_start", "epsilon_end", "epsilon_episodes", "return_share",
    "temperature", "optimistic", "seed",
)  # fmt: skip
_AGENT = ("settings", "environment", "rng", "episode", "searches")
_SEARCH = (
    "num_stages", "options", "start", "plan", "bar", "separable", "tolerant", "one_sided", "returns", "curve", "stand",
    "round_s", "idle", "rounds", "band_empty", "stopped", "table",
)  # fmt: skip
_PLAN = ("split_points", "value_s", "load_makespan_s", "episode", "actions")
_STAND = ("reward", "actions", "blamed")
_TABLE = ("observations", "sizes", "values")
_MOST = 1e300  # of a number that counts as finite: sums of such do not overflow
_MANY = 1 << 53  # of whole numbers: JSON readers agree on all up to here
_SAME = 1e-6  # Share by which a plan's value may differ where it is worked out anew, maybe by another numpy.


def dump(agent: QLearning) -> dict[str, Any]:
    """Return all that the agent holds as plain JSON values; `restore` reads them back, floats to the last digit.

    The table is three flat lists: the observations, one after the other; how many actions are legal in each; their
    values. Which these actions are is left out: the environment says so when the state is met again. A tolerance
    without bound, and the bar and the round's best value of a search that has no plan yet, are null, as JSON has no
    infinity.

    Taken between two episodes, nothing is lost; see `QLearning`.
    """
    _, state, _ = agent.rng.getstate()
    return {
        "settings": {name: getattr(agent, name) for name in _SETTINGS},
        "environment": _spaces(agent.env),
        "rng": list(state),
        "episode": agent.episode,
        "searches": [
            {
                "num_stages": count,
                "options": {
                    name: None if value == math.inf else value
                    for name, value in search.options.items()
                    if name != "num_stages"
                },
                "start": list(search.start),
                "plan": search.plan
                and {
                    "split_points": list(search.plan.split_points),
                    "value_s": search.plan.value_s,
                    "load_makespan_s": search.plan.load_makespan_s,
                    "episode": search.plan.episode,
                    "actions": list(search.plan.actions),
                },
                "bar": None if search.bar == -math.inf else search.bar,
                "separable": search.separable,
                "tolerant": search.tolerant,
                "one_sided": search.one_sided,
                "returns": list(search.returns),
                "curve": [list(point) for point in search.curve],
                "stand": search.stand
                and {
                    "reward": search.stand.reward,
                    "actions": list(search.stand.actions),
                    "blamed": list(search.stand.blamed),
                },
                "round_s": None if search.round_s == math.inf else search.round_s,
                "idle": search.idle,
                "rounds": search.rounds,
                "band_empty": search.band_empty,
                "stopped": search.stopped,
                "table": _table_to_json(agent.env, search.table),
            }
            for count, search in agent.searches.items()
        ],
    }


def restore(agent: QLearning, data: Any) -> None:
    """Give the agent what `dump` took from one with the same settings, on an equal environment.

    `agent.train(resume=True)` then goes on where that one was. Plans are played once more, so that none is taken
    that the environment does not confirm; what was learned (values, tolerance, why a search stopped) is taken as it is
    written, where it can be meant.

    Args:
        agent: Whatever it held is gone; where an error is raised, it stays as it was.
        data: What `dump` returned, maybe written as JSON and read since.

    Raises:
        ValueError: If a value is missing, unknown, of another type, out of range or not finite, or if the settings
            or the environment are others. The message says which.
    """
    top = _object(data, "the checkpoint", _AGENT)
    settings = _object(top["settings"], "settings", _SETTINGS)
    for name, there in settings.items():
        if there != (here := getattr(agent, name)):
            raise ValueError(f"the checkpoint is of another agent: its {name} is {there!r:.40}, here it is {here!r}")
    if (environment := top["environment"]) != (spaces := _spaces(agent.env)):
        raise ValueError(
            f"the checkpoint is of another environment: its spaces are {environment!r:.120}, here they are {spaces}"
        )
    state = _whole_numbers(top["rng"], "rng", 0, (1 << 32) - 1)
    rng = random.Random()  # noqa: S311 - not for secrets
    try:
        rng.setstate((3, tuple(state), None))
    except ValueError as error:
        raise ValueError(f"rng is no state of Python's random numbers: {error}") from error
    episode = _whole(top["episode"], "episode", 0)
    searches: dict[int, SearchState] = {}
    for number, row in enumerate(_list(top["searches"], "searches")):
        where = f"searches[{number}]"
        search = _search(agent.env, row, where, episode)
        if searches.setdefault(search.options["num_stages"], search) is not search:
            raise ValueError(f"{where} is of {search.options['num_stages']} stages, as one before it")
    agent.rng, agent.episode, agent.searches = rng, episode, searches


def _search(env: gymnasium.Env[Any, Any], data: Any, where: str, episode: int) -> SearchState:
    """Return the search for one number of stages."""
    row = _object(data, where, _SEARCH)
    count = _whole(row["num_stages"], f"{where}.num_stages", 1)
    try:
        env.reset(options={"num_stages": count})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    given = _object(row["options"], f"{where}.options", ("tolerance_s",), ("one_sided",))
    tolerance_s = given["tolerance_s"]
    options = {
        "num_stages": count,
        "tolerance_s": math.inf if tolerance_s is None else _number(tolerance_s, f"{where}.options.tolerance_s"),
    }
    if "one_sided" in given:
        options["one_sided"] = _flag(given["one_sided"], f"{where}.options.one_sided")
    returns = _numbers(row["returns"], f"{where}.returns")
    plan = None if row["plan"] is None else _plan(env, row["plan"], f"{where}.plan", count, episode)
    stand = None if row["stand"] is None else _stand(env, row["stand"], f"{where}.stand", count)
    curve = [
        _point(point, f"{where}.curve[{number}]", len(returns))
        for number, point in enumerate(_list(row["curve"], f"{where}.curve"))
    ]
    stopped: StopReason = row["stopped"]
    if stopped not in get_args(StopReason):
        raise ValueError(f"{where}.stopped must be one of {list(get_args(StopReason))}, it is {stopped!r:.40}")
    return SearchState(
        options,
        start=tuple(_actions(env, row["start"], f"{where}.start")),
        table=_table_from_json(env, row["table"], f"{where}.table"),
        plan=plan,
        bar=-math.inf if row["bar"] is None else _number(row["bar"], f"{where}.bar"),
        separable=_flag(row["separable"], f"{where}.separable"),
        tolerant=_flag(row["tolerant"], f"{where}.tolerant"),
        one_sided=_flag(row["one_sided"], f"{where}.one_sided"),
        returns=returns,
        curve=curve,
        stand=stand,
        round_s=math.inf if row["round_s"] is None else _number(row["round_s"], f"{where}.round_s", 0.0),
        idle=_whole(row["idle"], f"{where}.idle", 0),
        rounds=_whole(row["rounds"], f"{where}.rounds", 0, ROUNDS),
        band_empty=_flag(row["band_empty"], f"{where}.band_empty"),
        stopped=stopped,
    )


def _plan(env: gymnasium.Env[Any, Any], data: Any, where: str, count: int, episode: int) -> Plan:
    row = _object(data, where, _PLAN)
    points = tuple(_whole_numbers(row["split_points"], f"{where}.split_points", 0))
    value_s = _number(row["value_s"], f"{where}.value_s", 0.0)
    makespan_s = _number(row["load_makespan_s"], f"{where}.load_makespan_s", 0.0)
    actions = _actions(env, row["actions"], f"{where}.actions")
    played = _played(env, actions, count, where)
    if tuple(played["split_points"]) != points:
        raise ValueError(f"{where}.split_points are {list(points)}, its actions lead to {list(played['split_points'])}")
    _same(value_s, played["value_s"], f"{where}.value_s")
    _same(makespan_s, played["load_makespan_s"], f"{where}.load_makespan_s")
    found = _whole(row["episode"], f"{where}.episode", 1, episode)
    return Plan(count, points, value_s, makespan_s, found, tuple(actions))


def _stand(env: gymnasium.Env[Any, Any], data: Any, where: str, count: int) -> Stand:
    row = _object(data, where, _STAND)
    actions = _actions(env, row["actions"], f"{where}.actions")
    _played(env, actions, count, where)
    blamed = _whole_numbers(row["blamed"], f"{where}.blamed", 0, count - 1)
    if not blamed:
        raise ValueError(f"{where}.blamed must name a stage")
    return Stand(_number(row["reward"], f"{where}.reward"), actions, blamed)


def _point(data: Any, where: str, episodes: int) -> tuple[int, float]:
    point = _list(data, where, 2)
    if len(point) != 2:
        raise ValueError(f"{where} must be an episode and a value, it has {len(point)} entries")
    return _whole(point[0], f"{where}[0]", 1, episodes), _number(point[1], f"{where}[1]", 0.0)


def _played(env: gymnasium.Env[Any, Any], actions: Sequence[int], count: int, where: str) -> dict[str, Any]:
    """Return the last `info` of an episode of these actions, or raise if they make no plan."""
    _, info = env.reset(options={"num_stages": count})
    over = False
    for action in actions:
        if over or not info["action_mask"][action]:
            raise ValueError(f"{where}.actions are no plan of {count} stages: {action} is not legal")
        _, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    if not over:
        raise ValueError(f"{where}.actions are no plan of {count} stages: they end too soon")
    return info


def _same(there: float, here: float, where: str) -> None:
    if not math.isclose(there, here, rel_tol=_SAME):
        raise ValueError(f"{where} is {there!r}, in this environment it is {here!r}")


def _spaces(env: gymnasium.Env[Any, Any]) -> list[str]:
    """Return what an agent can tell an environment by."""
    return [str(env.action_space), str(env.observation_space)]


def _table_to_json(
    env: gymnasium.Env[Any, Any], table: dict[bytes, tuple[list[int], list[float]]]
) -> dict[str, list[Any]]:
    return {
        "observations": np.frombuffer(b"".join(table), dtype=env.observation_space.dtype).tolist(),
        "sizes": [len(values) for _, values in table.values()],
        "values": [value for _, values in table.values() for value in values],
    }


def _table_from_json(env: gymnasium.Env[Any, Any], data: Any, where: str) -> dict[bytes, tuple[list[int], list[float]]]:
    """Return a table whose rows have no actions yet, in the order they were met: the first row is the start's."""
    parts = _object(data, where, _TABLE)
    sizes = _whole_numbers(parts["sizes"], f"{where}.sizes", 1, _num_actions(env))
    values = iter(_numbers(parts["values"], f"{where}.values", high=0.0, length=sum(sizes)))
    space = env.observation_space
    each = math.prod(space.shape or ())
    flat = _numbers(parts["observations"], f"{where}.observations", -_MANY, _MANY, length=each * len(sizes))
    with np.errstate(invalid="ignore"):  # what is no observation is never met
        keys = np.array(flat).astype(space.dtype).reshape(len(sizes), each)
    return {key.tobytes(): ([], [next(values) for _ in range(size)]) for key, size in zip(keys, sizes, strict=True)}


def _num_actions(env: gymnasium.Env[Any, Any]) -> int:
    if not isinstance(env.action_space, gymnasium.spaces.Discrete):
        raise ValueError(f"the actions must be numbered, the action space is {env.action_space}")
    return int(env.action_space.n)


def _actions(env: gymnasium.Env[Any, Any], data: Any, where: str) -> list[int]:
    return _whole_numbers(data, where, 0, _num_actions(env) - 1)


def _object(data: Any, where: str, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, Any]:
    """Return an object that has these keys, maybe the optional ones, and no others."""
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be an object, it is {data!r:.40}")
    if missing := set(keys) - set(data):
        raise ValueError(f"{where} lacks {sorted(missing)}")
    if unknown := set(data) - set(keys) - set(optional):
        raise ValueError(f"{where} has unknown keys {sorted(map(str, unknown))}")
    return data


def _list(data: Any, where: str, at_most: int | None = None) -> list[Any]:
    if not isinstance(data, list):
        raise ValueError(f"{where} must be a list, it is {data!r:.40}")
    if at_most is not None and len(data) > at_most:
        raise ValueError(f"{where} must have at most {at_most} entries, it has {len(data)}")
    return data


def _flag(data: Any, where: str) -> bool:
    if not isinstance(data, bool):
        raise ValueError(f"{where} must be true or false, it is {data!r:.40}")
    return data


def _whole(data: Any, where: str, low: int, high: int = _MANY) -> int:
    if type(data) is not int or not low <= data <= high:
        raise ValueError(f"{where} must be a whole number from {low} to {high}, it is {data!r:.40}")
    return data


def _number(data: Any, where: str, low: float = -_MOST, high: float = _MOST) -> float:
    if type(data) not in (int, float) or not low <= data <= high:
        raise ValueError(f"{where} must be a finite number from {low:g} to {high:g}, it is {data!r:.40}")
    return float(data)


def _whole_numbers(data: Any, where: str, low: int, high: int = _MANY) -> list[int]:
    return [_whole(value, where, low, high) for value in _list(data, f"{where}")]


def _numbers(data: Any, where: str, low: float = -_MOST, high: float = _MOST, length: int | None = None) -> list[float]:
    values = [_number(value, where, low, high) for value in _list(data, where)]
    if length is not None and len(values) != length:
        raise ValueError(f"{where} must have {length} entries, it has {len(values)}")
    return values

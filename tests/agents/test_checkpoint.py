"""Checkpoints: a resumed search ends as it would have ended, and damage is one clear error, never a crash."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from synthetic import make

from splitload.agents import QLearning
from splitload.agents.checkpoint import dump, restore
from splitload.envs import SplitEnv

COUNTS = (1, 2, 4, 5)
LOADS = [0.011 + 0.083 * (7 * index % 19) / 19 + 0.004 * (index % 3) for index in range(19)]
KINDS = {
    "balance": ("balance", {}),
    "ttfo": ("ttfo", {}),
    "sarsa balance": ("balance", {"sarsa": True, "learning_rate": 0.3, "discount_factor": 0.9}),
    "sarsa ttfo": ("ttfo", {"sarsa": True}),
    "pessimistic": ("ttfo", {"optimistic": False, "seed": 3}),
}


def agent(objective: str = "ttfo", *, threads: int = 3, **settings: Any) -> QLearning:
    """An agent on an environment of its own: 4 and 5 stages are more than its threads."""
    env = SplitEnv(make(LOADS, threads=threads), objective=objective, max_stages=6)
    return QLearning(env, **settings)


def stopped_at(episodes: int, objective: str = "ttfo", **settings: Any) -> QLearning:
    made = agent(objective, **settings)
    made.train(num_stages=COUNTS, patience=150, should_stop=lambda: made.episode == episodes)
    return made


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_search_ends_as_an_uninterrupted_one(kind: str) -> None:
    objective, settings = KINDS[kind]
    whole = agent(objective, **settings).train(num_stages=COUNTS, patience=150)
    assert whole.episodes > 600
    for episodes in (0, 1, 2, 303, whole.episodes - 1):
        first = stopped_at(episodes, objective, **settings)
        text = json.dumps(dump(first), allow_nan=False)
        second = agent(objective, **settings)
        restore(second, json.loads(text))
        assert second.result() == first.result()
        assert json.dumps(dump(second)) == text
        assert second.train(num_stages=COUNTS, patience=150, resume=True) == whole, episodes


def test_an_interrupt_from_progress_is_between_two_episodes() -> None:
    whole = agent().train(num_stages=COUNTS, patience=150)

    def interrupt(progress: Any) -> None:
        if progress.episode == 102:
            raise KeyboardInterrupt

    first, second = agent(), agent()
    with pytest.raises(KeyboardInterrupt):
        first.train(num_stages=COUNTS, patience=150, on_progress=interrupt)
    restore(second, json.loads(json.dumps(dump(first))))
    assert second.episode == 102
    assert second.train(num_stages=COUNTS, patience=150, resume=True) == whole


def test_a_search_that_was_resumed_often_is_the_same() -> None:
    whole = agent("balance").train(num_stages=COUNTS, patience=150)
    data = dump(stopped_at(1, "balance"))
    for episodes in range(8, whole.episodes + 60, 61):
        one = agent("balance")
        restore(one, json.loads(json.dumps(data)))
        result = one.train(num_stages=COUNTS, patience=150, resume=True, episodes=episodes)
        data = dump(one)
    assert result == whole


def test_a_finished_search_is_read_and_answers_at_once() -> None:
    first, second = agent(), agent()
    result = first.train(num_stages=COUNTS, patience=20)
    restore(second, dump(first))
    played: list[Any] = []
    assert second.train(num_stages=COUNTS, patience=20, resume=True, on_progress=played.append) == result
    assert not played


def test_a_table_is_kept_while_its_states_wait_to_be_met_again() -> None:
    data = dump(stopped_at(304))
    second = agent()
    restore(second, copy.deepcopy(data))
    second.train(num_stages=COUNTS, resume=True, episodes=308)  # meets a path of states for each
    for now, before in zip(dump(second)["searches"], data["searches"], strict=True):
        kept = len(before["table"]["observations"])
        assert now["table"]["observations"][:kept] == before["table"]["observations"]
    met = [bool(actions) for actions, _ in second.searches[4].table.values()]
    assert any(met)
    assert not all(met)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": 1}, "its seed is 0, here it is 1"),
        ({"learning_rate": 0.5}, "its learning_rate is 1.0, here it is 0.5"),
        ({"sarsa": True}, "its sarsa is False, here it is True"),
        ({"epsilon_episodes": 7}, "its epsilon_episodes is 2000, here it is 7"),
    ],
)
def test_other_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"of another agent: {message}$"):
        restore(agent(**settings), dump(stopped_at(9)))


def test_other_environments_are_refused() -> None:
    data = dump(stopped_at(40))
    smaller = QLearning(SplitEnv(make(LOADS[:-1], threads=3), objective="ttfo", max_stages=6))
    with pytest.raises(ValueError, match="of another environment"):
        restore(smaller, data)
    slower = QLearning(SplitEnv(make([2 * load for load in LOADS], threads=3), objective="ttfo", max_stages=6))
    with pytest.raises(ValueError, match=r"value_s is 1\.\d+, in this environment it is 2\.\d+"):
        restore(slower, data)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of each value; of long lists the first entries."""
    yield path
    items = data.items() if isinstance(data, dict) else enumerate(data[:2]) if isinstance(data, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def at(data: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        data = data[key]
    return data


def refused(data: Any) -> str:
    """Return the line a damaged checkpoint is refused with; the agent stays as it was."""
    one = agent()
    before = json.dumps(dump(one))
    with pytest.raises(ValueError, match=r"\w") as caught:
        restore(one, data)
    assert type(caught.value) is ValueError
    assert "\n" not in str(caught.value)
    assert json.dumps(dump(one)) == before
    return str(caught.value)


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    data = dump(stopped_at(304))
    del data["searches"][2:]
    assert all(search["plan"] and search["stand"] and search["table"]["sizes"] for search in data["searches"])
    return data


def test_every_key_is_needed_and_no_other_is_known(whole: dict[str, Any]) -> None:
    objects = [path for path in places(whole) if isinstance(at(whole, path), dict)]
    assert len(objects) > 10
    for path in objects:
        for key in at(whole, path):
            damaged = copy.deepcopy(whole)
            del at(damaged, path)[key]
            message = refused(damaged)
            assert key in message
        damaged = copy.deepcopy(whole)
        at(damaged, path)["speed"] = 1
        assert "unknown keys ['speed']" in refused(damaged)


WRONG = ("text", 1.5, -1, True, None, [], {}, [[]], {"a": 1}, 1 << 70, 10**400, float("nan"), float("inf"), "NaN")


@pytest.mark.parametrize("wrong", WRONG, ids=[f"{value!r:.12}" for value in WRONG])
def test_values_of_other_types_are_refused(whole: dict[str, Any], wrong: Any) -> None:
    """Or they mean what is there, or may stand there: then the search goes on and no error is raised at all."""
    tried = 0
    for path in places(whole):
        if wrong == at(whole, path) or (
            wrong is None and path[-1:] in [("bar",), ("plan",), ("stand",), ("round_s",), ("tolerance_s",)]
        ):
            continue
        damaged = copy.deepcopy(whole)
        if path:
            at(damaged, path[:-1])[path[-1]] = wrong
        else:
            damaged = wrong
        tried += 1
        one = agent()
        try:
            restore(one, damaged)
        except ValueError as error:
            assert type(error) is ValueError
            assert "\n" not in str(error)
        else:
            assert type(wrong) in (int, float, bool, list), (path, wrong)
            one.train(num_stages=COUNTS, resume=True, episodes=one.episode + 20, patience=20)
    assert tried > 90


@pytest.mark.parametrize("key", ["observations", "sizes", "values"])
def test_a_table_with_too_little_or_too_much_is_refused(whole: dict[str, Any], key: str) -> None:
    for change in (lambda values: values.pop(), lambda values: values.append(values[-1])):
        damaged = copy.deepcopy(whole)
        change(damaged["searches"][1]["table"][key])
        assert re.search(r"searches\[1\]\.table\.\w+ must have \d+ entries, it has \d+", refused(damaged))


DAMAGE: dict[str, tuple[tuple[Any, ...], Any, str]] = {
    "no search": ((), [], "the checkpoint must be an object"),
    "rng too short": (("rng",), [1, 2], "rng is no state"),
    "rng position": (("rng", 624), 625, "rng is no state"),
    "rng word": (("rng", 0), 1 << 32, "rng must be a whole number from 0 to 4294967295, it is 4294967296"),
    "episode": (("episode",), -1, "episode must be a whole number from 0"),
    "many stages": (("searches", 1, "num_stages"), 7, "searches[1]: num_stages must be from 1 to 6"),
    "no stages": (("searches", 1, "num_stages"), 0, "searches[1].num_stages must be a whole number from 1"),
    "twice": (("searches", 1), "first", "searches[1] is of 1 stages, as one before it"),
    "NaN": (("searches", 1, "returns", 0), float("nan"), "searches[1].returns must be a finite number"),
    "infinity": (("searches", 1, "bar"), float("inf"), "searches[1].bar must be a finite number"),
    "a value above 0": (("searches", 1, "table", "values", 0), 0.5, "must be a finite number from -1e+300 to 0"),
    "a row of none": (("searches", 1, "table", "sizes", 0), 0, "sizes must be a whole number from 1 to 114"),
    "an action outside": (("searches", 1, "plan", "actions", 0), 114, "from 0 to 113, it is 114"),
    "an illegal action": (("searches", 1, "plan", "actions", 0), 1, "no plan of 2 stages: 1 is not legal"),
    "half a plan": (("searches", 1, "plan", "actions"), [19], "no plan of 2 stages: they end too soon"),
    "a stand outside": (("searches", 1, "stand", "actions", 1), -1, "from 0 to 113, it is -1"),
    "nobody to blame": (("searches", 1, "stand", "blamed"), [], "stand.blamed must name a stage"),
    "a stage to blame that is not there": (("searches", 1, "stand", "blamed"), [2], "from 0 to 1, it is 2"),
    "other split points": (("searches", 1, "plan", "split_points"), [8], "its actions lead to"),
    "another value": (("searches", 1, "plan", "value_s"), 1e-9, "value_s is 1e-09, in this environment it is"),
    "rounds": (("searches", 1, "rounds"), 9, "rounds must be a whole number from 0 to 8"),
    "reason": (("searches", 1, "stopped"), "tired", "stopped must be one of"),
    "curve": (("searches", 1, "curve", 0), [1], "curve[0] must be an episode and a value"),
    "later than now": (("searches", 1, "plan", "episode"), 305, "from 1 to 304, it is 305"),
}


@pytest.mark.parametrize(("path", "value", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damage_is_named(whole: dict[str, Any], path: tuple[Any, ...], value: Any, message: str) -> None:
    damaged = copy.deepcopy(whole)
    if value == "first":
        value = damaged["searches"][0]
    if path:
        at(damaged, path[:-1])[path[-1]] = value
    else:
        damaged = value
    assert message in refused(damaged)


def test_rows_that_the_environment_does_not_confirm_are_learned_anew(whole: dict[str, Any]) -> None:
    damaged = copy.deepcopy(whole)
    table = damaged["searches"][1]["table"]
    table["sizes"][0] -= 1
    table["sizes"][1] += 1
    table["observations"][0] = 123
    one = agent()
    restore(one, damaged)
    result = one.train(num_stages=COUNTS, resume=True)
    assert "running" not in result.stopped.values()


def test_a_start_that_is_too_short_is_followed_as_far_as_it_goes() -> None:
    one = agent()
    first = one.train(num_stages=(4,), start={4: (19 * 3,)}, episodes=1).plans[4]
    assert first.split_points[0] == 1

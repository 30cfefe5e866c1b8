"""The benchmark of the environment counts the steps that it times, and records every sample."""

import json
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest

from splitload.envs import ENV_ID, SplitEnv
from splitload.studies import steps


class Counting(gymnasium.Wrapper):
    """Counts what is asked of the environment, and how many episodes end legally."""

    def __init__(self, env):
        super().__init__(env)
        self.resets = self.steps = self.ends = 0

    def reset(self, **kwargs):
        self.resets += 1
        return super().reset(**kwargs)

    def step(self, action):
        self.steps += 1
        result = super().step(action)
        self.ends += "split_points" in result[4]
        assert "illegal_action" not in result[4]
        return result


@pytest.fixture
def clock(monkeypatch):
    """Make every measured span one second, so that steps a second are those that were counted; no other thread asks."""
    seconds = iter(range(1000))
    monkeypatch.setattr(steps, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))


@pytest.mark.parametrize("play", steps.PLAYS)
@pytest.mark.usefixtures("clock")
def test_whole_legal_episodes_are_counted(play):
    kwargs = {"profile": steps.made_up_profile(12), "max_stages": 4}
    env = Counting(SplitEnv(**kwargs))
    found = steps.alone_steps_per_s(env, SplitEnv(**kwargs), steps.choosing(play, 0), 50)
    assert 50 <= found == env.steps < 54
    assert env.resets == env.ends
    if play == "last":
        assert env.steps == 4 * env.ends


@pytest.mark.parametrize("play", steps.PLAYS)
@pytest.mark.usefixtures("clock")
def test_steps_of_a_vector_that_reset_do_not_count(play):
    alone = []

    def counted(env):
        alone.append(Counting(env))
        return alone[-1]

    kwargs = {"profile": steps.made_up_profile(12), "max_stages": 4}
    envs = gymnasium.make_vec(ENV_ID, num_envs=3, vectorization_mode="sync", wrappers=[counted], **kwargs)
    twins = gymnasium.make_vec(ENV_ID, num_envs=3, vectorization_mode="sync", **kwargs)
    found = steps.vector_steps_per_s(envs, twins, steps.choosing(play, 0), 50)
    assert 50 <= found == sum(env.steps for env in alone) < 53
    assert all(env.ends for env in alone)


def test_the_record_holds_every_sample(tmp_path):
    assert steps.main(["--runs", "2", "--steps", "30", "-o", str(tmp_path / "found.json")]) == 0
    record = json.loads((tmp_path / "found.json").read_text())
    assert record["kind"] == "steps"
    assert record["provenance"]["command"] == "python -m splitload.studies.steps --runs 2 --steps 30"
    assert len(record["rows"]) == len(steps.THROUGH) * len(steps.OF_LOADING) * len(steps.PLAYS)
    for row in record["rows"]:
        figure = row["steps_per_s"]
        assert len(figure["samples"]) == 2
        assert figure["median"] == pytest.approx(np.median(figure["samples"]))
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]


@pytest.mark.parametrize("words", [["--runs", "0"], ["--steps", "0"]])
def test_nothing_to_measure_is_a_mistake(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        steps.main(words)
    assert "at least 1" in capsys.readouterr().err

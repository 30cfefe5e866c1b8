"""SplitEnv: Gymnasium's contract, masks, rewards, options and ends of episodes."""

import inspect
import itertools
import re
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from splitload.base.errors import UsageError
from splitload.envs import ENV_ID, SplitEnv
from splitload.plan.objectives import objective_named
from splitload.plan.partition import Partition


def play(env, split_points, options=None):
    """Cut at these split points and return the rewards and the last info."""
    env.reset(options=options)
    ends = (*split_points, env.num_blocks)
    rewards = []
    for end in ends:
        _, reward, terminated, truncated, info = env.step((len(ends) - 1) * env.num_blocks + end - 1)
        rewards.append(reward)
        assert not truncated
    assert terminated
    return rewards, info


def plans(num_blocks, max_stages, trainable_from=None):
    """Yield every legal plan, by brute force."""
    for num_stages in range(1, min(max_stages, num_blocks) + 1):
        for points in itertools.combinations(range(1, num_blocks), num_stages - 1):
            if trainable_from in (None, (0, *points)[-1]):
                yield points


@pytest.mark.parametrize("objective", ["balance", "ttfo"])
@pytest.mark.parametrize("trainable_from", [None, 3])
def test_check_env(profile, objective, trainable_from):
    kwargs = {"profile": profile, "objective": objective, "trainable_from": trainable_from}
    check_env(gymnasium.make(ENV_ID, **kwargs).unwrapped)
    check_env(gymnasium.make(ENV_ID, render_mode="ansi", **kwargs).unwrapped)


def test_check_env_of_a_single_block(make_profile):
    check_env(gymnasium.make(ENV_ID, profile=make_profile([0.5])).unwrapped)


@pytest.mark.parametrize(
    ("max_stages", "trainable_from"), [(None, None), (3, None), (None, 0), (None, 2), (2, 2), (4, 5), (1, None)]
)
def test_masks_allow_exactly_the_legal_plans(profile, max_stages, trainable_from):
    env = SplitEnv(profile, max_stages=max_stages, trainable_from=trainable_from)
    found = []

    def walk(actions):
        _, info = env.reset()
        for action in actions:
            _, _, over, _, info = env.step(action)
        if actions and over:
            assert not info["action_mask"].any()
            found.append(info["split_points"])
            return
        assert info["action_mask"].dtype == np.int8
        assert env.action_masks().dtype == np.bool_
        assert np.array_equal(info["action_mask"], env.action_masks())
        for action in np.flatnonzero(info["action_mask"]):
            walk([*actions, action])

    walk([])
    assert sorted(found) == sorted(plans(6, max_stages or 6, trainable_from))


def test_every_masked_action_ends_the_episode_below_every_legal_one(profile):
    for objective in ("balance", "ttfo"):
        env = SplitEnv(profile, objective=objective, max_stages=3)
        worst = min(sum(play(env, points)[0]) for points in plans(6, 3))
        for prefix in ([], [6 + 1]):  # at the start; after a cut into two stages at 2
            env.reset()
            for action in prefix:
                env.step(action)
            for action in np.flatnonzero(~env.action_masks()):
                env.reset()
                before = sum(env.step(first)[1] for first in prefix)
                observation, reward, terminated, truncated, info = env.step(action)
                assert (terminated, truncated) == (True, False)
                assert before + reward < worst
                assert "cannot end at block" in info["illegal_action"]
                assert "split_points" not in info
                assert observation in env.observation_space
                with pytest.raises(gymnasium.error.ResetNeeded):
                    env.step(5)


@pytest.mark.parametrize(
    ("action", "message"),
    [(-1, "from 0 to 35, it is -1"), (36, "from 0 to 35, it is 36"), (5.0, "whole number, it is 5.0"), (None, "None")],
)
def test_action_outside_the_space_raises(profile, action, message):
    env = SplitEnv(profile)
    env.reset()
    with pytest.raises(gymnasium.error.InvalidAction, match=message):
        env.step(action)
    assert env.step(np.array(5))[2], "the episode goes on, and an array of one number is an action"


def test_what_a_user_changes_is_the_users_own(profile):
    env = SplitEnv(profile)
    seen = []
    for _ in range(2):
        states = [env.reset(), env.reset(options={"num_stages": 2})]
        states += [(step[0], step[4]) for step in map(env.step, (6 + 2, 6 + 5))]
        masks = [info["action_mask"] for _, info in states] + [env.action_masks()]
        seen.append([array.tolist() for array in (*masks, *(observation for observation, _ in states))])
        for array in (*masks, *(observation for observation, _ in states)):
            array[:] = 1
    assert seen[0] == seen[1]


def test_observations_are_the_papers_state(profile):
    env = SplitEnv(profile)
    assert env.max_stages == 6
    seen = [env.reset()[0]] + [env.step(2 * 6 + end - 1)[0] for end in (1, 4, 6)]
    assert [row.tolist() for row in seen] == [[0, 0, 0, 6], [3, 1, 1, 5], [3, 2, 4, 2], [3, 3, 6, 0]]
    assert all(row in env.observation_space for row in seen)
    assert env.reset(options={"num_stages": 2})[0].tolist() == [2, 0, 0, 6]


def test_balance_reward_by_hand(profile):
    env = SplitEnv(profile, tolerance=0.05)  # T/2 = 0.5, T/3 = 0.333…
    assert play(env, (3,))[0] == [0.0, 0.0]
    assert play(env, (2,))[0] == [-1.0, -1.0]
    assert play(env, (2,), {"tolerance_s": 0.31})[0] == [0.0, 0.0]
    assert play(env, (2, 4))[0] == [-1.0, -1.0, -1.0]
    assert play(env, ())[0] == [0.0]
    one_sided = SplitEnv(profile, one_sided=True)
    assert play(one_sided, (2,))[0] == [0.0, -1.0]
    assert play(one_sided, (2,), {"one_sided": False})[0] == [-1.0, -1.0]
    assert play(env, (2,), {"one_sided": True})[0] == [0.0, -1.0]
    assert play(env, (2,))[0] == [-1.0, -1.0], "options are of one episode only"


@pytest.mark.parametrize("read_share", [0.0, 0.6])
@pytest.mark.parametrize("threads", [1, 2, 3, 8])  # plans have from 1 to 5 stages
@pytest.mark.parametrize("besides", [{}, {"start_s": 0.25, "cut_infer_s": 0.07}, {"start_s": 30.0, "cut_infer_s": 7.0}])
def test_ttfo_return_and_end_of_episode_agree_with_the_profile(make_profile, threads, read_share, besides):
    loads, infers = [0.3, 0.1, 0.2, 0.15, 0.4], [0.1, 0.3, 0.05, 0.2, 0.1]
    reads = [load * read_share for load in loads]
    profile = make_profile(loads, infers, reads=reads, fixed=0.02, threads=threads)
    profile = replace(profile, contention=profile.contention._replace(**besides))
    for objective in ("balance", "ttfo"):
        env = SplitEnv(profile, objective=objective)
        for points in plans(5, 8):
            partition = Partition(5, points)
            schedule = profile.schedule(partition)
            rewards, info = play(env, points)
            value_s = schedule.ttfo_s if objective == "ttfo" else objective_named("balance").least_s(profile, partition)
            assert (info["split_points"], info["num_stages"]) == (points, len(points) + 1)
            assert info["value_s"] == pytest.approx(value_s, rel=1e-12)
            assert info["load_makespan_s"] == pytest.approx(schedule.load_makespan_s, rel=1e-12)
            if objective == "ttfo":
                assert sum(rewards) == pytest.approx(-schedule.ttfo_s, rel=1e-12)
                assert max(rewards) <= 1e-12
                assert env.illegal_reward < sum(rewards)
                assert "excess_s" not in info
            else:
                slowdown = profile.contention.slowdown(len(points) + 1)
                excess_s = value_s / slowdown - profile.whole().load_s / (len(points) + 1)
                assert info["excess_s"] == pytest.approx(excess_s, abs=1e-12)
                assert info["one_sided"] is False


def test_excess_is_the_tolerance_the_plan_just_meets(profile):
    env = SplitEnv(profile, one_sided=True)
    for points in plans(6, 6):
        excess_s = play(env, points)[1]["excess_s"]
        assert sum(play(env, points, {"tolerance_s": excess_s + 1e-12})[0]) == 0
        assert sum(play(env, points, {"tolerance_s": excess_s - 1e-9})[0]) < 0


def test_num_stages_option_restricts_the_episode(profile):
    env = SplitEnv(profile)
    _, info = env.reset(options={"num_stages": 3})
    assert np.flatnonzero(info["action_mask"]).tolist() == [12, 13, 14, 15]
    assert env.step(6)[4]["illegal_action"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 2}, "unknown reset option 'stages'"),
        ({"num_stages": 0}, "from 2 to 3"),
        ({"num_stages": 4}, "from 2 to 3"),
        ({"num_stages": 2.0}, "from 2 to 3"),
        ({"tolerance_s": float("nan")}, "tolerance_s"),
        ({"tolerance_s": "x"}, "tolerance_s must be a number of seconds, it is 'x'"),
        ({"one_sided": "no"}, "one_sided must be true or false, it is 'no'"),
    ],
)
def test_wrong_options(profile, options, message):
    env = SplitEnv(profile, trainable_from=2)
    with pytest.raises(UsageError, match=message):
        env.reset(options=options)


@pytest.mark.parametrize(
    "arguments",
    [
        {"objective": "speed"},
        {"max_stages": 0},
        {"max_stages": 1, "trainable_from": 3},
        {"max_stages": 2.5},
        {"max_stages": True},
        {"trainable_from": 1.5},
        {"one_sided": 3},
        {"tolerance": -0.1},
        {"tolerance": float("nan")},
        {"trainable_from": 6},
        {"trainable_from": -1},
        {"render_mode": "human"},
    ],
)
def test_wrong_arguments(profile, arguments):
    with pytest.raises(UsageError, match=str(next(iter(arguments.values())))):
        SplitEnv(profile, **arguments)


def test_more_stages_than_a_model_can_have_give_what_there_is(profile):
    for most in (7, np.int64(7), 10**30):
        env = gymnasium.make(ENV_ID, profile=profile, max_stages=most).unwrapped
        assert (env.max_stages, env.action_space.n, env.feasible(6), env.feasible(7)) == (6, 36, True, False)
        check_env(env)
    assert SplitEnv(profile, max_stages=4, trainable_from=2).max_stages == 3
    assert SplitEnv(profile, max_stages=2, trainable_from=2).max_stages == 2
    assert SplitEnv(profile, trainable_from=2).max_stages == 3
    assert SplitEnv(profile, max_stages=6).max_stages == 6


def test_eight_stages_are_usual(make_profile):
    assert SplitEnv(make_profile([0.1] * 20)).max_stages == 8
    assert SplitEnv(make_profile([0.1] * 20), max_stages=20).max_stages == 20


def test_same_actions_same_episode(profile):
    episodes = []
    for seed in (0, 1):
        env = SplitEnv(profile, objective="ttfo")
        env.reset(seed=seed)
        episodes.append([(step[0].tolist(), step[1]) for step in map(env.step, (13, 15, 17))])
    assert episodes[0] == episodes[1]


def test_documentation_has_the_headings_that_gymnasium_uses():
    headings = [line.strip()[3:] for line in SplitEnv.__doc__.splitlines() if line.strip().startswith("## ")]
    assert headings == [
        "Description", "Action Space", "Observation Space", "Starting State", "Reward", "Episode End", "Information",
        "Arguments", "References",
    ]  # fmt: skip
    arguments = list(inspect.signature(SplitEnv).parameters)
    documented = SplitEnv.__doc__.split("## Arguments")[1]
    assert re.findall(r"^ +- `(\w+)`:", documented, re.MULTILINE) == arguments


def test_render(profile):
    env = SplitEnv(profile, render_mode="ansi")
    env.reset()
    assert env.render() == "… of 6 blocks"
    env.step(6 + 2)
    assert env.render() == "[0, 3) … of 6 blocks"
    env.step(6 + 5)
    assert env.render() == "[0, 3) [3, 6) of 6 blocks"
    assert SplitEnv(profile).render() is None


@pytest.mark.parametrize("objective", [None, 3, "Balance"])
def test_what_is_no_objective_is_a_usage_error(profile, objective):
    with pytest.raises(UsageError, match="unknown objective"):
        SplitEnv(profile, objective=objective)

"""Q-learning and SARSA: eq. 5 by hand, nearness to the exact optimum, stopping, progress and interruption."""

import ast
import sys
from pathlib import Path

import pytest

import splitload.agents
from splitload.agents import Progress, QLearning, balance, ttfo
from splitload.agents.stopping import ROUNDS
from splitload.envs import SplitEnv, cost_matrices


def exact_values(env):
    """Return the smallest value in seconds for each feasible number of stages."""
    profile = env.profile
    costs, contention = cost_matrices(profile), profile.contention
    values = {}
    for count in filter(env.feasible, range(1, env.max_stages + 1)):
        slowdown = contention.slowdown(count)
        if env.objective == "balance":
            values[count] = slowdown * balance(costs.load_s, count, env.trainable_from)[1]
        else:
            values[count] = ttfo(
                costs.load_s, costs.first_inference_s, count, contention.threads, slowdown, env.trainable_from
            ).value_s
    return values


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3, 4))])
def test_q_learning_is_near_the_optimum(any_profile, seed):
    env = SplitEnv(any_profile)
    exact = exact_values(env)
    result = QLearning(env, seed=seed).train(num_stages=tuple(exact))
    assert set(result.plans) == set(exact)
    for count, plan in result.plans.items():
        assert exact[count] * (1 - 1e-12) <= plan.value_s <= 1.05 * exact[count]
        if result.stopped[count] == "proved":
            assert plan.value_s == pytest.approx(exact[count], rel=1e-6)


def test_equation_4_alone_is_near_the_optimum_where_costs_add_up(additive_profile):
    env = SplitEnv(additive_profile, max_stages=min(5, additive_profile.num_blocks))
    exact = exact_values(env)
    result = QLearning(env).train(num_stages=tuple(exact), episodes=4_500 * len(exact), finish=False, patience=400)
    assert set(result.stopped.values()) == {"patience"}
    for count, plan in result.plans.items():
        assert plan.value_s <= 1.05 * exact[count]


def test_a_one_sided_environment_is_solved_with_proof(uneven_profile):
    env = SplitEnv(uneven_profile, one_sided=True, trainable_from=6)
    exact = exact_values(env)
    result = QLearning(env).train(num_stages=tuple(exact))
    assert set(result.stopped.values()) == {"proved"}
    assert {count: plan.value_s for count, plan in result.plans.items()} == pytest.approx(exact, rel=1e-6)


def test_sarsa_is_near_the_optimum(uneven_profile):
    for objective in ("balance", "ttfo"):
        env = SplitEnv(uneven_profile, objective=objective)
        exact = exact_values(env)
        result = QLearning(env, sarsa=True).train(num_stages=tuple(exact), patience=300)
        assert set(result.stopped.values()) == {"patience"}, "no proof while it explores"
        for count, plan in result.plans.items():
            assert plan.value_s <= 1.05 * exact[count]


def test_ttfo_is_near_the_optimum(uneven_profile):
    env = SplitEnv(uneven_profile, objective="ttfo")
    exact = exact_values(env)
    result = QLearning(env).train(num_stages=tuple(exact), patience=1000)
    for count, plan in result.plans.items():
        assert exact[count] * (1 - 1e-12) <= plan.value_s <= 1.05 * exact[count]
        assert max(result.returns[count]) == pytest.approx(-plan.value_s, rel=1e-9)


@pytest.mark.parametrize(("sarsa", "first"), [(False, -1 + 0.5 * -0.5), (True, -1 + 0.5 * -8.0)])
def test_update_is_equation_5(uneven_profile, sarsa, first):
    agent = QLearning(SplitEnv(uneven_profile), sarsa=sarsa, learning_rate=0.25, discount_factor=0.5)
    start, after = [-2.0, -3.0], [-8.0, -0.5]
    agent._learn([(start, 0, -1.0), (after, 0, -4.0)])
    assert after == [-8.0 + 0.25 * (-4.0 + 8.0), -0.5]
    assert start == [-2.0 + 0.25 * (first + 2.0), -3.0]


def test_single_stage_is_proved_in_two_episodes(uneven_profile):
    result = QLearning(SplitEnv(uneven_profile)).train(num_stages=[1])
    assert result.stopped == {1: "proved"}
    assert result.plans[1].split_points == ()
    assert result.best is result.plans[1]


def test_search_is_deterministic_and_starts_anew(uneven_profile):
    agent = QLearning(SplitEnv(uneven_profile), seed=5)
    first = agent.train(num_stages=(2, 4))
    assert agent.train(num_stages=(4, 2, 2)) == first
    other = QLearning(SplitEnv(uneven_profile), seed=6).train(num_stages=(2, 4))
    assert other.returns != first.returns


def test_budget_and_patience_end_a_search(uneven_profile):
    env = SplitEnv(uneven_profile, objective="ttfo")
    result = QLearning(env).train(num_stages=(3, 4), episodes=31)
    assert (result.episodes, len(result.returns[3]), len(result.returns[4])) == (31, 16, 15)
    assert result.stopped == {3: "episodes", 4: "episodes"}
    result = QLearning(env, optimistic=False).train(num_stages=(4,), patience=20)
    assert result.stopped == {4: "patience"}
    idle = result.episodes - result.plans[4].episode
    assert idle >= ROUNDS * 20, "so many rounds without a better plan"
    assert idle < ROUNDS * 20 + 200, "each goes on for what is new in it only"


def test_progress_tells_what_happened(uneven_profile):
    seen: list[Progress] = []
    agent = QLearning(SplitEnv(uneven_profile), epsilon_start=0.5, epsilon_end=0.1, epsilon_episodes=10)
    result = agent.train(num_stages=(3,), episodes=40, on_progress=seen.append)
    assert [progress.episode for progress in seen] == list(range(1, result.episodes + 1))
    assert {progress.episodes for progress in seen} == {40}
    assert tuple(progress.reward for progress in seen) == result.returns[3]
    assert [progress.epsilon for progress in seen[:2]] == pytest.approx([0.5, 0.46])
    assert seen[-1].epsilon == pytest.approx(0.1)
    values = [progress.best_value_s for progress in seen]
    assert values == sorted(values, reverse=True)
    assert (seen[-1].best_value_s, seen[-1].best_split_points) == (
        result.plans[3].value_s,
        result.plans[3].split_points,
    )


def test_interrupted_search_keeps_what_it_found(uneven_profile):
    def interrupt(progress):
        if progress.episode == 7:
            raise KeyboardInterrupt

    agent = QLearning(SplitEnv(uneven_profile))
    with pytest.raises(KeyboardInterrupt):
        agent.train(num_stages=(2, 3), on_progress=interrupt)
    result = agent.result()
    assert result.episodes == 7
    assert set(result.plans) == {2, 3}
    assert result.stopped == {2: "running", 3: "running"}


def test_search_stops_on_request(uneven_profile):
    asked = iter([False] * 5 + [True] * 5)
    result = QLearning(SplitEnv(uneven_profile)).train(num_stages=(2, 3), should_stop=lambda: next(asked))
    assert result.episodes == 5
    assert result.stopped == {2: "stopped", 3: "stopped"}


@pytest.mark.parametrize(
    "arguments",
    [
        {"learning_rate": 0.0},
        {"learning_rate": 1.5},
        {"discount_factor": -0.1},
        {"epsilon_start": 1.1},
        {"epsilon_end": -0.1},
        {"epsilon_episodes": 0},
    ],
)
def test_wrong_hyper_parameters(uneven_profile, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        QLearning(SplitEnv(uneven_profile), **arguments)


@pytest.mark.parametrize("arguments", [{"num_stages": ()}, {"episodes": 0}, {"patience": 0}])
def test_wrong_searches(uneven_profile, arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        QLearning(SplitEnv(uneven_profile)).train(**{"num_stages": (2,), **arguments})


def test_agents_import_numpy_gymnasium_and_the_standard_library_only():
    allowed = {"numpy", "gymnasium"} | sys.stdlib_module_names
    for file in Path(splitload.agents.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] in allowed or name.startswith("splitload.agents"), (file.name, name)

"""What every objective keeps: one value, whoever works it out, and an optimum that no plan is below."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

import splitload
from splitload import agents
from splitload.base.errors import UsageError
from splitload.envs import SplitEnv, cost_matrices
from splitload.plan import objectives
from splitload.plan.objective import Objective
from splitload.plan.objectives import OBJECTIVES, OF_ONE_DEVICE, objective_named
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention

NUM_BLOCKS = 7
LOADS_S = [0.3, 0.1, 0.25, 0.05, 0.4, 0.2, 0.15]


def profile(threads: int) -> Profile:
    """Return blocks that read for a third of their loads; the whole model was measured to load in more than they do."""
    blocks = tuple(
        BlockProfile(f"b{number}", 100, Cost(load_s, load_s / 4, load_s / 5, load_s / 3))
        for number, load_s in enumerate(LOADS_S)
    )
    contention = Contention(threads, 0.2, 0.1, start_s=0.02, cut_infer_s=0.01)
    whole = {(0, NUM_BLOCKS): Cost(1.7, 0.4, 0.3, 0.5)}
    return Profile("m", "a" * 64, "native", "dev", "measured", blocks, 0.02, contention, whole)


@pytest.fixture(params=OF_ONE_DEVICE)  # for the others see test_search_crowd.py
def objective(request: pytest.FixtureRequest) -> Objective:
    return OBJECTIVES[request.param]


def test_each_file_is_an_objective_of_its_name() -> None:
    files = {path.stem for folder in objectives.__path__ for path in Path(folder).glob("*.py")} - {"__init__"}
    assert files == set(OBJECTIVES) == {each.name for each in OBJECTIVES.values()}
    assert list(OBJECTIVES) == sorted(OBJECTIVES)


def test_nothing_else_asks_which_objective_it_is() -> None:
    root = Path(splitload.__file__).parents[1]
    folders = [root / name for name in ("splitload", "envs", "agents", "deploy")]
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            named = {side.value for side in sides if isinstance(side, ast.Constant)} & set(OBJECTIVES)
            assert not named, f"{path.name}:{node.lineno} compares with {named}"


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(UsageError, match=r"unknown objective 'balanced'.*balance"):
        objective_named("balanced")


def test_names_are_known_without_numpy() -> None:
    code = "import sys, splitload.plan.objectives; print(*({'numpy', 'gymnasium'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.parametrize("objective", OBJECTIVES.values())
def test_its_words_are_all_there(objective: Objective) -> None:
    words = (objective.wish, objective.value_name, objective.done_verb, objective.deciding_key, objective.return_name)
    assert all(words)
    assert "3 stages" in objective.value_phrase.format(count="3 stages")
    assert 0 < objective.further_gain < 1


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("num_stages", [1, 2, 4])
def test_every_way_to_value_a_plan_agrees(objective: Objective, threads: int, num_stages: int) -> None:
    made = profile(threads)
    matrices = cost_matrices(made)
    valuer = objective.valuer(matrices.rows(), num_stages)
    env = SplitEnv(made, objective=objective.name)
    least: list[float] = []
    for points in itertools.combinations(range(1, NUM_BLOCKS), num_stages - 1):
        plan = Partition(NUM_BLOCKS, points)
        least.append(objective.least_s(made, plan))
        scale = objective.scale(made.contention, num_stages)
        assert least[-1] == pytest.approx(scale * objective.value_s(made, plan), rel=1e-12)
        assert valuer(points) == pytest.approx(least[-1], rel=1e-12)
        env.reset(options={"num_stages": num_stages})
        rewards = []
        for end in (*points, NUM_BLOCKS):
            _, reward, over, _, info = env.step((num_stages - 1) * NUM_BLOCKS + end - 1)
            rewards.append(reward)
        assert over
        assert info["value_s"] == pytest.approx(least[-1], rel=1e-12)
        assert max(rewards) <= 1e-12
        assert env.illegal_reward < sum(rewards)
    best = objective.optimum(matrices, num_stages, agents, trainable_from=None, limit_s=60.0, starts=())
    assert valuer(best.split_points) == pytest.approx(best.value_s, rel=1e-12)
    assert best.bound_s == best.value_s == pytest.approx(min(least), rel=1e-9)
    if num_stages > 1:
        last = objective.optimum(matrices, num_stages, agents, trainable_from=4, limit_s=60.0, starts=())
        assert last.split_points[-1] == 4

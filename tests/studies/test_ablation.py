"""The ablation: what its variants change, and what its record holds."""

import inspect
import json

import models
import pytest

from splitload.agents.q_learning import QLearning
from splitload.commands.console import Console
from splitload.envs.split import SplitEnv
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.studies import ablation
from splitload.studies.ablation import VARIANTS, Case, ablate, figures
from splitload.studies.optimality import Learned, LearnedPlan


@pytest.fixture
def profile():
    """Six blocks, unlike each other, on two threads."""
    blocks = tuple(BlockProfile(f"b{number}", 9 + number, Cost(1.0 + number % 3, 0.2, 0.1, 0.3)) for number in range(6))
    return Profile("m", "a" * 64, "native", "dev", "measured", blocks, 0.1, Contention(2, 0.2, 0.1))


def defaults(function):
    return {name: each.default for name, each in inspect.signature(function).parameters.items()}


def test_each_variant_changes_something_that_there_is():
    assert VARIANTS[0].setting == ablation.Setting()
    assert len({(variant.factor, variant.value) for variant in VARIANTS}) == len(VARIANTS)
    for variant in VARIANTS[1:]:
        setting = variant.setting
        assert setting != VARIANTS[0].setting
        for given, function in (
            (setting.agent, QLearning),
            (setting.env, SplitEnv),
            (setting.train, QLearning.train),
        ):
            known = defaults(function)
            assert all(name in known and known[name] != value for name, value in given.items())


def test_the_defaults_are_named_as_they_are():
    known = defaults(QLearning)
    named = [variant.factor for variant in VARIANTS]
    assert f"learning rate α ({known['learning_rate']:g})" in named
    assert f"discount factor γ ({known['discount_factor']:g})" in named
    assert f"exploration ε ({known['epsilon_start']:g} → {known['epsilon_end']:g})" in named
    assert f"share of returns ({known['return_share']:g})" in named
    assert known["optimistic"] is True
    assert defaults(QLearning.train)["finish"] is True


def test_every_variant_is_learned_for_every_case_and_seed(profile, monkeypatch):
    asked = []

    def learned(*job):
        asked.append(job)
        _, objective, counts, seed, _ = job
        half = 0.5 * (objective == "ttfo")
        plans = [LearnedPlan(count, 100 * count + seed + half, 1 + seed, 9, "patience") for count in counts]
        return Learned(seed, tuple(plans), 0.5)

    monkeypatch.setattr(ablation, "learn", learned)
    cases = [Case("m", "one", profile, [2, 3]), Case("m", "two", profile, [2, 3])]
    rows = ablate(cases, [4, 5], Console(json=True), workers=1)
    assert len(asked) == sum(len(variant.objectives) for variant in VARIANTS) * 2 * 2
    assert [(row["factor"], row["value"], row["objective"]) for row in rows] == [
        (variant.factor, variant.value, objective) for variant in VARIANTS for objective in variant.objectives
    ]
    for row in rows:
        assert [(each["device"], each["num_stages"]) for each in row["plans"]] == [
            ("one", 2), ("one", 3), ("two", 2), ("two", 3)
        ]  # fmt: skip
        half = 0.5 * (row["objective"] == "ttfo")
        assert row["plans"][1]["learned_s"] == [304 + half, 305 + half]
        assert row["plans"][1]["best_at"] == [5, 6]
        best = ablation.optimum(profile, row["objective"], 3, 5.0).value_s
        assert row["plans"][3]["optimum_s"] == best == row["plans"][3]["bound_s"]
        assert row["search_s"] == [0.5] * 4


def test_figures_are_of_all_plans():
    plans = [
        {"optimum_s": 2.0, "learned_s": [2.0, 2.2], "best_at": [1, 2], "episodes": [5, 6], "stopped": ["proved"] * 2},
        {"optimum_s": 1.0, "learned_s": [1.0, 1.5], "best_at": [3, 9], "episodes": [7, 8], "stopped": ["patience"] * 2},
    ]
    found = figures(plans, [1.0, 2.0])
    assert found["mean_ratio"] == pytest.approx((1 + 1.1 + 1 + 1.5) / 4)
    assert found["worst_ratio"] == pytest.approx(1.5)
    assert (found["num_plans"], found["num_missed"], found["num_proved"]) == (4, 2, 2)
    assert (found["median_best_at"], found["median_episodes"], found["mean_search_s"]) == (2.5, 6.5, 1.5)


def test_the_record_holds_what_was_learned(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(ablation, "VARIANTS", (VARIANTS[0], VARIANTS[-1]))
    monkeypatch.setattr(ablation, "STAGES", (2, 4, 9))
    model, out = str(models.save(models.chain(5), tmp_path, "five.onnx")), tmp_path / "found.json"
    assert ablation.main([model, "--device", "rpi4", "--seeds", "2", "--jobs", "1", "-o", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["kind"] == "ablation"
    assert record["provenance"]["command"].startswith("python -m splitload.studies.ablation")
    assert len(record["rows"]) == 4
    for row in record["rows"]:
        assert [plan["num_stages"] for plan in row["plans"]] == [2, 4]
        assert row["figures"]["worst_ratio"] == pytest.approx(1.0)
    assert len(capsys.readouterr().out.splitlines()) == 4


def test_mistakes_are_said(capsys):
    with pytest.raises(SystemExit, match="2"):
        ablation.main(["--seeds", "0"])
    assert "at least 1" in capsys.readouterr().err

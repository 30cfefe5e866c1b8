"""Learned plans beside the optimum: what a search and a row of the record hold, and when the command fails."""

import json

import models
import pytest

from splitload.agents.exact_ttfo import Optimum
from splitload.plan.objectives import objective_named
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.planner.optimum import optimum
from splitload.studies import evaluate
from splitload.studies.optimality import Learned, LearnedPlan, Setting, call, figures, learn


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return str(models.save(models.chain(5), tmp_path, "five.onnx"))


@pytest.fixture
def profile():
    """Seven blocks, unlike each other, on two threads."""
    blocks = tuple(BlockProfile(f"b{number}", 9 + number, Cost(1.0 + number % 3, 0.2, 0.1, 0.3)) for number in range(7))
    return Profile("m", "a" * 64, "native", "dev", "measured", blocks, 0.1, Contention(2, 0.2, 0.1))


def plans_of(profile, count):
    """Return every plan of so many stages."""
    from itertools import combinations

    return [Partition.of(7, points) for points in combinations(range(1, 7), count - 1)]


@pytest.mark.parametrize(
    "setting", [Setting(), Setting({"sarsa": True}), Setting(warm=True), Setting(rewarded="balance")], ids=str
)
@pytest.mark.parametrize("objective", ["balance", "ttfo"])
def test_plans_are_valued_by_the_objective(profile, objective, setting):
    found = learn(profile, objective, range(1, 4), 5, setting)
    assert found.seed == 5
    balance = objective_named("balance")
    assert found.search_s > 0
    assert [plan.num_stages for plan in found.plans] == [1, 2, 3]
    for plan in found.plans:
        values = [
            balance.least_s(profile, each) if objective == "balance" else profile.schedule(each).ttfo_s
            for each in plans_of(profile, plan.num_stages)
        ]
        assert any(plan.value_s == pytest.approx(value) for value in values)
        assert optimum(profile, objective, plan.num_stages, 5.0).value_s == pytest.approx(min(values))
        assert 1 <= plan.best_at <= plan.episodes


def test_a_warm_search_begins_with_the_plan_of_equal_bytes(profile):
    (plan,) = learn(profile, "ttfo", [3], 0, Setting(train={"episodes": 1}, warm=True)).plans
    assert plan.value_s == pytest.approx(profile.schedule(Partition.of(7, (3, 5))).ttfo_s)


def stage(proved, learned_s, known_s=1.0, bound_s=1.0, stopped="proved"):
    named = {"learned_s": {"a": learned_s}, "stopped": {"a": [stopped] * len(learned_s)}}
    return {"proved": proved, "known_s": known_s, "bound_s": bound_s} | named


def test_figures_of_proved_and_other_plans():
    found = figures([stage(True, [1.0, 1.1]), stage(False, [2.0, 2.2], 2.0, 1.6, "patience")], "a")
    assert (found["num_plans"], found["num_proved_by_agent"]) == (4, 2)
    assert (found["num_optima"], found["num_optima_proved"]) == (2, 1)
    assert found["worst_ratio"] == pytest.approx(1.1)
    assert found["p90_ratio"] == pytest.approx(1.1)
    assert found["worst_over_bound"] == pytest.approx(2.2 / 1.6)
    assert found["largest_gap"] == pytest.approx(0.25)
    proved = figures([stage(True, [1.0])], "a")
    assert proved["worst_over_bound"] is proved["largest_gap"] is None


@pytest.mark.parametrize(("optimum_s", "bound_s", "known_s"), [(1.0, 1.0, 1.0), (2.0, 1.0, 1.5), (1.2, 1.0, 1.2)])
def test_the_best_known_plan_may_be_a_learned_one(profile, optimum_s, bound_s, known_s):
    case = evaluate.Case(("m", "a"), "dev", profile, "ttfo", ["q-learning", "sarsa"], [2], [0, 1], 1.0)
    assert len(case.jobs()) == 1 + 2 * 2
    searches = [
        Learned(seed, (LearnedPlan(2, value_s, 3, 9, "patience"),), 0.5)
        for seed, value_s in [(0, 1.6), (1, 1.7), (0, 1.5), (1, 1.8)]
    ]
    row = case.row([Optimum((3,), optimum_s, bound_s), *searches])
    (found,) = row["stages"]
    assert found["learned_s"] == {"q-learning": [1.6, 1.7], "sarsa": [1.5, 1.8]}
    assert (found["known_s"], found["bound_s"]) == (known_s, bound_s)
    assert found["proved"] == (optimum_s == bound_s)
    assert row["figures"]["sarsa"]["worst_ratio"] == 1.8 / known_s


def test_the_record_holds_every_plan(tmp_path, model, capsys):
    out = tmp_path / "found.json"
    words = [model, "--device", "s20", "--device", "rpi4", "--seeds", "2", "--max-stages", "3", "--jobs", "1"]
    assert evaluate.main([*words, "--agent", "sarsa", "-o", str(out)]) == 0
    record = json.loads(out.read_text())
    assert (record["kind"], record["schema_version"]) == ("search", 2)
    assert " -o" not in record["provenance"]["command"]
    rows = record["rows"]
    assert [(row["device"], row["objective"]) for row in rows] == [
        (device, objective) for device in ("s20", "rpi4") for objective in ("balance", "ttfo")
    ]
    for row in rows:
        assert row["source"] == "simulated"
        assert len(row["search_s"]["sarsa"]) == 2
        assert [stage["num_stages"] for stage in row["stages"]] == [1, 2, 3]
        for stage in row["stages"]:
            assert stage["proved"]
            for name in ("learned_s", "stopped", "episodes"):
                assert len(stage[name]["sarsa"]) == 2
            assert all(value >= stage["known_s"] * (1 - 1e-8) for value in stage["learned_s"]["sarsa"])
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == len(rows) + 1
    assert shown[-1].startswith("all, sarsa: 16 plans, 8 others given up")


@pytest.mark.parametrize(("worse", "code"), [(1.0, 0), (1.02, 1), (1.1, 1)])
def test_plans_that_miss_the_target_fail_the_command(model, monkeypatch, worse, code):
    def learned(*job):
        found = learn(*job)
        plans = [LearnedPlan(p.num_stages, p.value_s * worse, p.best_at, p.episodes, p.stopped) for p in found.plans]
        return Learned(found.seed, tuple(plans), found.search_s)

    monkeypatch.setattr(evaluate, "learn", learned)
    words = [model, "--device", "s20", "--objective", "balance", "--seeds", "1", "--max-stages", "2", "--jobs", "1"]
    assert evaluate.main(words) == code


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "0"], "at least 1"),
        (["--max-stages", "0"], "at least 1"),
        (["--jobs", "0"], "at least 1"),
        (["--device", "s21"], "s20"),
        (["--device", "s20", "--cluster", "nowhere"], "tcp://HOST:PORT"),
    ],
)
def test_mistakes_are_said(model, words, said, capsys):
    with pytest.raises(SystemExit, match="2"):
        evaluate.main([model, *words])
    assert said in capsys.readouterr().err


def test_a_call_passes_on_arguments():
    assert call(divmod, 7, 2) == (3, 1)

"""The search as users run it, beside the optimum: the record, what its figures count, and files of profiles."""

import json

import models
import pytest

from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.planner.search import Search
from splitload.studies import as_trained, plan_tables
from splitload.studies.optimality import trained_figures


def run(num_stages, learned_s, taken_s, found_by="q-learning"):
    return {
        "num_stages": num_stages, "learned_s": learned_s, "learned_deciding_s": learned_s, "taken_deciding_s": taken_s,
        "found_by": found_by, "learn_s": 1.0, "search_s": 2.0,
    }  # fmt: skip


def test_where_nothing_is_proved_the_bound_stands_beside_the_best_plan_known():
    proved = {"num_stages": 2, "known_s": 2.0, "bound_s": 2.0, "proved": True}
    open_ = {"num_stages": 3, "known_s": 1.0, "bound_s": 0.8, "proved": False}
    row = {"optima": [proved, open_], "runs": [run(2, 2.2, 2.0, "exact"), run(3, 1.0, 1.0)]}
    found = trained_figures([row])
    assert (found["num_plans"], found["num_proved"], found["num_taken"]) == (2, 1, 1)
    assert found["worst_ratio"] == pytest.approx(1.1) == found["worst_deciding"]
    assert found["worst_over_bound"] == pytest.approx(1.25)
    assert (found["most_learn_s"], found["most_search_s"]) == (1.0, 2.0)


def test_a_profile_that_is_given_is_searched_as_train_does(tmp_path, capsys):
    blocks = tuple(BlockProfile(f"b{number}", 9 + number, Cost(1.0 + number % 3, 0.2, 0.1, 0.3)) for number in range(7))
    profile = Profile("m", "a" * 64, "native", "slow", "measured", blocks, 0.1, Contention(2, 0.2, 0.1))
    file, out = tmp_path / "slow.json", tmp_path / "found.json"
    file.write_text(json.dumps(profile.to_json()))
    assert as_trained.main(["--profile", str(file), "--seeds", "2", "--jobs", "1", "-o", str(out)]) == 0
    record = json.loads(out.read_text())
    assert record["kind"] == "as_trained"
    rows = record["rows"]
    assert [(row["model"], row["device"], row["source"], row["objective"]) for row in rows] == [
        ("m", "slow", "measured", objective) for objective in ("balance", "ttfo")
    ]
    for row in rows:
        for found in row["runs"]:
            search = Search(profile, objective=row["objective"], agent="q-learning", seed=found["seed"])
            assert tuple(found["split_points"]) == search.run().partition.split_points
        assert all(each["proved"] and each["bound_s"] <= each["known_s"] * (1 + 1e-9) for each in row["optima"])
    assert "all: 4 plans, learned ÷ exact p90 1.0000, worst 1.0000" in capsys.readouterr().out
    head, body = plan_tables.as_trained([("found.json", record)])
    assert [len(row) for row in body] == [len(head)] * 3


def test_models_on_devices_and_what_cannot_be_meant(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = str(models.save(models.chain(3), tmp_path, "three.onnx"))
    monkeypatch.setattr(as_trained, "TARGET_WORST", 0.5)
    words = [model, "--device", "rpi4", "--objective", "balance", "--seeds", "1", "--jobs", "1"]
    assert as_trained.main(words) == 1, "a target that is missed is told"
    assert as_trained.main(["--profile", str(tmp_path / "none.json")]) in (1, 2)
    err = capsys.readouterr().err
    assert "none.json" in err
    assert err.count("\n") == 1

"""What a bundle gains is said in a sentence, with what of it comes from where; and why a plan is as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import BundleError
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.commands.console import Console
from splitload.commands.gain_sentence import gain_sentence
from splitload.commands.why import show_why
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.gain import RUNS, Gain, gain_of
from splitload.planner.why import reasons


def times(ttfo_s: float, process_s: float) -> dict[str, float]:
    return {"ttfo_s": ttfo_s, "process_s": process_s}


@pytest.mark.parametrize(
    ("gain", "sentence"),
    [
        (
            Gain("measured", 1, times(0.02, 0.2), times(0.08, 0.3), 3),
            "First output after 20.0 ms; a stock session takes 80.0 ms, 4.00 times as long. "
            "Whole process 200.0 ms; with a stock session it takes 300.0 ms, 1.50 times as long. "
            "Layout and mapping make all of the 4.00, as there is no cut. "
            "(Measured, medians of 3 fresh processes each, in turns.)",
        ),
        (
            Gain("measured", 2, times(0.02, 0.2), times(0.08, 0.1), 9, 1.25),
            "First output after 20.0 ms; a stock session takes 80.0 ms, 4.00 times as long. "
            "Whole process 200.0 ms; with a stock session it takes 100.0 ms, 0.50 times as long, a loss. "
            "Of the 4.00, layout and mapping make a factor of 3.20, the cut one of 1.25. "
            "(Measured, medians of 9 fresh processes each, in turns.)",
        ),
        (
            Gain("simulated", 4, {"ttfo_s": 0.1}, {"ttfo_s": 0.25}, cut_ratio=2.5),
            "First output after 100.0 ms in 4 stages; one takes 250.0 ms, 2.50 times as long (simulated).",
        ),
        (
            Gain("predicted", 1, {"ttfo_s": 0.1}, {"ttfo_s": 0.1}),
            "First output after 100.0 ms, in 1 stage (predicted).",
        ),
    ],
)
def test_sentences(gain: Gain, sentence: str) -> None:
    assert gain_sentence(gain) == sentence


def test_what_is_not_known_is_said() -> None:
    gain = Gain("measured", 2, times(0.02, 0.2), times(0.08, 0.3), 3)
    assert "What of it comes from the cut was not measured." in gain_sentence(gain)
    assert gain.to_json()["layout_ratio"] is None


def test_a_benchmark_says_what_it_measured() -> None:
    def arm(ttfo_s: float) -> dict[str, dict[str, float]]:
        return {"ttfo_s": {"median": ttfo_s}, "process_s": {"median": 2 * ttfo_s}}

    arms = {"stock": arm(0.8), "tuned": arm(0.3), "splitload": arm(0.2)}
    trial = {"num_stages": 2, "split_ttfo_s": 0.25, "whole_ttfo_s": 0.5}
    assert gain_of({"stock": arm(1.0), "tuned": arm(1.0)}, 2, 9) is None
    for stages, of_trial, cut in ((1, trial, None), (2, trial, 2.0), (2, None, 1.5), (3, trial, 1.5)):
        gain = gain_of(arms, stages, 9, of_trial)
        assert gain is not None
        assert gain.ratio == pytest.approx(4.0)
        assert gain.cut_ratio == (cut if cut is None else pytest.approx(cut))
        assert gain.layout_ratio == pytest.approx(4.0 / (cut or 1.0))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)

    def words(*given: str | Path) -> str:
        assert main([str(word) for word in given]) == 0
        return capsys.readouterr().out

    return words


def test_train_and_bench_measure_beside_stock(run: Any, chain_model: Path) -> None:
    found = json.loads(run("train", chain_model, "--device", "host", "-o", "b.splitload", "--json"))
    gain = found["gain"]
    assert (gain["source"], gain["runs"]) == ("measured", RUNS)
    assert gain["splitload"]["ttfo_s"] == found["ttfo_s"]["measured"]
    assert gain["ratio"] == gain["stock"]["ttfo_s"] / gain["splitload"]["ttfo_s"]
    assert gain["stock"]["process_s"] > gain["stock"]["ttfo_s"] > 0
    out = run("bench", chain_model, "--bundle", "b.splitload", "--runs", "1", "--arms", "stock,splitload")
    last = out.splitlines()[-1]
    assert last.startswith("First output after ")
    assert last.endswith("(Measured, medians of 1 fresh processes each, in turns.)")


def test_a_simulated_device_shows_one_stage_beside_the_plan(run: Any) -> None:
    words = ["train", "--device", "s20", "--agent", "exact", "--max-stages", "3"]
    found = json.loads(run(*words, "-o", "b.splitload", "--json"))
    whole = json.loads(run(*words[:-1], "1", "-o", "one.splitload", "--json"))
    assert found["gain"]["source"] == "simulated"
    assert found["gain"]["stock"] is None
    assert found["gain"]["one_stage"]["ttfo_s"] == pytest.approx(whole["ttfo_s"]["predicted"])
    assert found["gain"]["splitload"]["ttfo_s"] == found["ttfo_s"]["predicted"]


def test_one_stage_prints_no_table_of_equal_rows(run: Any) -> None:
    out = run("train", "--device", "s20", "--agent", "exact", "--max-stages", "1", "-o", "b.splitload")
    assert "uniform bytes" not in out
    assert "First output after " in out


def test_a_trainable_stage_is_no_second_one_that_does_not_pay(
    run: Any, chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("splitload.planner.search.WORTHWHILE", 10.0)  # no cut pays
    out = run("train", chain_model, "--device", "s20", "--agent", "exact", "--trainable", "1", "-o", "b.splitload")
    assert "in 2 stages" in out
    assert "one frozen stage, as splitting would not pay: the best two would have loaded after" in out
    assert "\none stage" not in out
    assert "uniform bytes" not in out


def test_inspect_says_why(run: Any) -> None:
    words = ["train", "--device", "s20", "--agent", "exact", "--max-stages", "4", "-o", "b.splitload"]
    found = json.loads(run(*words, "--json"))
    plan = read_manifest(Path("b.splitload")).plan
    assert [row["num_stages"] for row in plan["why"]["plans"]] == [1, 2, 3, 4]
    (taken,) = (row for row in plan["why"]["plans"] if row["num_stages"] == found["plan"]["num_stages"])
    assert taken["split_points"] == found["plan"]["split_points"]
    assert taken["ttfo_s"] == found["ttfo_s"]["predicted"]
    assert plan["why"]["plans"][0]["ttfo_s"] == found["gain"]["one_stage"]["ttfo_s"]
    out = run("inspect", "--why", "b.splitload")
    assert "objective: balance; agent: exact" in out
    assert "the best plan for each number of stages, simulated" in out
    assert "Opening a stage of a cut costs " in out
    assert json.loads(run("inspect", "--why", "b.splitload", "--json"))["plan"] == plan


def test_inspect_says_why_a_trained_stage_is_cut_off(run: Any) -> None:
    golden = Path(__file__).parents[1] / "deploy" / "golden" / "v1-trainable.splitload"
    row = {"num_stages": 1, "split_points": [], "loaded_s": 1, "ttfo_s": 1}
    notes = {"objective": "balance", "agent": "exact", "profile_source": "measured"}
    why = {"why": {"plans": [row], "stage_s": 0, "saving_s": 0}}
    shutil.copytree(golden, "b.splitload", copy_function=shutil.copyfile)
    manifest = json.loads((golden / "manifest.json").read_text())
    for trained in (True, False):
        kept = manifest if trained else {key: manifest[key] for key in manifest if key != "training"}
        Path("b.splitload/manifest.json").write_text(json.dumps(kept | {"plan": notes | why}))
        assert ("holds what is trained, and is cut off for that" in run("inspect", "--why", "b.splitload")) == trained


def test_why_is_bounded(run: Any) -> None:
    run("profile", "zoo:mobilenet_v1", "--device", "s20", "-o", "p.json")
    profile = Profile.read(Path("p.json"))
    size = profile.num_blocks
    plans = {count: Partition(size, tuple(range(1, count))) for count in range(1, size + 1)}
    why = reasons(profile, plans[size], plans)
    assert len(why["plans"]) == 25
    assert why["plans"][-1]["num_stages"] == size
    assert why["saving_s"] < why["plans"][0]["ttfo_s"]


@pytest.mark.parametrize(
    "change",
    [
        {"why": None},
        {"why": {"plans": [], "stage_s": 0, "saving_s": 0}},
        {"why": {"plans": [{"num_stages": 1, "split_points": [], "loaded_s": "1", "ttfo_s": 1}]}},
        {"objective": "speed"},
        {"trial": {"num_stages": 2}},
    ],
    ids=str,
)
def test_notes_of_another_form_are_refused(run: Any, change: dict[str, Any]) -> None:
    run("train", "--device", "s20", "--agent", "uniform", "--max-stages", "2", "-o", "b.splitload")
    plan = dict(read_manifest(Path("b.splitload")).plan)
    show_why(plan, 2, Console(json=True))
    with pytest.raises(BundleError):
        show_why({**plan, **change}, 2, Console(json=True))
    del plan["why"]
    with pytest.raises(BundleError, match="build it again"):
        show_why(plan, 2, Console(json=True))

"""Why a plan is as it is, as `splitload inspect --why` says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import BundleError
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.commands.why import show_why
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.why import reasons


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
    assert "objective: balance; agent: exact; plan found by: exact" in out
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


def test_a_plan_for_a_crowd_is_not_explained_by_one_device(capsys: pytest.CaptureFixture[str]) -> None:
    row = {"num_stages": 1, "split_points": [], "loaded_s": 1, "ttfo_s": 1}
    why = {"why": {"plans": [row], "stage_s": 0, "saving_s": 0}}
    for objective, of_crowd in (("latency", True), ("balance", False)):
        show_why(
            {"objective": objective, "agent": "exact", "profile_source": "simulated", **why}, 1, Console(json=False)
        )
        out = capsys.readouterr().out
        assert ("the plan was taken for the latency of a crowd" in out) == of_crowd
        assert ("A cut is made for a tenth or more" in out) != of_crowd


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
    with pytest.raises(BundleError, match=r"^'b/manifest\.json': plan"):
        show_why({**plan, **change}, 2, Console(json=True), where="'b/manifest.json': plan")
    del plan["why"]
    with pytest.raises(BundleError, match="build it again"):
        show_why(plan, 2, Console(json=True))

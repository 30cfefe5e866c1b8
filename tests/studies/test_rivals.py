"""The record of learned plans beside the baselines', and its table."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import models
import pytest

from splitload.bundle.read import read_manifest
from splitload.devices.host import HostDevice
from splitload.measure.sampling import Arm
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.planner.search import Search
from splitload.studies import plan_tables, records, rivals


def test_a_ratio_is_to_the_best_baseline() -> None:
    found = rivals.compare({"learned": [3.0, 9.0, 2.0], "random": [4.0, 4.0, 1.0], "uniform_bytes": [2.0, 5.0, 7.0]})
    assert found == {"learned_s": 3.0, "baselines_s": {"random": 4.0, "uniform_bytes": 5.0}, "ratio": 0.75}


@pytest.mark.parametrize("agent", ["q-learning", *rivals.RIVALS])
def test_a_search_can_be_told_the_number_of_stages(agent: str) -> None:
    blocks = tuple(BlockProfile(f"b{number}", 100, Cost(1.0, 0.1, 0.1)) for number in range(6))
    dear = Profile("m", "a" * 64, "native", "host", "measured", blocks, 1.0, Contention(1))  # no cut pays
    assert Search(dear, agent=agent, objective="ttfo").run().partition.num_stages == 1
    for count in (1, 2, 4):
        found = Search(dear, agent=agent, objective="ttfo", num_stages=count, episodes=200).run()
        assert found.partition.num_stages == count


def test_the_same_plan_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    model = str(models.save(models.chain(3), tmp_path, "three.onnx"))  # which has one plan of three stages
    monkeypatch.setattr(rivals, "COUNTS", (None, 2, 3, 4))
    opened: list[int] = []

    def scripted(_: HostDevice, arm: Arm, *rest: Any) -> dict[str, float]:
        opened.append(len(read_manifest(arm.path).variants[0].stages))
        return {"ttfo_s": float(len(opened))}

    monkeypatch.setattr(HostDevice, "first_output", scripted)
    monkeypatch.setattr(rivals, "HostDevice", functools.partial(HostDevice, repeats=1))
    out = tmp_path / "found.json"
    assert rivals.main([model, "--runs", "3", "-o", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["kind"] == "rivals"
    free, two, three = record["rows"]  # four stages are too many
    assert [row["num_stages"] for row in record["rows"]] == [None, 2, 3]
    for row in record["rows"]:
        names = [name for plan in row["plans"] for name in plan["names"]]
        assert sorted(names) == sorted(["learned", *rivals.RIVALS])
        assert len({tuple(plan["split_points"]) for plan in row["plans"]}) == len(row["plans"])
        assert all(len(plan["ttfo_s"]) == 3 and plan["predicted_s"] > 0 for plan in row["plans"])
        assert row["ratio"] == row["learned_s"] / min(row["baselines_s"].values())
    assert (two["trial"], three["trial"]) == (None, None)
    (only,) = three["plans"]
    assert (only["split_points"], three["ratio"]) == ([1, 2], 1.0)
    assert opened[-3:] == [3, 3, 3]
    assert only["ttfo_s"] == [len(opened) - 2.0, len(opened) - 1.0, float(len(opened))]
    assert set(free["baselines_s"]) == set(rivals.RIVALS)
    assert "three" in capsys.readouterr().out


def row(num_stages: int | None, plans: list[dict[str, Any]]) -> dict[str, Any]:
    samples_s = {name: plan["ttfo_s"] for plan in plans for name in plan["names"]}
    return {"model": "m", "num_stages": num_stages, "plans": plans, **rivals.compare(samples_s)}


def test_the_table_names_plans_that_are_the_same() -> None:
    free = [
        {"names": ["learned", "random"], "split_points": [], "ttfo_s": [0.010, 0.012, 0.011]},
        {"names": ["uniform_bytes"], "split_points": [3, 5], "ttfo_s": [0.022, 0.020, 0.024]},
    ]
    fixed = [
        {"names": ["learned"], "split_points": [4], "ttfo_s": [0.021, 0.022, 0.020]},
        {"names": ["uniform_bytes"], "split_points": [3], "ttfo_s": [0.020, 0.020, 0.020]},
    ]
    record = {"rows": [row(None, free), row(2, fixed)], "provenance": {"command": "compete"}}
    head, rows = plan_tables.rivals([("r.json", record)])
    assert head == ("model", "k", "learned TTFO ms", "random ms", "uniform_bytes ms", "learned ÷ best baseline", "n")
    assert rows == [
        ("m", "free: 1", "11.0 (10.0–12.0)", "the same plan", "22.0 (20.0–24.0), k = 3", "1.000", "3"),
        ("m", "2", "21.0 (20.0–22.0)", "–", "20.0 (20.0–20.0)", "1.050", "3"),
    ]
    text = records.fill("<!-- results:rivals -->\n<!-- end -->", {"rivals": [("r.json", record)]})
    assert "| m | 2 | 21.0 (20.0–22.0) | – |" in text
    assert "- `r.json`: `compete`" in text

"""The record of predicted and measured times to first output, and its table."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import models
import pytest

from splitload.base.cache import user_cache
from splitload.build.assemble import VariantPlan
from splitload.bundle.read import read_manifest
from splitload.devices.host import HostDevice
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.measure.sampling import Arm
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention
from splitload.studies import plan_tables, predictions, records


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    return str(models.save(models.chain(5), tmp_path, "five.onnx"))


def profile(load_s: Sequence[float], threads: int = 8) -> Profile:
    """A model of blocks that load in so many seconds and infer in half a second each; two loads do not interfere."""
    blocks = tuple(BlockProfile(f"b{n}", 100, Cost(load, 0.5, 0.5)) for n, load in enumerate(load_s))
    return Profile("m", "a" * 64, "native", "host", "measured", blocks, 0.0, Contention(threads))


def sample(ttfo_s: float) -> dict[str, float]:
    return {"ttfo_s": ttfo_s, "load_s": ttfo_s / 2, "first_inference_s": ttfo_s / 4, "import_s": 9.0}


def test_cases_are_distinct(model: str) -> None:
    graph = load_graph(open_source(model, user_cache()), "native", user_cache())
    plans = predictions.plans_of(graph, profile([1.0] * len(graph.blocks)))
    assert len(graph.blocks) == 5  # so that six stages are left out
    assert (plans[0].partition.num_stages, plans[0].threads) == (1, 1)
    assert len({(plan.partition, plan.threads) for plan in plans}) == len(plans)
    assert {plan.partition.num_stages for plan in plans} == {1, 2, 3, 4}
    assert {plan.threads for plan in plans[1:]} == {1, 2}


def test_a_plan_is_predicted_on_its_own_threads(model: str) -> None:
    graph = load_graph(open_source(model, user_cache()), "native", user_cache())
    made = profile([1.0, 2.0, 1.0, 1.0, 1.0])
    halves = Partition(5, (2,))
    assert predictions.predict(made, VariantPlan(graph, halves, 1)).ttfo_s == pytest.approx(3 + 3 + 1.5)  # one by one
    assert predictions.predict(made, VariantPlan(graph, halves, 2)).ttfo_s == pytest.approx(
        3 + 1 + 1.5
    )  # beside each other


def test_a_case_by_hand(model: str) -> None:
    graph = load_graph(open_source(model, user_cache()), "native", user_cache())
    plan = VariantPlan(graph, Partition(5, (2,)), 1)
    taken = [sample(seconds) for seconds in (5.0, 6.0, 4.0, 7.0, 6.0)]
    first = profile([1.0, 2.0, 1.0, 1.0, 1.0])
    first = replace(first, contention=first.contention._replace(start_s=0.25, cut_infer_s=0.125))
    made = predictions.case(first, profile([1.0] * 5), plan, taken)
    assert made == {
        "split_points": [2],
        "num_stages": 2,
        "threads": 1,
        "predicted_s": 7.875,  # the second stage is loaded 0.25 later, and infers 0.125 longer
        "predicted_load_s": 6.25,
        "predicted_first_inference_s": 2.75,
        "predicted_plain_s": 7.5,
        "predicted_again_s": 6.5,
        "samples_s": {
            "ttfo_s": [5.0, 6.0, 4.0, 7.0, 6.0],
            "load_s": [2.5, 3.0, 2.0, 3.5, 3.0],
            "first_inference_s": [1.25, 1.5, 1.0, 1.75, 1.5],
        },
        "error": pytest.approx(7.875 / 6 - 1),
        "halves_apart": pytest.approx(6.5 / 5.5 - 1),  # the sample in the middle is in neither
    }


def test_the_record_holds_every_sample(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[tuple[Path, int | None, int]] = []

    def scripted(_: HostDevice, arm: Arm, *rest: Any) -> dict[str, float]:
        stages = read_manifest(arm.path, "hashes").variants[0].stages
        assert not any(stage.upgrade for stage in stages)
        opened.append((arm.path, arm.threads, len(stages)))
        return sample(1.0 + len(opened))

    monkeypatch.setattr(HostDevice, "first_output", scripted)
    monkeypatch.setattr(predictions, "HostDevice", functools.partial(HostDevice, repeats=1))
    out = tmp_path / "found.json"
    assert predictions.main([model, "--runs", "2", "-o", str(out)]) == 0
    record = json.loads(out.read_text(encoding="utf-8"))
    assert record["kind"] == "predictions"
    (row,) = record["rows"]
    cases = row["cases"]
    assert (row["model"], row["num_blocks"], row["runs"]) == ("five", 5, 2)
    assert [(case["threads"], case["num_stages"]) for case in cases] * 2 == [place[1:] for place in opened]  # in turns
    assert len({bundle for bundle, *_ in opened}) == len({tuple(case["split_points"]) for case in cases})
    count = len(cases)
    for number, case in enumerate(cases):
        first_s, second_s = 2.0 + number, 2.0 + number + count
        assert case["samples_s"]["ttfo_s"] == [first_s, second_s]
        assert case["error"] == pytest.approx(case["predicted_s"] / ((first_s + second_s) / 2) - 1)
        assert case["halves_apart"] == pytest.approx(second_s / first_s - 1)
        assert case["predicted_s"] > 0 < case["predicted_again_s"]
    assert "five" in capsys.readouterr().out
    assert not (tmp_path / "cache" / "profiles").exists()  # the user's
    assert not list((tmp_path / "cache").glob(".*.making"))


def test_halves_need_two_samples(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        predictions.main([model, "--runs", "1"])
    assert "at least 2" in capsys.readouterr().err


def case(error: float, stages: int = 1, threads: int = 1, apart: float = 0.02, runs: int = 9) -> dict[str, Any]:
    return {
        "error": error,
        "num_stages": stages,
        "threads": threads,
        "halves_apart": apart,
        "predicted_s": 2.0,
        "predicted_plain_s": 1.0,
        "predicted_again_s": 1.8,
        "samples_s": {"ttfo_s": [1.0] * runs},
    }


def test_the_table_tells_errors_and_noise() -> None:
    first = {"model": "a", "cases": [case(0.05), case(-0.15, 2, 1), case(0.25, 2, 2, apart=0.04)]}
    second = {"model": "b", "cases": [case(-0.1, runs=5)]}
    head, rows = plan_tables.predictions([("p.json", {"rows": [first, second]})])
    assert len(head) == len(rows[0])
    assert rows == [
        ("a", "3", "+5.0%", "-11.0%", "+21.0%", "33%", "67%", "2.0%", "10.0%", "9"),
        ("b", "1", "-10.0%", "-10.0%", "-10.0%", "100%", "100%", "2.0%", "10.0%", "5"),
        ("all of one stage", "2", "-2.5%", "-8.5%", "+3.5%", "100%", "100%", "2.0%", "10.0%", "5–9"),
        ("all cuts, 1 loading thread", "1", "-15.0%", "-15.0%", "-15.0%", "0%", "100%", "2.0%", "10.0%", "9"),
        ("all cuts, 2 loading threads", "1", "+25.0%", "+25.0%", "+25.0%", "0%", "0%", "4.0%", "10.0%", "9"),
        ("all", "4", "-2.5%", "-13.5%", "+19.0%", "50%", "75%", "2.0%", "10.0%", "5–9"),
        ("all, were a call and a cut free", "4", "-51.2%", "-56.8%", "-40.5%", "0%", "0%", "2.0%", "10.0%", "5–9"),
    ]
    named = ("p.json", {"rows": [first], "provenance": {"command": "predict"}})
    text = records.fill("<!-- results:predictions -->\n<!-- end -->", {"predictions": [named]})
    assert "| a | 3 | +5.0% |" in text
    assert "- `p.json`: `predict`" in text

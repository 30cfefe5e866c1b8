"""The pure parts of the study of crowds: cuts, limits, what counts as right, when tasks are placed anew, storms."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from splitload.base.errors import StageError
from splitload.crowd.entities import Measured, Stage, Worker
from splitload.crowd.pipeline import Pipeline
from splitload.plan.crowd import RUNTIME_BYTES, WorkerGroup
from splitload.plan.crowd import Crowd as PlannedCrowd
from splitload.studies import crowd, crowd_faults, emulated_tables, records
from splitload.studies.crowd_faults import PlacementWatch, Storm
from splitload.studies.crowd_limits import measured, seconds_of, shared_rate, slowest_stage_rate
from splitload.studies.crowd_runs import Tally
from splitload.studies.crowd_subjects import CrowdFile, Subject, even_cuts


def test_even_cuts_make_the_slowest_stage_as_fast_as_can_be() -> None:
    assert even_cuts([1, 1, 1, 1, 1, 1], 3) == (2, 4)
    assert even_cuts([0, 0, 5, 1, 4, 2], 3) == (3, 5)
    assert even_cuts([3, 1], 2) == (1,)


def test_the_file_of_a_crowd_says_what_it_should(tmp_path: Path) -> None:
    path = tmp_path / "crowd.toml"
    path.write_text(CrowdFile(count=5, batch=7, memory="43MB", speed=0.35, link_mbit_s=40.0).text)
    read = PlannedCrowd.read(path)
    assert read == PlannedCrowd((WorkerGroup(5, 43_000_000 - RUNTIME_BYTES, 0.35, 5e6),), 7)


def test_limits_of_a_crowd() -> None:
    equal = [[1.0, 1.0, 1.0]] * 5
    assert slowest_stage_rate(equal) == 1.0  # of five workers at three stages one is alone
    assert shared_rate(equal) == pytest.approx(5 / 3)
    assert slowest_stage_rate([[1.0, 2.0], [2.0, 1.0]]) == 1.0
    assert slowest_stage_rate([[1.0, 1.0]]) is None
    stages = {
        "a": {"0": {"count": 2, "run_s": 1.0}},
        "b": {"0": {"count": 2, "run_s": 3.0}, "1": {"count": 1, "run_s": 2.0}},
    }
    assert seconds_of(stages, 2) == [[0.5, 2.0], [1.5, 2.0]]
    sample = {"stages": stages, "num_inputs": 3, "batch_s": 6.0}
    rates = measured(sample, 2)
    assert (rates["inputs_per_s"], rates["slowest_stage_per_s"]) == (0.5, 0.5)


class Answers(Subject):
    """A subject whose stock session answers an array of the seed."""

    def expect(self, seeds: Any) -> dict[int, list[Any]]:
        return {seed: [np.full(3, float(seed + 1))] for seed in seeds}


def test_what_is_lost_doubled_failed_or_wrong_is_counted() -> None:
    tally = Tally(Answers(SimpleNamespace(), Path(), (), ("y",)), range(6))  # type: ignore[arg-type]
    tally.take(0, {"y": np.full(3, 1.0)})
    tally.take(1, {"y": np.full(3, 2.0 * (1 + 1e-6))})
    tally.take(2, {"y": np.full(3, 4.0)})  # that of the next
    tally.take(3, StageError("no"))
    tally.take(0, {"y": np.full(3, 1.0)})
    tally.take(4, {"y": np.array([5.0, 5.0, np.nan])})
    found = tally.result()
    assert found["largest_unsplit_error"] is None
    beside = Tally(
        Answers(SimpleNamespace(), Path(), (), ("y",)), range(2), {0: [np.full(3, 1.0)], 1: [np.full(3, 2.0)]}
    )  # type: ignore[arg-type]
    beside.take(1, {"y": np.full(3, 2.0 * (1 + 1e-6))})
    assert beside.result()["largest_unsplit_error"] == pytest.approx(1e-6)
    assert [found[key] for key in ("num_inputs", "lost", "doubled", "failed", "wrong")] == [6, 1, 1, 1, 2]
    assert found["least_difference"] == pytest.approx(1 / 6)


def test_the_first_task_placed_anew_is_seen() -> None:
    pipeline = Pipeline([Stage(f"s{index}", 10, 10, 1.0) for index in range(2)])
    watch = PlacementWatch(pipeline)
    for name in "ab":
        pipeline.add_worker(Worker(name), 0.0)
    for item in range(4):
        pipeline.add_item(item)
    given = pipeline.step(0.0).assignments
    assert {each.worker for each in given} == {"a", "b"}
    first = next(each for each in given if each.worker == "a")
    pipeline.finished(first, 1.0, Measured(1.0))
    pipeline.remove_worker("a", 1.0)
    loss = watch.of("a")
    assert loss is not None
    assert loss["placed_s"] is None
    held = sum(each.worker == "a" for each in given) - 1
    assert loss["held"] == held
    for now_s in range(2, 20):
        for each in pipeline.step(float(now_s)).assignments:
            pipeline.finished(each, now_s + 0.5, Measured(1.0))
        for each in given:
            if each.worker == "b":
                pipeline.finished(each, now_s + 0.5, Measured(1.0))
    assert loss["placed_s"] >= loss["lost_s"]
    assert watch.of("b") is watch.of(None) is None


class Devices:
    """Stands in for an emulation: notes faults, and that no device has two at a time."""

    def __init__(self, count: int) -> None:
        self.names = tuple(f"device-{number}" for number in range(count))
        self.done: list[str] = []
        self.struck: set[str] = set()
        self.lock = threading.Lock()

    def kill(self, name: str) -> None:
        self._strike(name)

    def restart(self, name: str) -> None:
        self.struck.discard(name)

    def wait(self, names: Collection[str] | None = None) -> None:
        assert names is None or not self.struck.intersection(names)

    @contextlib.contextmanager
    def cut(self, name: str) -> Iterator[None]:
        self._strike(name)
        yield
        self.struck.discard(name)

    def _strike(self, name: str) -> None:
        with self.lock:
            assert name not in self.struck
            self.struck.add(name)
            self.done.append(name)


def test_a_storm_strikes_as_often_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowd_faults, "CUT_S", 0.0)
    devices = Devices(3)
    storm = Storm(devices, 100, kills=4, cuts=3, seed=1)  # type: ignore[arg-type]
    for count in range(1, 1_000_000):
        storm.on_output(count)
        if len(storm.done) == 7:
            break
    storm.end()
    assert len(devices.done) == 7
    faults = [each["fault"] for each in storm.done]
    assert (faults.count("kill"), faults.count("cut")) == (4, 3)
    assert {each["device"] for each in storm.done} <= set(devices.names)


def sample(batch_s: float, **others: Any) -> dict[str, Any]:
    zero = dict.fromkeys(("lost", "doubled", "failed", "wrong", "stages_from_client_bytes", "stages_between_bytes"), 0)
    sizes = {"peak_bytes": {"a": 30 << 20, "b": None}, "idle_bytes": {"a": 10 << 20, "b": None}}
    base = {"num_inputs": 5, "batch_s": batch_s, "between_bytes": 2_000_000, "cpu_s": 1.0}
    errors = {"largest_error": 1e-6, "largest_unsplit_error": 0.0}
    return {**zero, **sizes, **base, **errors, **others}


def test_tables_say_what_was_aimed_at() -> None:
    shared = {"model": "m", "stage_bytes": [1, 2, 3], "num_devices": 5, "limits": {"processors": 0.35}}
    rows = [
        {
            **shared,
            "of": "batch",
            "rounding": 5e-7,
            "samples": {
                "streaming": [sample(1.0), None],
                "barrier": [sample(2.0)],
                "streaming, tiers": [sample(1.5)],
                "barrier, tiers": [sample(6.0)],
            },
        },
        {**shared, "of": "memory", "planned_for": "43MB", "samples": {"streaming": [sample(1.0)]}},
        {
            **shared,
            "of": "throughput",
            "samples": {"streaming": [sample(1.0, num_inputs=200)]},
            "rates": [{"inputs_per_s": 9.0, "slowest_stage_per_s": 10.0, "shared_per_s": 12.0}],
        },
        {**shared, "of": "kills", "samples": {"a worker killed": [sample(1.0, held=2, placed_s=0.5, wrong=1), None]}},
        {**shared, "of": "storm", "faults": [{"fault": "cut"}], "samples": {"storm": [sample(9.0, failed=2)]}},
        {
            **shared,
            "of": "ablation",
            "samples": {
                "none": [sample(1.0)],
                "affinity": [sample(3.0)],
                "none, cold": [sample(4.0)],
                "affinity, cold": [sample(8.0)],
                "recovery, a worker killed": [sample(1.0, failed=3)],
            },
        },
    ]
    named = [("crowd.json", {"rows": rows, "provenance": {"command": "make it"}})]
    aims = {target: found for target, _, found in emulated_tables.targets(named)[1]}
    errors = ["0.0e+00", "1.0e-06"]
    assert list(aims.values()) == [
        "0.25", "0.50", *errors, "20.0 (20.0–20.0)", *errors, "0.90 (0.90–0.90)", "0.75 (0.75–0.75)", *errors,
        "1, and 1 batches failed", "0.50 (0.50–0.50)", "3",
    ]  # fmt: skip
    head, body = emulated_tables.ablation(named)
    assert [line[3] for line in body] == ["1.00", "3.00", "1.00", "2.00", "1.00"]
    assert body[-1][4] == "3 of 5"
    assert {len(line) for line in body} == {len(head)}
    text = "".join(
        f"<!-- results:{word} -->\n<!-- end -->\n" for word in ("crowd", "crowd_targets", "crowd_mechanisms")
    )
    assert records.fill(text, {"crowd": named}).count("`make it`") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "unknown part"),
        (["--processors", "2"], "share of a processor"),
        (["--kills", "x"], "whole number"),
    ],
)
def test_bad_requests_are_refused(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        crowd.main(words)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err

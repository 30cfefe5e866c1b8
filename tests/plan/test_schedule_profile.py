"""Schedules and contention computed by hand, and profiles as files."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitload.base.errors import ProfileError
from splitload.plan.objectives import objective_named
from splitload.plan.partition import Partition
from splitload.plan.profile import LEAST_AGAIN_S_PER_BYTE, BlockProfile, Cost, Profile
from splitload.plan.schedule import Clock, Contention, Schedule, Task, simulate


def make() -> Profile:
    blocks = tuple(BlockProfile(f"b{i}", 100 * i, Cost(1.0 + i, 0.5, 0.25)) for i in range(3))
    return Profile(
        "m", "a" * 64, "portable", "dev", "measured", blocks, 0.5, Contention(4, 0.2, 0.5),
        {(0, 2): Cost(2.0, 0.75, 0.5)}, {"onnxruntime": "1"},
    )  # fmt: skip


def test_slowdown_follows_the_formula_of_table_1() -> None:
    contention = Contention(threads=8, serial_share=0.2)
    assert contention.slowdown(1) == 1.0
    for stages in (2, 4, 7):
        whole_s = 0.96
        each_s = whole_s / stages * contention.slowdown(stages)
        assert each_s == pytest.approx(whole_s * (0.2 + 0.8 / stages))
    assert contention.slowdown(100) == pytest.approx(1 + 0.2 * 7)  # no more than 8 at a time


def test_the_penalty_comes_with_as_many_stages_as_threads() -> None:
    contention = Contention(threads=4, serial_share=0.1, thread_penalty=0.25)
    assert contention.slowdown(3) == pytest.approx(1.2)
    assert contention.slowdown(4) == pytest.approx(1.3 * 1.25)
    assert Contention(1, 0.1, 0.25).slowdown(1) == 1.0  # nothing is parallel


def test_case_1_all_loads_start_at_once() -> None:
    schedule = simulate([2.0, 1.0], [0.5, 0.25], Contention(4))
    assert schedule.tasks == (
        Task(1, "load", 1, 0.0, 1.0),
        Task(0, "load", 0, 0.0, 2.0),
        Task(0, "infer", 0, 2.0, 2.5),
        Task(1, "infer", 0, 2.5, 2.75),
    )
    assert (schedule.load_makespan_s, schedule.ttfo_s) == (2.0, 2.75)


def test_case_2_further_loads_wait_for_a_thread_while_loaded_stages_infer() -> None:
    schedule = simulate([1.0, 2.0, 3.0], [0.5, 0.5, 0.5], Contention(2), "predicted")
    assert set(schedule.tasks) == {
        Task(0, "load", 0, 0.0, 1.0),
        Task(1, "load", 1, 0.0, 2.0),
        Task(2, "load", 0, 1.0, 4.0),
        Task(0, "infer", 0, 1.0, 1.5),
        Task(1, "infer", 0, 2.0, 2.5),
        Task(2, "infer", 0, 4.0, 4.5),
    }
    assert (schedule.source, schedule.load_makespan_s, schedule.ttfo_s) == ("predicted", 4.0, 4.5)


def test_a_clock_by_hand() -> None:
    clock = Clock(threads=8, slowdown=2.0)
    assert clock.add(1.0, 0.5) == 2.5  # loads until 2, infers until 2.5
    assert clock.add(0.75, 1.0) == 1.0  # loaded at 1.5, waits for stage 1, infers until 3.5
    assert clock.add(3.0, 0.25) == 2.75  # loaded at 6, infers until 6.25
    assert (clock.loaded_s, clock.inferred_s) == (6.0, 6.25)


def test_storage_serves_one_load_after_the_other() -> None:
    schedule = simulate([3.0, 2.0, 2.0], [0.5, 0.5, 0.5], Contention(2, 0.5), read_s=[1.0, 1.0, 0.0])
    # slowdown 1.5: stage 1 reads until 1 and prepares until 4; stage 2 waits for storage, reads from 1 to 2, prepares
    # until 3.5; stage 3 takes its thread over and reads nothing
    assert {task.stage: (task.start_s, task.end_s) for task in schedule.tasks if task.kind == "load"} == {
        0: (0.0, 4.0),
        1: (0.0, 3.5),
        2: (3.5, 6.5),
    }
    assert schedule.ttfo_s == 7.0


def test_contention_stretches_every_load() -> None:
    schedule = simulate([1.0, 1.0], [0.0, 0.0], Contention(2, 0.5, 0.1))
    assert schedule.load_makespan_s == pytest.approx(1.5 * 1.1)


def test_a_load_call_and_a_cut_cost_besides() -> None:
    contention = Contention(1, start_s=0.25, cut_infer_s=0.5)
    assert simulate([1.0], [2.0], contention).ttfo_s == 3.25  # one stage is no cut
    schedule = simulate([1.0, 4.0], [2.0, 1.0], contention)
    assert {(task.stage, task.kind, task.start_s, task.end_s) for task in schedule.tasks} == {
        (0, "load", 0.25, 1.25),
        (1, "load", 1.25, 5.25),
        (0, "infer", 1.25, 3.75),
        (1, "infer", 5.25, 6.75),
    }
    reading = simulate([1.0, 1.0], [0.0, 0.0], Contention(2, start_s=0.25), read_s=[0.5, 0.5])
    assert reading.load_makespan_s == 1.75, "storage serves nobody before the call"


def test_a_schedule_draws_itself() -> None:
    lines = simulate([1.0, 1.0], [1.0, 1.0], Contention(2)).render(width=30).splitlines()
    assert lines[0] == "  load 0 |" + "1" * 10 + " " * 20 + "|"
    assert lines[1] == "  load 1 |" + "2" * 10 + " " * 20 + "|"
    assert lines[2] == "   infer |" + " " * 10 + "a" * 10 + "b" * 10 + "|"
    assert lines[3].endswith("3000.0 ms, simulated")
    assert Schedule((), "measured").render() == "(nothing ran)"


@pytest.mark.parametrize(
    ("starts_s", "row"),
    [
        ([0.0, 0.01, 0.02, 9.98], "abc      d"),  # at the begin
        ([0.0, 9.96, 9.97, 9.98], "a      bcd"),  # at the end
        ([5.0, 5.1, 5.2, 9.0], "     abc d"),
        ([0.0, 4.0, 4.1, 4.2], "a   bcd   "),
    ],
)
def test_a_stage_that_takes_less_than_a_column_has_its_letter(starts_s: list[float], row: str) -> None:
    tasks = tuple(Task(stage, "infer", 0, start_s, start_s + 0.01) for stage, start_s in enumerate(starts_s))
    drawn = Schedule((*tasks, Task(0, "load", 0, 0.0, 10.0)), "measured").render(width=10)
    assert drawn.splitlines()[1] == f"   infer |{row}|"
    narrow = Schedule((*tasks, Task(0, "load", 0, 0.0, 10.0)), "measured").render(width=3).splitlines()
    assert {len(line) for line in narrow[:2]} == {len("   infer |...|")}, "where there is no room some are left out"


def test_stages_past_the_ninth_keep_signs_of_their_own() -> None:
    stages = 28
    lines = simulate([1.0] * stages, [1.0] * stages, Contention(1)).render(width=stages + 1).splitlines()
    assert lines[0] == "  load 0 |123456789JKLMNOPQRSTUVWXYZ++ |"
    assert lines[1] == "   infer | abcdefghijklmnopqrstuvwxyz++|"


def test_costs_are_measured_where_they_were_and_predicted_otherwise() -> None:
    profile = make()
    assert profile.cost(0, 2) == Cost(2.0, 0.75, 0.5)
    assert profile.cost(1, 3) == Cost(2.0 + 3.0 - 0.5, 1.0, 0.5)
    assert profile.whole() == Cost(1.0 + 2.0 + 3.0 - 2 * 0.5, 1.5, 0.75)
    two = Partition(3, (2,))
    assert objective_named("balance").least_s(profile, two) == pytest.approx(3.0 * 1.2)
    assert profile.schedule(two).ttfo_s == pytest.approx(3.0 * 1.2 + 0.5)
    assert profile.schedule(two).source == "predicted"


def test_a_profile_comes_back_from_json_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(make().to_json()), encoding="utf-8")
    assert Profile.read(path) == make()
    assert Profile.read(str(path)) == make()


BAD: list[tuple[str, Any, str]] = [
    ("schema_version", 1, "schema version 1, expected 2"),
    ("extra", 1, "unknown keys ['extra']"),
    ("source", "guessed", "'measured' or 'simulated'"),
    ("graph", "onnx", "'native' or 'portable'"),
    ("blocks", [], "at least one block"),
    ("blocks", 3, "not a splitload profile"),
    ("stage_fixed_s", -1.0, "not negative"),
    ("stage_fixed_s", math.nan, "finite"),
    ("stage_fixed_s", True, "finite number of seconds"),
    ("contention", {"threads": 0}, "threads must be at least 1"),
    ("contention", {"threads": True}, "threads must be at least 1"),
    ("contention", {"threads": 2, "serial_share": math.inf}, "serial_share"),
    ("contention", {"threads": 2, "thread_penalty": -0.5}, "thread_penalty"),
    ("contention", {"threads": 2, "start_s": -0.1}, "start_s must be a finite number of seconds"),
    ("contention", {"threads": 2, "cut_infer_s": math.nan}, "cut_infer_s must be a finite number of seconds"),
    ("contention", {"threads": 2, "cores": 3}, "cores"),
    (
        "segments",
        [{"start": 2, "end": 9, "load_s": 1, "first_inference_s": 1, "inference_s": 1, "read_s": 0}],
        "outside the 3",
    ),
    ("segments", [{"start": 0, "end": 1}], "load_s"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_profiles_are_refused_with_one_line(tmp_path: Path, key: str, value: Any, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps(make().to_json() | {key: value}), encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        Profile.read(path)
    assert message in str(caught.value)
    assert str(caught.value).startswith("p.json")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [("load_s", -1), ("load_s", math.nan), ("inference_s", "1"), ("weights_bytes", -1), ("colour", 1), ("read_s", 9)],
)
def test_bad_blocks_are_refused(key: str, value: Any) -> None:
    data = make().to_json()
    data["blocks"][1][key] = value
    with pytest.raises(ProfileError, match=key):
        Profile.from_json(data)


def test_a_missing_key_is_named() -> None:
    data = make().to_json()
    del data["contention"]
    with pytest.raises(ProfileError, match="contention"):
        Profile.from_json(data)


@pytest.mark.parametrize(
    ("content", "message"), [(b"{", "not JSON"), (b"\xff\xfe", "not JSON"), (b"[]", "not a splitload profile")]
)
def test_files_that_are_no_profile(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(content)
    with pytest.raises(ProfileError, match=message):
        Profile.read(path)
    with pytest.raises(ProfileError, match="cannot read profile"):
        Profile.read(tmp_path / "none.json")


def test_what_a_cut_and_bytes_that_come_again_cost_a_later_inference() -> None:
    blocks = tuple(BlockProfile(f"b{number}", 1000, Cost(1.0, 0.5, 0.4, 0.1)) for number in range(3))
    contention = Contention(2)
    simulated = Profile("m", "a" * 64, "native", "dev", "simulated", blocks, 0.0, contention)
    assert simulated.cut_inference_s == 0, "the whole was not measured"
    assert simulated.come_again_s_per_byte == pytest.approx(3 * (0.1 + 0.1) / 3000)
    measured = replace(simulated, segments={(0, 3): Cost(2.0, 1.3, 1.0)})
    assert measured.cut_inference_s == pytest.approx((1.2 - 1.0) / 2)
    assert measured.come_again_s_per_byte == pytest.approx(0.3 / 3000)
    noisy = replace(simulated, segments={(0, 3): Cost(2.0, 0.9, 1.3)})
    assert noisy.cut_inference_s == 0
    assert noisy.come_again_s_per_byte == LEAST_AGAIN_S_PER_BYTE

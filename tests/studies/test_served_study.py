"""Plans on emulated devices: what a class limits, how rows are judged, and a real device that leaves nothing behind."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import models
import pytest

from splitload.base.errors import StageError, UsageError
from splitload.devices.tuning import SCHEMES
from splitload.frontends.onnx import Source, load_graph
from splitload.measure.sampling import Arm, Sample
from splitload.planner.report import LogReport
from splitload.studies import served_tables
from splitload.studies.control_groups import are_mounted, members_of
from splitload.studies.device_classes import CLASSES, class_named
from splitload.studies.emulation import DEVICES
from splitload.studies.served_arms import Plan, Samples, measure_in_turns
from splitload.studies.served_emulation import CONTROLLERS, EmulatedDevice
from splitload.studies.served_plans import recorded
from splitload.studies.served_rounds import contenders, relative_error

MIB = 1 << 20


def row_of(
    times_s: dict[str, float], stages: dict[str, int], *, kind: str = "sd", peaks: dict[str, int] | None = None
) -> dict[str, Any]:
    """Return a row of a record, with samples that do not differ."""
    names = list(times_s)
    samples = [
        [
            {
                "ttfo_s": times_s[name],
                "idle_memory_bytes": MIB,
                "peak_memory_bytes": (1 + (peaks or {}).get(name, 9)) * MIB,
            }
        ]
        * 7
        for name in names
    ]
    return {
        "model": "zoo:toy", "class": kind, "loads": 180, "runs": 7,
        "need": None if peaks is None else {"runtime_bytes": 0},
        "ceiling_bytes": None if peaks is None else 10 * MIB,
        "plans": {
            name: {**Plan.plain(range(1, stages[name])).to_json(), "measured": number}
            for number, name in enumerate(names)
        },
        "samples": samples, "need_samples": [[] for _ in names],
    }  # fmt: skip


STAGES = {"learned": 3, "uniform": 3, "one stage, plain": 1, "one stage, read": 1}


def test_a_cut_that_pays() -> None:
    row = row_of({"learned": 0.82, "uniform": 0.8, "one stage, plain": 1.0, "one stage, read": 1.2}, STAGES)
    pair = served_tables.pair_of(row)
    assert (pair.best, pair.num_stages, pair.loads) == ("uniform", 3, 180)
    assert pair.behind == pytest.approx(1.025)
    assert pair.gain == pytest.approx(0.18)
    _, targets = served_tables.targets([("", {"rows": [row]})])
    assert [line[2] for line in targets] == ["100%", "2.5%", "1.025", "18.0%", "18.0%", "–", "–", "180", "none"]


def test_one_stage_is_as_good_as_a_cut_that_gains_little() -> None:
    row = row_of({"learned": 1.0, "uniform": 0.98, "one stage, plain": 1.0, "one stage, read": 1.2}, STAGES)
    pair = served_tables.pair_of(row)
    assert (pair.gain, pair.is_clear, pair.best) == (0.0, False, "uniform")
    _, targets = served_tables.targets([("", {"rows": [row]})])
    assert [line[2] for line in targets][3:5] == ["–", "0.0%"]
    assert targets[-1][2] == "toy"
    row = row_of({"learned": 1.1, "uniform": 1.0, "one stage, plain": 1.0, "one stage, read": 1.2}, STAGES)
    assert served_tables.pair_of(row).gain is None
    assert served_tables.pairs([("", {"rows": [row]})])[1][0][7] == "one stage is as good"


def test_where_memory_is_what_a_class_lacks_plans_have_to_fit() -> None:
    times_s = {"learned": 1.5, "uniform": 1.4, "one stage, plain": 1.0, "one stage, read": 1.2}
    peaks = {"learned": 9, "uniform": 12, "one stage, plain": 30, "one stage, read": 40}
    row = row_of(times_s, STAGES, kind="small-memory", peaks=peaks)
    pair = served_tables.pair_of(row)
    assert (pair.best, pair.behind, pair.behind_any, pair.is_of_memory) == ("learned", 1.0, 1.5, True)
    assert pair.gain == pytest.approx(0.7)
    _, targets = served_tables.targets([("", {"rows": [row]})])
    assert [line[2] for line in targets][3:7] == ["–", "–", "70.0%", "1.500"], "seconds and bytes are not one mean"
    assert served_tables.pair_of(row_of(times_s, STAGES, peaks={**peaks, "one stage, plain": 8})).gain is None


def test_a_sample_that_failed_is_the_slowest() -> None:
    row = row_of({"learned": 0.8, "uniform": 0.5, "one stage, plain": 1.0, "one stage, read": 1.2}, STAGES)
    row["samples"][1] = [None, *row["samples"][1][1:]]
    assert served_tables.pair_of(row).best == "uniform"
    row["samples"][1] = [None] * 4 + row["samples"][1][4:]
    assert served_tables.pair_of(row).best == "learned"
    row["samples"][0] = [None] * 7
    pair = served_tables.pair_of(row)
    assert (pair.learned_s, pair.behind, pair.gain) == (None, None, None), "one stage is the best that is left"
    _, targets = served_tables.targets([("", {"rows": [row]})])
    assert [line[2] for line in targets][:2] == ["0%", "1 failed"]
    heads_and_rows = [table([("", {"rows": [row]})]) for table in (served_tables.plans, served_tables.pairs)]
    assert all(len(line) == len(head) for head, body in heads_and_rows for line in body)


def test_the_best_is_chosen_in_other_rounds_than_those_in_which_it_is_compared() -> None:
    row = row_of({"learned": 1.0, "uniform": 1.0, "one stage, plain": 2.0, "one stage, read": 2.0}, STAGES)
    for number in (0, 1):  # each is quick in every other round
        row["samples"][number] = [
            {**sample, "ttfo_s": 1.0 if place % 2 == number else 1.25}
            for place, sample in enumerate(row["samples"][1 - number])
        ]
    pair = served_tables.pair_of(row)
    assert (pair.best, pair.behind) == ("learned", 1.0)
    row["samples"][:2] = row["samples"][1::-1]
    pair = served_tables.pair_of(row)
    assert (pair.best, pair.behind) == ("uniform", 1.25)
    assert pair.behind_unbiased == pytest.approx((1.0 / 1.25) ** 0.5), "in the rest the learned one is the quicker"


def taking(*seconds: float | None) -> Samples:
    return [None if each is None else {"ttfo_s": each} for each in seconds]


def test_plans_are_measured_until_it_is_known_what_the_best_ones_take() -> None:
    sure = [taking(*[1.0, 1.001] * 3), taking(*[1.3] * 6), taking(*[1.05] * 6)]
    assert contenders([each[:4] for each in sure], range(3), judged=0, fitting=range(3)) == [0, 1, 2], (
        "there are too few samples yet"
    )
    assert contenders(sure, range(3), judged=0, fitting=range(3)) == []
    noisy = [taking(1.0, 1.2, 0.9, 1.1, 0.8, 1.0), sure[1], sure[2]]
    assert contenders(noisy, range(3), judged=0, fitting=range(3)) == [0, 2]
    assert contenders(noisy, range(3), judged=1, fitting=range(3)) == [0, 1, 2], "the plan that is judged, however slow"
    assert contenders(noisy, [0, 2], judged=0, fitting=range(3)) == [0, 2]
    late = [taking(*[2.0, 2.2, 1.8] * 2), taking(*[2.1] * 6), taking(*[1.0] * 6), taking(*[1.2] * 6)]
    assert contenders(late, range(4), judged=0, fitting=[0, 1]) == [0, 1, 2], "the best of those that fit, and of all"
    failed = [taking(None, None, None, None, 1.0), taking(*[1.0] * 5)]
    assert contenders(failed, range(2), judged=0, fitting=range(3)) == [], "more samples would not mend it"
    assert relative_error(taking(0.9, 1.0, 1.1, 1.0, 0.9, 1.1, 1.0, 1.1, 0.9)) == pytest.approx(0.0619, rel=1e-2)


def test_rounds_go_both_ways_and_leave_out_what_is_not_measured_again(tmp_path: Path) -> None:
    order: list[str] = []

    class Device:
        def first_output(self, arm: Arm, *_: Any) -> Sample:
            order.append(arm.path.name)
            if arm.path.name == "b" and len(order) > 4:
                raise StageError("it ended")
            return {"ttfo_s": 1.0}

    arms = [Arm("splitload", Path(name)) for name in "abc"]
    source = Source.open(models.save(models.chain(2), tmp_path), "m")
    graph = load_graph(source, "portable", tmp_path)
    rounds = iter([[0, 1, 2], [0, 1], []])
    found = measure_in_turns(
        Device(), graph, arms, source, 9, LogReport(), lambda *_: next(rounds)  # type: ignore[arg-type]
    )  # fmt: skip
    assert order == [*"abc", *"cba", *"ab"]
    assert [len(each) for each in found] == [3, 3, 2]
    assert found[1] == [{"ttfo_s": 1.0}, None, None]


def test_what_was_learned_elsewhere_is_what_its_own_record_says_or_else_another() -> None:
    own = row_of({"learned": 1.0}, {"learned": 3}, kind="sd")
    own |= {"learned_by": {"git_commit": "own"}, "learned_elsewhere_by": {}}
    named = {"learned": 1.0, "learned on sd": 1.0, "learned on emmc": 1.0}
    told = row_of(named, {"learned": 1, "learned on sd": 4, "learned on emmc": 2}, kind="fast")
    told["learned_elsewhere_by"] = {"sd": {"git_commit": "told"}, "emmc": {"git_commit": "told"}}
    found = [recorded([told, own], class_named(name), "zoo:toy") for name in ("sd", "emmc", "slow-core")]
    assert [each and (len(each["plan"]["ways"]), each["provenance"]["git_commit"]) for each in found] == [
        (3, "own"),
        (2, "told"),
        None,
    ]
    assert recorded([told, own], class_named("sd"), "zoo:other") is None


def test_plans_are_read_as_they_were_written() -> None:
    plan = Plan((3,), (SCHEMES[0], SCHEMES[2]), 1000)
    assert Plan.from_json(plan.to_json()) == plan
    ahead = Plan((), (SCHEMES[1],))
    assert ahead.as_loaded("warm") == ahead
    assert ahead.as_loaded("cold") == Plan.plain(())


def test_limits_of_a_class() -> None:
    limits = CLASSES["slow-core"].limits()
    period_us, quota_us = (int(limits["cpu"][f"cpu.cfs_{word}_us"]) for word in ("period", "quota"))
    assert quota_us == period_us / 4
    assert CLASSES["fast"].limits()["cpu"]["cpu.cfs_quota_us"] == "-1"
    assert len(CLASSES) >= 5
    with pytest.raises(UsageError, match="class of devices"):
        class_named("slow")


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0 or not are_mounted(CONTROLLERS), reason="needs root and control groups")
def test_a_device_has_its_limits_and_leaves_nothing(tmp_path: Path) -> None:
    from splitload.devices.pairing import read_address
    from splitload.devices.remote import RemoteDevice

    with EmulatedDevice(CLASSES["slow-core"], tmp_path) as emulated:
        device = RemoteDevice(read_address(emulated.url, tmp_path), tmp_path)
        assert device.threads == 1
        assert device.said["storage_read_bytes_per_s"] < 400e6
        assert os.path.ismount(tmp_path / "device-slow-core")
        assert 1e6 < emulated.resident_bytes() < 300e6
        emulated.limit_memory(400_000_000)
        assert emulated.kills() == 0
        assert members_of(DEVICES, CONTROLLERS)
        device.close()
    assert not members_of(DEVICES, CONTROLLERS)
    assert not os.path.ismount(tmp_path / "device-slow-core")
    names = {"device-slow-core", "devices", "disk-slow-core.fuse", "disk-slow-core.img"}
    assert {each.name for each in tmp_path.iterdir()} == names

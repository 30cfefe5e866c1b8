"""How a stage is loaded: the choice between measured schemes, and the measuring of real stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from splitload.base.errors import ModelError
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.bundle.manifest import File, StageEntry, TensorSpec, Variant
from splitload.devices import tuning as module
from splitload.devices.host import HostDevice
from splitload.devices.tuning import PLAIN, SCHEMES, Scheme
from splitload.frontends.onnx import Source, load_graph
from splitload.measure.fresh import run_job
from splitload.measure.job import Job
from splitload.measure.stage_jobs import ComparePacked, TryScheme
from splitload.plan.partition import Partition

WIDTH = 640  # 1.6 MB of weights
ENTRY = StageEntry(
    "s", (0, 1), File("native-00.ort", 1, "a" * 64), None, 1, ("x",), (TensorSpec("y", "tensor(float)", None),),
    prepack=False, trainable=False, upgrade=True,
)  # fmt: skip
PREFETCH, READ, PACKED = Scheme(prefetch=True), Scheme(mapped=False), Scheme(prepack=True)


def rows(first_s: float, steady_s: float) -> list[dict[str, float]]:
    return [{"first_s": first_s * factor, "steady_s": steady_s * factor} for factor in (1.5, 1.0, 1.0)]


@pytest.mark.parametrize(
    ("first_s", "steady_s", "expected"),
    [
        ({}, {}, (PLAIN, False)),
        ({PREFETCH: 0.05}, {}, (PREFETCH, False)),
        ({PREFETCH: 0.095}, {}, (PLAIN, False)),  # within what measurements are good for
        ({READ: 0.04, PREFETCH: 0.05}, {}, (READ, False)),
        ({PACKED: 0.06}, {PACKED: 0.01}, (PACKED, False)),  # it is fast already
        ({PACKED: 0.5}, {PACKED: 0.03}, (PLAIN, True)),
        ({PACKED: 0.5}, {PACKED: 0.049}, (PLAIN, False)),
    ],
)
def test_the_earliest_first_result_wins(
    first_s: dict[Scheme, float], steady_s: dict[Scheme, float], expected: tuple[Scheme, bool]
) -> None:
    samples = {scheme: rows(first_s.get(scheme, 0.1), steady_s.get(scheme, 0.05)) for scheme in SCHEMES}
    entry = module._choose(ENTRY, samples)
    scheme, upgrade = expected
    assert (entry.mapped, entry.prefetch, entry.prepack) == (scheme.mapped, scheme.prefetch, scheme.prepack)
    assert entry.upgrade is upgrade
    assert entry._replace(mapped=True, prefetch=False, prepack=False, upgrade=True) == ENTRY


def test_a_processor_that_changes_its_speed_is_no_gain() -> None:
    def stage(*first_s: float) -> list[dict[str, float]]:
        return [{"first_s": each, "steady_s": 0.05} for each in first_s]

    samples = {PLAIN: stage(0.12, 0.08, 0.12, 0.12, 0.08), PACKED: stage(0.08, 0.08, 0.12, 0.08, 0.08)}
    assert not module._choose(ENTRY, samples).prepack
    assert module._choose(ENTRY, samples | {PACKED: stage(0.08, 0.06, 0.12, 0.08, 0.06)}).prepack


def test_a_gain_of_less_than_a_millisecond_is_none() -> None:
    samples = {scheme: rows(0.0008 if scheme == PREFETCH else 0.0015, 0.001) for scheme in SCHEMES}
    assert not module._choose(ENTRY, samples).prefetch


@pytest.mark.parametrize(
    ("first_s", "steady_s", "settled"),
    [
        ([0.2, 0.3, 0.2], None, True),  # two more of 0.2 beside two more plain ones of 0.11 gain nothing
        ([0.2, 0.3], None, False),
        ([0.08, 0.3, 0.08], None, False),
        ([0.09, 0.3, 0.2], None, True),
        ([0.09, 0.3, 0.2, 0.2], None, True),  # one more leaves the median at 0.2
        ([0.05, 0.05, 0.05], None, False),  # it wins, and others may too
        ([0.05, 0.05, 0.1], None, False),
        ([0.05, 0.1, 0.1, 0.05], None, True),  # two pairs gain too little
        ([0.2, 0.3, 0.2], [0.06, 0.05, 0.05], True),
        ([0.2, 0.3, 0.2], [0.03, 0.03, 0.03], True),
        ([0.2, 0.3, 0.2], [0.03, 0.05, 0.03], False),
    ],
)
def test_a_scheme_is_settled_when_more_samples_could_change_nothing(
    first_s: list[float], steady_s: list[float] | None, settled: bool
) -> None:
    plain = [{"first_s": each, "steady_s": 0.05} for each in (0.1, 0.11, 0.1, 0.1)][: len(first_s)]
    taken = [{"first_s": each} for each in first_s]
    if steady_s is not None:
        taken = [row | {"steady_s": each} for row, each in zip(taken, steady_s, strict=True)]
    assert module._settled(taken, plain) is settled


@pytest.mark.parametrize("seed", range(20))
def test_what_is_chosen_is_what_all_samples_would_choose(seed: int) -> None:
    draw = np.random.default_rng(seed)
    typical = {scheme: draw.uniform(0.07, 0.13) for scheme in SCHEMES}
    steady_s = {scheme: draw.uniform(0.04, 0.05) if scheme == PACKED else 0.05 for scheme in SCHEMES}
    runs = [
        {
            scheme: {
                "first_s": typical[scheme] * draw.uniform(0.9, 1.1),
                "steady_s": steady_s[scheme] * draw.uniform(0.9, 1.1),
            }
            for scheme in SCHEMES
        }
        for _ in range(module.REPEATS)
    ]
    taken = dict.fromkeys(SCHEMES, 0)

    def measure(scheme: Scheme) -> list[dict[str, float]]:
        taken[scheme] += 1
        return [runs[taken[scheme] - 1][scheme]]

    samples = module._in_turns(measure, [0], None)
    chosen = module._choose(ENTRY, {scheme: samples[0, scheme] for scheme in SCHEMES})
    assert chosen == module._choose(ENTRY, {scheme: [run[scheme] for run in runs] for scheme in SCHEMES})
    assert max(taken.values()) == taken[PLAIN]


def test_pairs_decide_whether_a_session_is_made_anew_however_many_plain_samples_follow() -> None:
    def stage(*steady_s: float) -> list[dict[str, float]]:
        return [{"first_s": 0.1, "steady_s": each} for each in steady_s]

    samples = {PLAIN: stage(0.05, 0.05, 0.05, 0.03, 0.03), PACKED: stage(0.04, 0.04, 0.04)}
    assert module._choose(ENTRY, samples).upgrade
    assert not module._choose(ENTRY, {PLAIN: samples[PLAIN], PACKED: stage(0.05, 0.05, 0.02)}).upgrade


@pytest.fixture
def plans(tmp_path: Path) -> list[VariantPlan]:
    """Two native stages with more than a megabyte of weights, and a portable one."""
    rng = np.random.default_rng(0)
    weights = [helper.make_tensor(f"w{i}", 1, (WIDTH, WIDTH), rng.normal(size=WIDTH**2).astype("f")) for i in range(2)]
    nodes = [helper.make_node("MatMul", ["x", "w0"], ["h"]), helper.make_node("MatMul", ["h", "w1"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "wide", ends[:1], ends[1:], weights)
    path = tmp_path / "wide.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    source, feeds = Source.open(path, "wide"), {"x": np.ones((20, WIDTH), "f")}
    native = load_graph(source, "native", tmp_path / "cache", feeds=feeds)
    portable = load_graph(source, "portable", tmp_path / "cache", feeds=feeds)
    count = len(native.blocks)
    return [
        VariantPlan(native, Partition(count, (count // 2,)), 2),
        VariantPlan(portable, Partition(len(portable.blocks)), 1),
    ]


def test_real_stages_are_measured_in_turns(
    plans: list[VariantPlan], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[Any] = []

    def run(job: Job, *rest: Any, **options: Any) -> dict[str, Any]:
        answer = run_job(job, *rest, **options)
        if isinstance(job, ComparePacked):
            assert answer["differ"] == [False, False]
            return answer
        assert isinstance(job, TryScheme)
        jobs.append(((job.mapped, job.prefetch, job.prepack), len(answer["rows"])))
        assert job.steady is not (job.prefetch or not job.mapped)  # which later runs do not tell from the plain way
        assert all(("steady_s" in row) is job.steady for row in answer["rows"])
        assert all(row["first_s"] >= row.get("steady_s", 1e-9) > 0 for row in answer["rows"])
        return answer

    device = HostDevice(tmp_path / "cache", run=run)
    monkeypatch.setattr(module, "REPEATS", 2)
    seen: list[tuple[int, int]] = []
    inputs = [TensorSpec(each.name, each.type, each.shape) for each in plans[0].graph.input_tensors()]

    def choose(folder: Path, variant: Any) -> Any:
        chosen = device.tune(folder, variant, inputs, {"x": np.ones((3, WIDTH), "f")}, lambda *step: seen.append(step))
        assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
        return chosen

    manifest = build_bundle(tmp_path / "m.splitload", plans, device="host", steps=Steps(choose=choose))
    assert len(manifest.variants[0].stages) == 2
    assert [count for _, count in jobs] == [2] * 2 * len(SCHEMES)
    assert seen[-1] == (2 * len(SCHEMES), 2 * len(SCHEMES))
    first, second = jobs[: len(SCHEMES)], jobs[len(SCHEMES) :]
    assert sorted(map(str, first)) == sorted(map(str, second))
    assert first != second  # the order rotates


def test_stages_that_do_not_run_are_one_clear_error(plans: list[VariantPlan], tmp_path: Path) -> None:
    inputs = [TensorSpec(each.name, each.type, each.shape) for each in plans[0].graph.input_tensors()]
    with pytest.raises(ModelError, match="cannot be measured on this host"):
        build_bundle(
            tmp_path / "m.splitload",
            plans,
            device="host",
            steps=Steps(
                choose=lambda folder, variant: HostDevice(tmp_path).tune(
                    folder, variant, inputs, {"x": np.ones((3, 5), "f")}
                )
            ),
        )
    assert not (tmp_path / "m.splitload").exists()


def test_without_a_megabyte_of_weights_nothing_is_measured(tmp_path: Path) -> None:
    def never(*_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError("nothing is to be measured")

    chosen = HostDevice(tmp_path, run=never).tune(tmp_path, Variant("native", None, None, 1, True, (ENTRY,)), [], {})
    assert chosen.stages == (ENTRY._replace(upgrade=False),)

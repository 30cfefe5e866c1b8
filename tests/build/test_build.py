"""From a model to a bundle and through the loader: the answers are the original session's."""

from __future__ import annotations

import resource
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import control_models
import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest

from splitload import ParallelLoader
from splitload.base.errors import OutputError, PartitionError
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.bundle.read import read_manifest
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.graph import GraphKind
from splitload.plan.partition import Partition
from splitload.runtime.answers import relative_error

assert control_models  # registers its constructs


def plan(
    folder: Path, model: onnx.ModelProto, kind: GraphKind = "portable", feeds: Any = None, **options: Any
) -> VariantPlan:
    """A plan that makes every block a stage."""
    source = Source.open(models.save(model, folder), "model")
    graph = load_graph(source, kind, folder / "cache", feeds=feeds, max_blocks=6)
    count = len(graph.blocks)
    return VariantPlan(graph, Partition(count, tuple(range(1, count))), 2, **options)


def original(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("kinds", [("native", "portable"), ("portable",)], ids="+".join)
@pytest.mark.parametrize("name", models.CONSTRUCTS)
def test_a_bundle_of_any_construct_answers_as_the_original(
    tmp_path: Path, name: str, kinds: tuple[GraphKind, ...]
) -> None:
    model, feeds = models.CONSTRUCTS[name]()
    session = original(model)
    ready = models.feeds_of(session, feeds)
    expected = session.run(None, ready)
    plans = [plan(tmp_path, model, kind, feeds) for kind in kinds]
    manifest = build_bundle(tmp_path / "m.splitload", plans, device="host")
    assert [variant.kind for variant in manifest.variants] == list(kinds)
    with ParallelLoader(tmp_path / "m.splitload", verify="hashes") as loader:
        got = loader.run(None, ready)
        assert [spec.name for spec in loader.get_inputs()] == [spec.name for spec in session.get_inputs()]
        assert [spec.name for spec in loader.get_outputs()] == [spec.name for spec in session.get_outputs()]
        assert [spec.type for spec in loader.get_inputs()] == [spec.type for spec in session.get_inputs()]
        assert [spec.type for spec in loader.get_outputs()] == [spec.type for spec in session.get_outputs()]
        assert loader.wait("upgraded")
        again = loader.run(None, ready)
    assert len(got) == len(expected)
    assert max(map(relative_error, got, expected)) <= 1e-4
    assert max(map(relative_error, again, expected)) <= 1e-4


def test_an_optional_input_may_be_left_out_or_given(tmp_path: Path) -> None:
    model, feeds = models.CONSTRUCTS["optional at the ends"]()
    build_bundle(tmp_path / "m.splitload", [plan(tmp_path, model, feeds=feeds)], device="host")
    session = original(model)
    given = {**feeds, "o": np.abs(models.floats(2, 3))}
    with ParallelLoader(tmp_path / "m.splitload") as loader:
        np.testing.assert_array_equal(loader.run(None, given)[0], session.run(None, given)[0])
        np.testing.assert_array_equal(loader.run(None, feeds)[0], session.run(None, feeds)[0])


def test_other_sizes_of_dynamic_axes_work_after_the_cut(tmp_path: Path) -> None:
    model, feeds = models.CONSTRUCTS["dynamic axes"]()
    build_bundle(tmp_path / "m.splitload", [plan(tmp_path, model, feeds=feeds)], device="host")
    session = original(model)
    with ParallelLoader(tmp_path / "m.splitload") as loader:
        for shape in ((3, 5, 4), (1, 1, 4), (2, 7, 4), (0, 3, 4)):
            other = {"x": models.floats(*shape)}
            assert relative_error(loader.run(None, other)[0], session.run(None, other)[0]) <= 1e-4


def test_default_values_of_inputs_are_built_in(tmp_path: Path) -> None:
    model, _ = models.CONSTRUCTS["inputs with default values"]()
    manifest = build_bundle(tmp_path / "m.splitload", [plan(tmp_path, model)], device="host")
    assert [spec.name for spec in manifest.inputs] == ["x"]


def test_the_manifest_tells_blocks_weights_and_what_is_trainable(tmp_path: Path) -> None:
    made = plan(tmp_path, models.chain(6, width=20), trainable_from=5)
    calls: list[tuple[int, int]] = []
    target = tmp_path / "m.splitload"
    manifest = build_bundle(
        target,
        [made],
        device="toy",
        notes={"agent": "exact"},
        steps=Steps(on_progress=lambda done, total: calls.append((done, total))),
    )
    assert read_manifest(target, "hashes") == manifest
    (variant,) = manifest.variants
    assert [stage.blocks for stage in variant.stages] == [(index, index + 1) for index in range(6)]
    assert [stage.weights_bytes for stage in variant.stages] == [1600, 0, 1600, 0, 1600, 0]
    assert [stage.weights is not None for stage in variant.stages] == [True, False] * 3
    assert [stage.trainable for stage in variant.stages] == [False] * 5 + [True]
    assert [stage.inputs for stage in variant.stages][:2] == [("x",), ("t0",)]
    assert (manifest.device, manifest.plan, manifest.model_sha256) == (
        "toy",
        {"agent": "exact"},
        made.graph.source_sha256,
    )
    assert calls == [(done, 6) for done in range(1, 7)]


def test_a_shared_weight_is_in_the_first_stage_that_reads_it(tmp_path: Path) -> None:
    model = models.text(
        "g (float[1,20] x) => (float[1,20] y) {\n a = MatMul(x, w)\n b = Tanh(a)\n y = MatMul(b, w)\n }",
        w=models.floats(20, 20),
    )
    manifest = build_bundle(tmp_path / "m.splitload", [plan(tmp_path, model)], device="host")
    first, between, last = manifest.variants[0].stages
    assert [stage.weights_bytes for stage in (first, between, last)] == [1600, 0, 0]
    assert last.shares == ((first.weights or first.graph).name,)


def test_a_model_that_cannot_be_cut_is_one_stage(tmp_path: Path) -> None:
    made = plan(tmp_path, models.text("g (float[3] x) => (float[3] y) { y = Tanh(x) }"))
    manifest = build_bundle(tmp_path / "m.splitload", [made], device="host")
    assert len(manifest.variants[0].stages) == 1


def test_partitions_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    made = plan(tmp_path, models.chain(6))
    target = tmp_path / "m.splitload"
    with pytest.raises(PartitionError, match="of 7 blocks, the model has 6"):
        build_bundle(target, [VariantPlan(made.graph, Partition(7), 1)], device="host")
    with pytest.raises(PartitionError, match="block 3 is trainable, but the last stage starts at block 5"):
        build_bundle(target, [VariantPlan(made.graph, made.partition, 1, trainable_from=3)], device="host")
    assert not target.exists()


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_disk_too_full_is_told_and_the_old_bundle_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "out" / "m.splitload"
    target.parent.mkdir()
    build_bundle(target, [plan(tmp_path, models.chain(6))], device="old")
    before = files(target)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1, 1, 1 << 20))
    with pytest.raises(OutputError, match=r"needs \d+ MiB and 1 MiB are free in '.*out'; make room or choose"):
        build_bundle(target, [plan(tmp_path, models.chain(6, width=600))], device="new")
    assert files(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["m.splitload"]


def test_files_that_cannot_grow_leave_the_old_bundle(tmp_path: Path) -> None:
    target = tmp_path / "out" / "m.splitload"
    target.parent.mkdir()
    build_bundle(target, [plan(tmp_path, models.chain(6))], device="old")
    before = files(target)
    large = plan(tmp_path, models.chain(6, width=100))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OutputError, match="cannot write stage 'portable-00'") as caught:
            build_bundle(target, [large], device="new")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert files(target) == before
    assert [path.name for path in target.parent.iterdir()] == ["m.splitload"]

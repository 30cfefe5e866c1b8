"""Native graphs for another processor: made, checked and written through jobs, equal to what this process makes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import models
import numpy as np
import onnx
import pytest
from far_devices import CPU, FarDevice

from splitload.base.errors import DeviceError, ModelError, SplitloadError
from splitload.base.machine import cpu_architecture
from splitload.build.agreement import compare_with_stock
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.bundle.manifest import Manifest
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.devices.graph_runtime import FarRuntime
from splitload.devices.machine import Machine
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.here import HERE
from splitload.graphs.layout import channel_block
from splitload.graphs.runtime import Beside, GraphRuntime, Refusal
from splitload.measure.arms import Subject, make_arm
from splitload.measure.job import Job
from splitload.measure.job_files import job_files
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.planner import train as training
from splitload.planner.report import LogReport
from splitload.planner.request import TrainRequest


def pictures(seed: int = 0) -> onnx.ModelProto:
    """Convolutions, which onnxruntime stores in blocks where a processor has them, and a product."""
    text = """g (float[1,16,12,12] x) => (float[1,10] y) {
        a = Conv <pads=[1,1,1,1]> (x, first, bias)
        b = Relu(a)
        c = Conv <pads=[1,1,1,1]> (b, second)
        d = Relu(c)
        p = GlobalAveragePool(d)
        f = Flatten(p)
        y = Gemm(f, head)
    }"""
    rng = np.random.default_rng(seed)
    sizes = {"first": (48, 16, 3, 3), "second": (48, 48, 3, 3), "bias": (48,), "head": (48, 10)}
    return models.text(text, **{name: rng.standard_normal(size).astype("f") for name, size in sizes.items()})


class Made(NamedTuple):
    """A bundle that was made for a board, and what it is made of."""

    far: FarDevice
    source: Source
    cache: Path
    plans: list[VariantPlan]
    folder: Path
    manifest: Manifest


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("far")
    far, source, cache = FarDevice(folder), opened(folder), folder / "cache"
    there = plans(source, cache, far.runtime)
    manifest = build_bundle(folder / "b.splitload", there, device="board", runtime=far.runtime)
    return Made(far, source, cache, there, folder / "b.splitload", manifest)


@pytest.fixture
def far(tmp_path: Path) -> FarDevice:
    return FarDevice(tmp_path / "far")


def opened(folder: Path, model: onnx.ModelProto | None = None, name: str = "pictures") -> Source:
    return Source.open(models.save(model or pictures(), folder, f"{name}.onnx"), name)


def plans(source: Source, cache: Path, runtime: GraphRuntime) -> list[VariantPlan]:
    graphs: list[ModelGraph] = [load_graph(source, kind, cache, runtime=runtime) for kind in ("native", "portable")]
    cut = Partition(len(graphs[0].blocks), (1,))
    return [VariantPlan(graphs[0], cut, 2), VariantPlan(graphs[1], Partition(len(graphs[1].blocks)), 1)]


def test_a_machine_like_this_one_has_its_graphs_made_here(tmp_path: Path, far: FarDevice) -> None:
    assert FarDevice(tmp_path, cpu_architecture()).runtime is HERE
    assert isinstance(far.runtime, FarRuntime)
    assert (far.runtime.cpu, far.runtime.version, far.runtime.is_here) == (CPU, HERE.version, False)


def test_the_graph_that_is_made_there_is_the_one_that_is_made_here(made: Made) -> None:
    far, there = made.far, made.plans[0].graph
    here = load_graph(made.source, "native", made.cache)
    assert CPU in there.path.parent.name
    assert CPU not in here.path.parent.name
    for suffix in (".onnx", ".bin"):
        assert there.path.with_suffix(suffix).read_bytes() == here.path.with_suffix(suffix).read_bytes()
    assert (there.nodes, there.tensors, there.weights_bytes) == (here.nodes, here.tensors, here.weights_bytes)
    assert channel_block(far.runtime) == channel_block()
    done = len(far.jobs)
    assert load_graph(made.source, "native", made.cache, runtime=far.runtime) == there
    assert "optimize" not in far.jobs[done:]  # it is in the cache


def test_weights_that_are_here_do_not_come_back(tmp_path: Path, far: FarDevice) -> None:
    model = models.text(
        "g (float[n,64] x) => (float[n,64] y) { a = MatMul(x, w)\n b = Relu(a)\n y = MatMul(b, v) }",
        w=models.floats(64, 64),
        v=models.floats(64, 64) + 1,
    )
    source = opened(tmp_path, model)
    graph = load_graph(source, "native", tmp_path / "cache", runtime=far.runtime)
    returned = far.returned_bytes
    here = load_graph(source, "native", tmp_path / "cache", runtime=HERE)
    assert graph.path.with_suffix(".bin").read_bytes() == here.path.with_suffix(".bin").read_bytes()
    assert returned < 2 * 64 * 64 * 4


def test_a_bundle_that_is_made_there_is_the_one_that_is_made_here(made: Made, tmp_path: Path) -> None:
    found, portable = made.manifest.variants
    here = build_bundle(tmp_path / "here.splitload", plans(made.source, made.cache, HERE), device="host").variants
    assert (found.kind, found.cpu, found.runtime) == ("native", CPU, HERE.version)
    assert [stage.graph for stage in found.stages] == [stage.graph for stage in here[0].stages]
    assert [stage.graph for stage in portable.stages] == [stage.graph for stage in here[1].stages]
    needs, expected = found.needs, here[0].needs
    assert needs is not None
    assert expected is not None
    assert needs.canary is not None
    assert expected.canary is not None
    assert needs._replace(canary=None) == expected._replace(canary=None)
    assert needs.canary.answers == expected.canary.answers  # to the bit; its graph onnxruntime orders at will


def test_train_tries_and_measures_it_there(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, few_samples: None
) -> None:
    monkeypatch.setattr(training, "open_device", lambda *_, **__: made.far)
    target, begun = tmp_path / "b.splitload", len(made.far.jobs)
    request = TrainRequest(
        cache=made.cache, model=str(made.source.path), device="board", output=str(target), split_points=(1,)
    )
    result = training.train(request, LogReport())
    assert result.agreement is not None
    assert result.agreement.agrees
    assert set(result.agreement.difference) == {"native", "portable"}
    assert read_manifest(target, "hashes").variants[0].cpu == CPU
    assert {"open", "run", "staged", "stages", "load"} <= set(made.far.jobs[begun:])
    assert "native" in made.far.variants
    assert "portable" not in made.far.variants


def test_a_variant_that_answers_otherwise_there_is_told_of(made: Made, tmp_path: Path) -> None:
    path, runtime, manifest = made.source.path, made.far.runtime, made.manifest
    folder = shutil.copytree(made.folder, tmp_path / "b.splitload")
    assert set(compare_with_stock(folder, manifest, path, {}).difference) == {"portable"}
    other = plans(opened(tmp_path, pictures(seed=1), "other"), made.cache, HERE)
    wrong = build_bundle(tmp_path / "other.splitload", other, device="host").variants[0]._replace(cpu=CPU)
    shutil.copytree(tmp_path / "other.splitload", folder, dirs_exist_ok=True)
    found = compare_with_stock(folder, manifest._replace(variants=(wrong, manifest.variants[1])), path, {}, runtime)
    assert found.difference["native"] > 0.01
    assert found.difference["portable"] <= 1e-4
    first, second = manifest.variants[0].stages
    broken = manifest.variants[0]._replace(stages=(first, second._replace(graph=first.graph)))
    with pytest.raises(ModelError, match=r"stage 2 of 2 \(native graph\) does not run"):
        compare_with_stock(folder, manifest._replace(variants=(broken, manifest.variants[1])), path, {}, runtime)


def test_what_onnxruntime_refuses_there_it_refuses_here(tmp_path: Path, far: FarDevice) -> None:
    unknown = models.text("g (float[2] x) => (float[2] y) { y = Tanh(x) }")
    unknown.graph.node[0].op_type = "Tanhh"
    data = Beside(tmp_path, unknown.SerializeToString())
    body = "s = Constant <value_ints=[6]> ()\n y = Reshape(x, s)"
    path = models.save(models.text(f"g (float[2,3] x) => (float[6] y) {{ {body} }}"), tmp_path)
    wrong = {"x": np.ones((2, 2), "f")}
    for runtime in (HERE, far.runtime):
        with pytest.raises(Refusal, match="Tanhh"):
            runtime.open(data)
        with pytest.raises(Refusal, match="Tanhh"):
            runtime.optimize(data, tmp_path / "made.onnx", "basic")
        with pytest.raises(Refusal, match="INVALID_ARGUMENT"):
            runtime.run(path, ["y"], wrong)
        assert not runtime.race(path, path, wrong).alike
    assert not list(tmp_path.glob(".far-*"))


def test_texts_travel_and_lists_are_named(tmp_path: Path, far: FarDevice) -> None:
    texts = models.text("g (string[2] x) => (string[2] y) { y = Identity(x) }")
    found = far.runtime.run(models.save(texts, tmp_path), ["y"], {"x": np.array(["a", "bc"], object)})
    assert found[0].tolist() == ["a", "bc"]
    lists = models.text("g (float[2] x) => (seq(float[2]) y) { y = SequenceConstruct(x, x) }")
    with pytest.raises(Refusal, match="the output 'y' is no array"):
        far.runtime.run(models.save(lists, tmp_path, "lists.onnx"), ["y"], {"x": np.ones(2, "f")})


@pytest.mark.parametrize("kind", ["optimize", "race", "shapes", "open", "run"])
def test_a_device_that_vanishes_is_no_answer(tmp_path: Path, far: FarDevice, kind: str) -> None:
    """A connection that is lost must not read as a model that onnxruntime does not optimise, or a slower graph."""

    def run(job: Job, folder: Path, failed: Callable[[str], SplitloadError], *, cold: Sequence[Path] = ()) -> Any:
        if job.kind == kind:
            raise DeviceError("the board does not answer")
        return far._run(job, folder, failed)

    model = models.text(
        "g (float[20,64] x) => (float[20,64] y) { a = MatMul(x, w)\n y = Erf(a) }", w=models.floats(64, 64)
    )
    runtime = FarRuntime(Machine("board", "the board", 2, CPU, "Toy", lambda: HERE.version, run))
    source = opened(tmp_path, model)
    with pytest.raises(DeviceError, match="does not answer"):
        made = plans(source, tmp_path / "cache", runtime)
        build_bundle(tmp_path / "b.splitload", made, device="board", runtime=runtime)
    assert not (tmp_path / "b.splitload").exists()


def test_a_graph_that_reads_other_files_is_not_taken(tmp_path: Path, far: FarDevice) -> None:
    """What a device answers must not have the desk send it a file of the user's."""
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(64 * 64 * 4))
    sent: list[str] = []

    def run(job: Job, folder: Path, failed: Callable[[str], SplitloadError], *, cold: Sequence[Path] = ()) -> Any:
        sent.extend(job_files(job, folder))
        answer = far._run(job, folder, failed)
        if job.kind == "optimize" and (folder / "model.onnx").exists():
            graph = onnx.load(folder / "model.onnx", load_external_data=False)
            weight = graph.graph.initializer.add(name="s", data_type=1, dims=[64, 64], data_location=1)
            weight.external_data.add(key="location", value="../" * 40 + str(secret.relative_to("/")))
            onnx.save(graph, folder / "model.onnx")
        return answer

    runtime = FarRuntime(Machine("board", "the board", 2, CPU, "Toy", lambda: HERE.version, run))
    with pytest.raises(DeviceError, match=r"reads weights from '\.\./.*; nothing of its answer is kept"):
        load_graph(opened(tmp_path), "native", tmp_path / "cache", runtime=runtime)
    assert sent
    assert not [name for name in sent if "secret" in name]


def test_a_process_that_ends_there_is_one_clear_line(tmp_path: Path, far: FarDevice) -> None:
    path = models.save(models.chain(2), tmp_path)

    def run(job: Job, folder: Path, failed: Callable[[str], SplitloadError], *, cold: Sequence[Path] = ()) -> Any:
        raise failed("the process ended with -9")

    runtime = FarRuntime(Machine("board", "the board", 2, CPU, "Toy", lambda: HERE.version, run))
    with pytest.raises(DeviceError, match="cannot be made on the board: the process ended with -9"):
        runtime.open(path)


def test_a_stage_that_this_desk_cannot_convert_is_converted_there(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some operators are those of one family of processors: here such a kernel is missing."""

    def lacks(*_: Any) -> Any:
        raise Refusal("Could not find an implementation for NhwcFusedConv")

    monkeypatch.setattr(type(HERE), "optimize", lacks)
    steps, begun = Steps(canary=False), len(made.far.jobs)
    found = build_bundle(tmp_path / "b", made.plans, device="board", steps=steps, runtime=made.far.runtime)
    assert found.variants[0].stages == made.manifest.variants[0].stages
    assert made.far.jobs[begun:] == ["optimize", "open"] * 2


def test_specialize_adds_the_part_of_a_board(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], few_samples: None
) -> None:
    monkeypatch.setattr("splitload.planner.specialize.open_device", lambda *_, **__: made.far)
    target = tmp_path / "b.splitload"
    before = build_bundle(target, plans(made.source, made.cache, HERE), device="host")
    words = ["specialize", str(target), "--add", "--device", "https://192.0.2.2:8750"]
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    assert main(words) == 0
    assert f"for {CPU}, " in " ".join(capsys.readouterr().out.split())
    board, host, portable = read_manifest(target, "hashes").variants
    assert [each.cpu for each in (board, host, portable)] == [CPU, cpu_architecture(), None]
    assert host == before.variants[0]


def test_a_tuned_session_of_a_board_is_tuned_there(made: Made, tmp_path: Path) -> None:
    here, there = (
        make_arm("tuned", Subject("m", made.source, made.plans[0].graph, None, {}, tmp_path, runtime=runtime))
        for runtime in (HERE, made.far.runtime)
    )
    assert here.path != there.path
    assert there.path.read_bytes() == here.path.read_bytes()
    assert len(there.files) == len(here.files)

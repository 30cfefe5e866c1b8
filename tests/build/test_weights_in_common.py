"""A weight that several stages read is planned, stored and mapped once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import floats

from splitload import ParallelLoader
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.build.equality import check_graph
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.devices import open_device
from splitload.devices.estimate import guess
from splitload.devices.host import HostDevice
from splitload.devices.tuning import MAPPED, Scheme, _choose
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.joined import join_stages
from splitload.graphs.proto import is_external
from splitload.plan.graph import GraphKind
from splitload.plan.partition import Partition

KINDS: list[GraphKind] = ["native", "portable"]
WIDTH = 128
FEEDS = {"x": floats(16, WIDTH)}


def layers(number: int = 8) -> onnx.ModelProto:
    """Layers with one weight in common, which is large, and one of their own each, which is small."""
    lines, before = [], "x"
    for index in range(number):
        after = "y" if index == number - 1 else f"r{index}"
        lines += [f"m{index} = MatMul({before}, w)", f"a{index} = Add(m{index}, b{index})", f"{after} = Relu(a{index})"]
        before = after
    return models.text(
        f"g (float[n,{WIDTH}] x) => (float[n,{WIDTH}] y) {{ {chr(10).join(lines)} }}",
        w=floats(WIDTH, WIDTH) / WIDTH**0.5,
        **{f"b{index}": floats(WIDTH) for index in range(number)},
    )


def tied() -> onnx.ModelProto:
    """A table that the first stage looks words up in, and the last one multiplies by."""
    return models.text(
        """g (int64[1,16] words) => (float[1,16,96] y) {
            e = Gather(table, words)
            h0 = MatMul(e, w0)
            h1 = Sin(h0)
            h2 = MatMul(h1, w1)
            h3 = Cos(h2)
            across = Transpose <perm=[0,2,1]> (h3)
            scores = MatMul(table, across)
            y = Transpose <perm=[0,2,1]> (scores)
        }""",
        table=floats(96, 64) / 8,
        w0=floats(64, 64) / 8,
        w1=floats(64, 64) / 8,
    )


WORDS = {"words": np.arange(16, dtype=np.int64)[None] * 5}
EVERY: dict[str, tuple[Any, dict[str, Any]]] = {"layers": (layers, FEEDS), "tied": (tied, WORDS)}


@pytest.fixture(scope="module", params=[(name, kind) for name in EVERY for kind in KINDS], ids="{0[0]} {0[1]}".format)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Source, Any, Any]:
    """A bundle of four stages, the model, its graph and its feeds."""
    name, kind = request.param
    make, feeds = EVERY[name]
    folder = tmp_path_factory.mktemp("common")
    source = Source.open(models.save(make(), folder), name)
    graph = load_graph(source, kind, folder / "cache", feeds=feeds)
    count = len(graph.blocks)
    plans = [VariantPlan(graph, Partition.of(count, [count * part // 4 for part in (1, 2, 3)]), 2)]
    if kind == "native":
        portable = load_graph(source, "portable", folder / "cache")
        plans.append(VariantPlan(portable, Partition(len(portable.blocks)), 1))
    build_bundle(folder / "b", plans, device="here")
    return folder / "b", source, graph, feeds


def test_a_bundle_of_four_stages_is_as_large_as_the_weights(built: tuple[Path, Source, Any, Any]) -> None:
    bundle, _, graph, _ = built
    files = {file.name: file.bytes for file in read_manifest(bundle).files()}
    weights = sum(graph.weights_bytes.values())
    rest = sum((bundle / name).stat().st_size for name in files if name.endswith(".onnx")) + 4096 * 16
    assert sum(files.values()) < weights * 1.1 + rest
    large = max(graph.weights_bytes.values())
    assert sum(size >= large for size in files.values()) == 1


def test_it_computes_what_the_model_does_and_says_what_it_shares(built: tuple[Path, Source, Any, Any]) -> None:
    bundle, source, _, feeds = built
    (expected,) = ort.InferenceSession(str(source.path), providers=["CPUExecutionProvider"]).run(None, feeds)
    with ParallelLoader(bundle, verify="hashes") as model:
        np.testing.assert_allclose(model.run(None, feeds)[0], expected, rtol=1e-4, atol=1e-5)
        stages = model.variant.stages
        holders = {file.name for stage in stages for file in (stage.graph, stage.weights) if file is not None}
        assert any(set(stage.shares) <= holders and stage.shares for stage in stages[1:])
        assert 0 in model.variant.sharing()
        assert not any(stages[number].upgrade for number in model.variant.sharing())


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("kind", KINDS)
def test_every_cut_is_exact(tmp_path: Path, name: str, kind: GraphKind) -> None:
    make, feeds = EVERY[name]
    source = Source.open(models.save(make(), tmp_path), name)
    assert check_graph(source, load_graph(source, kind, tmp_path / "cache", feeds=feeds), feeds=feeds).passed


def test_a_plan_is_measured_whatever_other_stages_hold_its_weights(tmp_path: Path) -> None:
    source = Source.open(models.save(layers(), tmp_path), "m")
    graph = load_graph(source, "native", tmp_path / "cache", feeds=FEEDS)
    count = len(graph.blocks)
    with HostDevice(tmp_path / "cache").runs(graph, FEEDS) as runs:
        runs.sample([(number, number + 1) for number in range(count)])
        assert runs.first_output(Partition.of(count, [count // 2]), 1).ttfo_s > 0


@pytest.mark.parametrize("name", EVERY)
def test_a_weight_is_planned_once(tmp_path: Path, name: str) -> None:
    make, feeds = EVERY[name]
    source = Source.open(models.save(make(), tmp_path), name)
    for device in ("s20", "host"):
        graph = load_graph(source, "native" if device == "host" else "portable", tmp_path / "cache", feeds=feeds)
        once = sum(graph.weights_bytes[name] for name in graph.first_use)
        profile = open_device("s20", tmp_path).profile(graph)
        guessed = guess(graph, "here", 2, {})
        for each in (graph.blocks, profile.blocks, guessed.blocks):
            assert sum(block.weights_bytes for block in each) == once
        count = len(graph.blocks)
        for cut in range(1, count):
            stages = [graph.node_range(0, cut), graph.node_range(cut, count)]
            assert sum(graph.segment_weights_bytes(*stage) for stage in stages) == once
            parts = profile.cost(0, cut), profile.cost(cut, count)
            assert sum(part.read_s for part in parts) == pytest.approx(profile.whole().read_s)
            both = sum(part.load_s for part in parts)
            assert both == pytest.approx(profile.whole().load_s + profile.stage_fixed_s)


def test_stages_that_share_are_neither_read_nor_rearranged(built: tuple[Path, Source, Any, Any]) -> None:
    stage = read_manifest(built[0]).variants[0].stages[0]
    rows = [{"first_s": 1.0, "steady_s": 1.0}]
    fast = [{"first_s": 0.1, "steady_s": 0.1}]
    samples = dict.fromkeys(MAPPED, rows)
    assert all(scheme.mapped and not scheme.prepack for scheme in MAPPED)
    assert not _choose(stage, samples).upgrade
    assert _choose(stage, {**samples, Scheme(prepack=True): fast}).prepack


def test_a_little_is_rather_repeated(tmp_path: Path) -> None:
    """A stage that shares is no .ort file: for the thousandth that a bias of zeros takes none is made so."""
    model = models.text(
        """g (float[16,512] x) => (float[16,512] y) {
            m0 = MatMul(x, w0)
            a0 = Add(m0, zeros)
            r0 = Sin(a0)
            m1 = MatMul(r0, w1)
            a1 = Add(m1, zeros)
            y = Sin(a1)
        }""",
        zeros=np.zeros(512, np.float32),
        w0=floats(512, 512) / 23,
        w1=floats(512, 512) / 23,
    )
    source = Source.open(models.save(model, tmp_path), "m")
    graph = load_graph(source, "native", tmp_path / "cache")
    count = len(graph.blocks)
    portable = load_graph(source, "portable", tmp_path / "cache")
    plans = [
        VariantPlan(graph, Partition.of(count, [count // 2]), 2),
        VariantPlan(portable, Partition(len(portable.blocks)), 1),
    ]
    native = build_bundle(tmp_path / "b", plans, device="here").variants[0]
    assert [stage.shares for stage in native.stages] == [(), ()]
    assert all(stage.graph.name.endswith(".ort") for stage in native.stages)


def test_joined_stages_read_a_weight_once(built: tuple[Path, Source, Any, Any]) -> None:
    bundle, source, _, _ = built
    manifest = read_manifest(bundle)
    if manifest.variants[0].kind != "portable":
        pytest.skip("its portable graph is one stage")
    joined = join_stages([bundle / stage.graph.name for stage in manifest.variants[0].stages], manifest)
    external = [tensor for tensor in joined.graph.initializer if is_external(tensor)]
    stored = [tensor for tensor in onnx.load(str(source.path)).graph.initializer if len(tensor.raw_data) >= 1024]
    assert len(external) <= len(stored)


def test_train_for_a_simulated_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    bundle = trained(tmp_path, "s20")
    assert read_manifest(bundle).variants[0].sharing()
    assert main(["verify", str(bundle)]) == 0
    capsys.readouterr()


@pytest.mark.slow
@pytest.mark.parametrize("device", ["host", "s20"])
def test_a_bundle_is_specialized_anew(
    device: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    bundle = trained(tmp_path, device)
    assert read_manifest(bundle).variants[0].sharing()
    assert main(["specialize", str(bundle)]) == 0
    assert main(["verify", str(bundle)]) == 0
    assert sum(file.bytes for file in read_manifest(bundle).files()) < 1.5 * (tmp_path / "model.onnx").stat().st_size
    capsys.readouterr()


def trained(folder: Path, device: str) -> Path:
    model, bundle = models.save(layers(), folder), folder / "b.splitload"
    assert main(["train", str(model), "--device", device, "--split-points", "1,2,3", "-o", str(bundle)]) == 0
    return bundle


def test_a_trained_tail_has_weights_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The frozen stages share; what is trained is written anew for each user, so it reads none of their files."""
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    model, bundle, data = layers(), tmp_path / "b.splitload", tmp_path / "train.npz"
    model.graph.initializer.append(onnx.numpy_helper.from_array(floats(WIDTH, 8), "head"))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["y", "head"], ["scores"], "last"))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", 8]))
    path = models.save(model, tmp_path)
    words = ["train", str(path), "--device", "s20", "--max-blocks", "4", "--split-points", "1,2,3", "-o", str(bundle)]
    assert main([*words, "--trainable", "1"]) == 0
    *frozen, tail = read_manifest(bundle).variants[0].stages
    assert any(stage.shares for stage in frozen)
    assert tail.trainable
    assert tail.shares == ()
    np.savez(data, x=floats(32, WIDTH), y=np.arange(32) % 8)
    assert main(["finetune", str(bundle), "--data", str(data), "--epochs", "1"]) == 0
    assert main(["verify", str(bundle)]) == 0
    capsys.readouterr()

"""Bundles of models that store weights small, or once: they are as small, and answer as a stock session does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import small_models

import splitload.runtime.variants
from splitload import ParallelLoader
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.bundle.manifest import Manifest, TensorSpec
from splitload.bundle.read import read_manifest
from splitload.cli import main
from splitload.devices import tuning
from splitload.devices.host import HostDevice
from splitload.devices.simulated import SimulatedDevice
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.folding import is_maker, unfold
from splitload.graphs.kernels import needs_packing
from splitload.graphs.layout import channel_block
from splitload.graphs.proto import all_tensors, tensor_bytes
from splitload.plan.graph import GraphKind
from splitload.plan.partition import Partition
from splitload.runtime.inputs import example_inputs

pytestmark = pytest.mark.filterwarnings("ignore::splitload.PortableWarning")  # the portable graph is tried on purpose

OVERHEAD_BYTES = 28 << 10  # manifest, graphs and canary of a model of three layers; canaries differ by processor
WAIT_S = 60
WITHOUT_NATIVE = {"int4 scaled", "int8 scaled", "trees"}  # whose native weights would be others


def write(name: str, kind: GraphKind, folder: Path, **options: Any) -> tuple[Path, Path, Manifest]:
    """Return a model's file, its bundle and the manifest of that."""
    path = models.save(small_models.MODELS[name](), folder)
    source, cache = Source.open(path, "small"), folder / "cache"
    graphs = [load_graph(source, kind, cache)]
    if graphs[0].kind == "native":
        graphs.append(load_graph(source, "portable", cache))
    plans = [VariantPlan(graph, Partition(len(graph.blocks)), 2) for graph in graphs]
    manifest = build_bundle(folder / "m.splitload", plans, device="host", **options)
    return path, folder / "m.splitload", manifest


def answers(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """Return made-up inputs, and what a stock session makes of them."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feeds = example_inputs(session.get_inputs(), {})
    return feeds, session.run(None, feeds)


@pytest.mark.parametrize("name", small_models.MODELS)
@pytest.mark.parametrize("kind", ["native", "portable"])
def test_a_bundle_is_as_small_as_the_model_and_answers_like_it(
    name: str, kind: GraphKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, bundle, manifest = write(name, kind, tmp_path)
    size = sum(file.stat().st_size for file in bundle.iterdir())
    assert size <= 1.1 * path.stat().st_size + OVERHEAD_BYTES
    kinds = ["portable"] if kind == "portable" or name in WITHOUT_NATIVE else ["native", "portable"]
    assert [variant.kind for variant in manifest.variants] == kinds
    feeds, expected = answers(path)
    for wanted in kinds:
        if wanted != kinds[0]:
            monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "abacus")
        with ParallelLoader(bundle, verify="hashes") as loader:
            assert loader.variant.kind == wanted
            first = loader.run(None, feeds)
            assert loader.wait("upgraded", WAIT_S)
            for got in (first, loader.run(None, feeds)):
                for left, right in zip(got, expected, strict=True):
                    assert left.dtype == right.dtype
                    scale = np.abs(right).max()
                    np.testing.assert_allclose(
                        left, right, rtol=0, atol=scale * (2e-3 if right.itemsize == 2 else 1e-5)
                    )


@pytest.mark.parametrize("name", ["int4 product", "int4 scaled", "int8 scaled"])
def test_weights_that_kernels_pack_are_packed_from_the_start(name: str, tmp_path: Path) -> None:
    _, _, manifest = write(name, "native", tmp_path)
    for variant in manifest.variants:
        assert all(stage.prepack and not stage.upgrade for stage in variant.stages)


def test_other_weights_are_not_packed_at_once(tmp_path: Path) -> None:
    _, _, manifest = write("tied", "native", tmp_path)
    assert not any(stage.prepack for variant in manifest.variants for stage in variant.stages)


def test_what_packing_changes_is_seen_by_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage whose operator nobody has listed."""
    monkeypatch.setattr(tuning, "MIN_WEIGHTS_BYTES", 0)
    monkeypatch.setattr(tuning, "REPEATS", 0)

    def choose(folder: Path, variant: Any) -> Any:
        stages = tuple(stage._replace(prepack=False, upgrade=True) for stage in variant.stages)
        return HostDevice(tmp_path).tune(
            folder, variant._replace(stages=stages), [TensorSpec("x", "tensor(float)", ("rows", 256))], {}
        )

    _, _, manifest = write("int4 product", "native", tmp_path, steps=Steps(choose=choose))
    assert [(stage.prepack, stage.upgrade) for stage in manifest.variants[0].stages] == [(True, False)]


def test_a_tied_weight_is_read_the_other_way_round(tmp_path: Path) -> None:
    path = models.save(small_models.tied(), tmp_path)
    native = onnx.load(load_graph(Source.open(path, "tied"), "native", tmp_path / "cache").path).graph
    assert [(node.op_type, list(node.input)) for node in native.node][-1] == ("FusedMatMul", ["t", "table"])
    assert [tensor.name for tensor in native.initializer] == ["table"]
    assert not any(map(is_maker, native.node))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("filters of int8", {"Cast"}), ("filters of int8, scaled", {"Cast", "Mul", "Reshape", "Transpose"})],
)
def test_filters_in_blocks_are_made_of_what_is_stored(name: str, expected: set[str], tmp_path: Path) -> None:
    """Stored as the blocks want them, where each number becomes a weight by itself; else turned in each run."""
    path = models.save(small_models.MODELS[name](), tmp_path)
    native = onnx.load(load_graph(Source.open(path, "filters"), "native", tmp_path / "cache").path).graph
    makers = [node for node in native.node if is_maker(node)]
    assert {node.op_type for node in makers} == expected - (set() if channel_block() else {"Reshape", "Transpose"})
    large = [tensor for tensor in all_tensors(native) if tensor_bytes(tensor) >= 4096]
    assert {tensor.data_type for tensor in large} == {onnx.TensorProto.INT8}


def test_what_grows_little_stays_folded(tmp_path: Path) -> None:
    model = models.text(
        "g (float[n,8] x) => (float[n,8] y) { w = Cast <to=1> (h)  y = MatMul(x, w) }",
        h=np.ones((8, 8), np.float16),
    )
    graph = load_graph(Source.open(models.save(model, tmp_path), "m"), "portable", tmp_path / "cache")
    assert [node.op_type for node in onnx.load(graph.path).graph.node] == ["MatMul"]


def test_single_precision_stays_where_the_model_has_it(tmp_path: Path) -> None:
    """Weights that half precision could hold, in a model without any of it: nothing is to be gained back."""
    weight = np.ones((256, 256), np.float32)
    model = models.text("g (float[n,256] x) => (float[n,256] y) { y = MatMul(x, w) }", w=weight)
    graph = load_graph(Source.open(models.save(model, tmp_path), "m"), "native", tmp_path / "cache")
    assert {tensor.data_type for tensor in onnx.load(graph.path).graph.initializer if len(tensor.dims) > 1} == {1}


def test_a_weight_that_half_precision_cannot_hold_stays(tmp_path: Path) -> None:
    """A scale that is multiplied into half-precision weights leaves values between theirs."""
    model = models.text(
        """g (float[n,256] x) => (float[n,256] y) {
            c = Cast <to=1> (h)  a = MatMul(x, c)  b = Tanh(a)  y = MatMul(b, w)
        }""",
        h=models.floats(256, 256).astype("f2"),
        w=models.floats(256, 256) / 3,
    )
    path, cache = models.save(model, tmp_path), tmp_path / "cache"
    native = onnx.load(load_graph(Source.open(path, "m"), "native", cache).path).graph
    large = {tensor.data_type for tensor in native.initializer if tensor_bytes(tensor) >= 4096}
    assert large == {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}


def test_a_model_without_constants_is_left_alone(tmp_path: Path) -> None:
    model = models.text("g (float[n,8] x) => (float[n,8] y) { y = MatMul(x, w) }", w=models.floats(8, 8))
    path = models.save(model, tmp_path)
    before = path.read_bytes()
    assert unfold(path, path, None, native=True) == 0
    assert path.read_bytes() == before


def test_scaled_weights_of_other_operators_need_no_packing() -> None:
    model = models.text(
        "g (int64[n] at) => (float[n,4] y) { w = DequantizeLinear(q, s)  y = Gather(w, at) }",
        q=np.ones((9, 4), np.int8),
        s=np.float32(0.5),
    )
    assert not needs_packing(model.graph)


def test_an_old_manifest_says_nothing_of_optimising_again(native_bundle: Path) -> None:
    data = read_manifest(native_bundle).to_json()
    for variant in data["variants"]:
        for stage in variant["stages"]:
            del stage["reoptimize"]
    from splitload.bundle.validate import validate

    assert not any(stage.reoptimize for variant in validate(data).variants for stage in variant.stages)


TOLD = "model gets no native part, which would take about as much room as the model once more"


def said(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    assert main([*words]) == 0
    out, err = capsys.readouterr()
    return " ".join(out.split()), " ".join(err.split())


@pytest.mark.parametrize("kind", ["native", "portable"])
def test_who_gets_no_native_part_is_told(
    kind: GraphKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(SimulatedDevice, "graph_kind", kind)  # what runs on it; it is quicker than this host
    model, bundle = models.save(small_models.MODELS["trees"](), tmp_path), tmp_path / "b.splitload"
    _, notes = said(capsys, "train", str(model), "--device", "s20", "-o", str(bundle))
    assert notes.count(TOLD) == (kind == "native")
    assert TOLD in (read_manifest(bundle).plan["native_left_out"] or "") or kind == "portable"
    assert (TOLD in said(capsys, "inspect", str(bundle), "--why")[0]) == (kind == "native")


@pytest.mark.slow
def test_who_specializes_in_vain_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    model, bundle = models.save(small_models.MODELS["trees"](), tmp_path), tmp_path / "b.splitload"
    said(capsys, "train", str(model), "--device", "s20", "-o", str(bundle))
    assert TOLD in said(capsys, "specialize", str(bundle))[1]
    assert TOLD in said(capsys, "inspect", str(bundle), "--why")[0]

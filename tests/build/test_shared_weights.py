"""Weights of both variants are stored once: the portable stages read them out of the native ones' files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import floats
from onnx import numpy_helper
from runtime_models import loader_with
from two_variants import variants

from splitload import ParallelLoader
from splitload.base.errors import BundleError
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.bundle.read import read_manifest
from splitload.bundle.validate import validate
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs import layout, stages
from splitload.graphs.layout import channel_block
from splitload.graphs.proto import all_tensors, is_external
from splitload.plan.partition import Partition

WAIT_S = 60


OPSETS = (7, 12, 17)


needs_blocks = pytest.mark.skipif(channel_block() is None, reason="this processor has no blocked layout to restore")


def network(opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    """Every kind of weight: of an image, in blocks, depthwise, 1 x 1, normalised, of both kinds of Gemm, of MatMul."""
    model = models.text(
        """g (float[1,3,8,8] x) => (float[64,128] y, float[64,64] early) {
            c1 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, k1, b1)
            r1 = Relu(c1)
            c2 = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (r1, k2)
            n2 = BatchNormalization(c2, scale, shift, mean, variance)
            r2 = Relu(n2)
            c3 = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=128> (r2, k3, b3)
            c4 = Conv <kernel_shape=[1,1]> (c3, k4)
            s4 = Add(c4, c3)
            t4 = Transpose <perm=[0,2,3,1]> (s4)
            p4 = Reshape(t4, rows)
            g5 = Gemm <transB=1> (p4, w5, b5)
            r5 = Sin(g5)
            g6 = Gemm(r5, w6, b6)
            early = Tanh(g6)
            m7 = MatMul(early, w7)
            e7 = Reshape(m7, threes)
            m8 = MatMul(e7, w8)
            r8 = Reshape(m8, rows)
            y = Sigmoid(r8)
        }""",
        opset,
        ir,
        k1=floats(64, 3, 3, 3),
        b1=floats(64),
        k2=floats(128, 64, 3, 3) / 24,
        scale=1 + abs(floats(128)),
        shift=floats(128),
        mean=floats(128),
        variance=1 + abs(floats(128)),
        k3=floats(128, 1, 3, 3) / 3,
        b3=floats(128),
        k4=floats(128, 128, 1, 1) / 11,
        rows=np.array([64, 128]),
        w5=floats(256, 128) / 11,
        b5=floats(256),
        w6=floats(256, 64) / 16,
        b6=floats(64),
        w7=floats(64, 384) / 8,
        threes=np.array([2, 32, 384]),
        w8=floats(384, 128) / 20,
    )
    if ir < 4:  # there every weight is an input with a default
        for tensor in model.graph.initializer:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


FEEDS = {"x": floats(1, 3, 8, 8)}


@pytest.fixture(scope="module", params=[True, False], ids=["products in blocks", "products as they are"])
def blocked(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether every matrix product that can be is stored in blocks, or none is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "is_as_fast", lambda *_: request.param)
        yield request.param


@pytest.fixture(scope="module", params=OPSETS, ids="opset {}".format)
def model(request: pytest.FixtureRequest) -> onnx.ModelProto:
    return network(request.param)


@pytest.fixture(scope="module")
def bundle(blocked: bool, model: onnx.ModelProto, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of both variants, cut in different places; do not change it."""
    return write(model, tmp_path_factory.mktemp("shared"))


pytestmark = pytest.mark.filterwarnings("ignore::splitload.PortableWarning")  # what is tried here is the portable graph


def write(model: onnx.ModelProto, folder: Path, native: int = 2, portable: int = 3, feeds: Any = None) -> Path:
    source = Source.open(models.save(model, folder), "model")
    plans = []
    for kind, number in (("native", native), ("portable", portable)):
        graph = load_graph(source, kind, folder / "cache", feeds=feeds)  # type: ignore[arg-type]
        count = len(graph.blocks)
        number = min(number, count)
        plans.append(VariantPlan(graph, Partition.of(count, [at * count // number for at in range(1, number)]), 2))
    build_bundle(folder / "m.splitload", plans, device="host")
    return folder / "m.splitload"


def answers(model: onnx.ModelProto, feeds: Mapping[str, Any]) -> list[Any]:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def assert_answers(bundle: Path, kind: str, model: onnx.ModelProto, feeds: Mapping[str, Any]) -> None:
    """Before and after the upgrade the bundle gives what the original model gives."""
    expected = answers(model, feeds)
    with ParallelLoader(bundle, verify="hashes") as loader:
        assert loader.variant.kind == kind
        first = loader.run(None, feeds)
        assert loader.wait("upgraded", WAIT_S)
        for got in (first, loader.run(None, feeds)):
            for left, right in zip(got, expected, strict=True):
                assert left.dtype == right.dtype
                np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * np.max(np.abs(right), initial=0))


def test_portable_stages_share_and_store_next_to_nothing(bundle: Path) -> None:
    native, portable = variants(bundle)
    stored = {(stage.weights or stage.graph).name for stage in native.stages}
    for stage in portable.stages:
        assert stage.weights is None
        assert stage.graph.bytes < 20_000  # biases and other weights below 1 KB, and the graph
        assert stored.issuperset(stage.shares)
        assert bool(stage.shares) == (stage.weights_bytes >= 1024)
    assert stored == {name for stage in portable.stages for name in stage.shares}
    assert not any(stage.shares for stage in native.stages)
    assert sum(stage.weights_bytes for stage in portable.stages) > 600_000


def test_a_bundle_is_hardly_larger_than_the_model(bundle: Path) -> None:
    manifest = read_manifest(bundle)
    assert sum(path.stat().st_size for path in bundle.iterdir()) <= 1.1 * manifest.model_bytes


def test_the_native_variant_answers_as_the_model(bundle: Path, model: onnx.ModelProto) -> None:
    assert_answers(bundle, "native", model, FEEDS)


@pytest.mark.usefixtures("elsewhere")
def test_the_portable_variant_answers_as_the_model(bundle: Path, model: onnx.ModelProto) -> None:
    assert_answers(bundle, "portable", model, FEEDS)


def test_the_native_variant_cannot_be_taken_out(bundle: Path) -> None:
    data = read_manifest(bundle).to_json()
    data = json.loads(json.dumps({**data, "variants": data["variants"][1:]}))
    with pytest.raises(BundleError, match="shares weights of"):
        validate(data)


def test_portable_stages_use_standard_operators_only(bundle: Path) -> None:
    for stage in variants(bundle)[1].stages:
        made = onnx.load(bundle / stage.graph.name, load_external_data=False)
        assert {node.domain for node in made.graph.node} <= {"", "ai.onnx"}


@needs_blocks
def test_what_is_restored_is_what_the_model_had(blocked: bool, bundle: Path, model: onnx.ModelProto) -> None:
    """Bit for bit; but for the filter that a normalisation went into, which has another name."""
    original = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    restored: dict[str, Any] = {}
    for stage in variants(bundle)[1].stages:
        graph = onnx.load(bundle / stage.graph.name).graph
        stored = {name.rpartition("/")[0] for tensor in graph.initializer if "/stored/" in (name := tensor.name)}
        assert (stage.optimized, stage.upgrade, stage.reoptimize) == (True, True, True)
        words = ("/stored/", "/turned-", "/sized-")
        makers = [node for node in graph.node if any(word in node.input[0] for word in words)]
        names = [node.output[0] for node in makers if node.output[0] + "/stored" in stored]
        assert {f"{name}/stored" for name in names} == stored
        outputs = [onnx.ValueInfoProto(name=name) for name in names]
        part = onnx.helper.make_graph(makers, "restored", [], outputs, graph.initializer)
        if names:
            opsets = {"opset_imports": model.opset_import, "ir_version": model.ir_version}
            restored.update(zip(names, answers(onnx.helper.make_model(part, **opsets), {}), strict=True))
    assert {"k1", "k3", "k4"} | ({"w5", "w7", "w8"} if blocked else set()) <= restored.keys()
    for name in restored.keys() & original.keys():
        assert restored[name].dtype == original[name].dtype
        assert restored[name].shape == original[name].shape
        np.testing.assert_array_equal(restored[name], original[name])


@pytest.mark.usefixtures("blocked", "elsewhere")
def test_weights_that_are_inputs_of_an_old_file(tmp_path: Path) -> None:
    model = network(7, 3)
    path = write(model, tmp_path)
    assert all(stage.weights is None for stage in variants(path)[1].stages)
    assert_answers(path, "portable", model, FEEDS)


EMBEDDING = """g (int64[n] at, float[20,20] x) => (float[n,24] y, float[20,36] z) {
    y = Gather(table, at)
    t = Tanh(x)
    z = MatMul(t, w)
}"""


@pytest.mark.usefixtures("blocked", "elsewhere")
def test_weights_of_native_stages_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MAX_ORT_BYTES", 0)
    model = network()
    path = write(model, tmp_path)
    native, portable = variants(path)
    weights = {stage.weights.name for stage in native.stages if stage.weights is not None}
    assert {name for stage in portable.stages for name in stage.shares} == weights
    assert all(stage.weights is None for stage in portable.stages)
    assert_answers(path, "portable", model, FEEDS)


@pytest.mark.usefixtures("elsewhere")
def test_weights_in_the_order_they_have(tmp_path: Path) -> None:
    """What is no filter, and matrices that fill no block, are shared as they are."""
    model = models.text(EMBEDDING, table=floats(100, 24), w=floats(20, 36))
    feeds = {"at": np.array([99, 0, 7]), "x": floats(20, 20)}
    path = write(model, tmp_path)
    portable = variants(path)[1]
    assert all(stage.weights is None and stage.optimized for stage in portable.stages)
    assert_answers(path, "portable", model, feeds)


@needs_blocks
@pytest.mark.usefixtures("elsewhere")
def test_filters_that_were_padded_are_shared_as_well(tmp_path: Path) -> None:
    """Output channels that fill no block: the native filters have more, which the portable stage cuts off."""
    model = models.text(
        """g (float[1,16,6,6] x) => (float[1,20,6,6] y) {
            a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, k)
            b = Relu(a)
            y = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (b, padded)
        }""",
        k=floats(32, 16, 3, 3),
        padded=floats(20, 32, 3, 3),
    )
    path = write(model, tmp_path, portable=1)
    (stage,) = variants(path)[1].stages
    assert stage.shares
    assert stage.weights is None
    assert_answers(path, "portable", model, {"x": floats(1, 16, 6, 6)})


ALIKE = np.tile(floats(1, 16, 1, 1), (16, 1, 1, 1))


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "filters",
    [
        (np.zeros((16, 16, 3, 3), np.float32), floats(16, 16, 3, 3)),
        (np.ones((16, 16, 3, 3), np.float32), np.ones((16, 16, 3, 3), np.float32)),
        (ALIKE, ALIKE.transpose(1, 0, 2, 3).copy()),
        (SAME := floats(16, 16, 3, 3), SAME.copy()),
        (SAME, SAME.transpose(1, 0, 2, 3).copy()),
        (SAME, -SAME),
    ],
    ids=["zeros", "ones", "alike", "twins", "turned", "negative"],
)
def test_weights_that_look_alike_are_told_apart(tmp_path: Path, filters: tuple[Any, Any]) -> None:
    first, second = filters
    size = first.shape[2]
    attributes = f"<kernel_shape=[{size},{size}], pads=[{size // 2},{size // 2},{size // 2},{size // 2}]>"
    model = models.text(
        f"""g (float[1,16,6,6] x) => (float[1,16,6,6] y) {{
            a = Conv {attributes} (x, k1)
            b = Sigmoid(a)
            c = Conv {attributes} (b, k2)
            y = Add(c, b)
        }}""",
        k1=first,
        k2=second,
    )
    path = write(model, tmp_path)
    assert all(stage.weights is None for stage in variants(path)[1].stages)
    assert_answers(path, "portable", model, {"x": floats(1, 16, 6, 6)})


@pytest.mark.usefixtures("blocked", "elsewhere")
def test_square_products_both_ways_round(tmp_path: Path) -> None:
    """The same numbers as [K, N] of one product and as [N, K] of another, in weights of their own."""
    square = floats(32, 32)
    model = models.text(
        """g (float[20,32] x) => (float[20,32] y, float[20,32] z) {
            a = MatMul(x, v)
            y = Tanh(a)
            b = Gemm <transB=1> (y, w)
            z = Tanh(b)
        }""",
        v=square,
        w=square.copy(),
    )
    path = write(model, tmp_path)
    assert all(stage.weights is None for stage in variants(path)[1].stages)
    assert_answers(path, "portable", model, {"x": floats(20, 32)})


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("name", ["float16", "int8", "int64", "double", "bfloat16"])
def test_weights_of_other_types(tmp_path: Path, name: str) -> None:
    code = {"float16": 10, "int8": 3, "int64": 7, "double": 11, "bfloat16": 16}[name]
    model = models.text(
        """g (int64[n] at) => (float[n,64] y) {
            a = Gather(table, at)
            b = Cast <to=1> (a)
            y = Tanh(b)
        }"""
    )
    raw = np.random.default_rng(0).integers(0, 100, (40, 64))
    tensor = onnx.helper.make_tensor("table", code, raw.shape, raw.ravel().tolist())
    model.graph.initializer.append(tensor)
    path = write(model, tmp_path)
    assert_answers(path, "portable", model, {"at": np.array([3, 39, 0])})
    assert any(stage.shares for stage in variants(path)[1].stages)
    assert all(stage.weights is None for stage in variants(path)[1].stages)


def test_a_portable_bundle_shares_nothing(tmp_path: Path) -> None:
    source = Source.open(models.save(network(), tmp_path), "model")
    graph = load_graph(source, "portable", tmp_path / "cache")
    plan = VariantPlan(graph, Partition.of(len(graph.blocks), [len(graph.blocks) // 2]), 2)
    (variant,) = build_bundle(tmp_path / "m.splitload", [plan], device="host").variants
    assert all(stage.shares == () and stage.optimized and stage.weights for stage in variant.stages)


def test_native_stages_do_not_lean_on_others(bundle: Path) -> None:
    """A stage in an .onnx file names files of its bundle only: its own weights and those it says it shares."""
    for stage in variants(bundle)[1].stages:
        graph = onnx.load(bundle / stage.graph.name, load_external_data=False).graph
        places = {
            entry.value
            for tensor in all_tensors(graph)
            if is_external(tensor)
            for entry in tensor.external_data
            if entry.key == "location"
        }
        assert places == set(stage.shares)


@needs_blocks
@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("engine", ["library", "python"])
def test_weights_are_restored_by_each_run_until_the_runtime_has_optimised_the_stage(
    bundle: Path, model: onnx.ModelProto, engine: Literal["library", "python"]
) -> None:
    seen: list[tuple[str, bool, bool, bool]] = []

    def watched(make: Any, graph: str, *, optimize: bool, prepack: bool, background: bool, **options: Any) -> Any:
        seen.append((Path(graph).name, optimize, prepack, background))
        return make(graph, optimize=optimize, prepack=prepack, background=background, **options)

    with loader_with(open_session=watched)(bundle, engine=engine) as loader:
        first = loader.run(None, FEEDS)
        assert loader.wait("upgraded", WAIT_S)
        later = loader.run(None, FEEDS)
    graphs = [stage.graph.name for stage in variants(bundle)[1].stages]
    # what takes over is made at the usual priority: a process that infers all the time would never leave it a processor
    ways = [(False, False, False)] * len(graphs) + [(True, True, False)] * len(graphs)
    assert sorted(seen) == sorted((graph, *way) for graph, way in zip(graphs * 2, ways, strict=True))
    for got in (first, later):
        for left, right in zip(got, answers(model, FEEDS), strict=True):
            np.testing.assert_allclose(left, right, rtol=1e-5, atol=1e-5 * np.max(np.abs(right)))

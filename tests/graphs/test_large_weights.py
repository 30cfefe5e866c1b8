"""Large weights are cut into parts that fit, and the model answers as before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
from layout_models import needs_blocks
from models import floats, text

from splitload import ParallelLoader
from splitload.build.agreement import compare_with_stock
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.build.equality import check_graph
from splitload.bundle.read import read_manifest
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.folding import is_maker
from splitload.graphs.names import rename_uses
from splitload.graphs.observe import plain_options
from splitload.graphs.tidy import DOMAIN
from splitload.plan.graph import GraphKind, ModelGraph
from splitload.plan.partition import Partition
from splitload.runtime.session import open_session
from splitload.runtime.stock import stock_session
from splitload.training.opened import load_opened

KINDS: tuple[GraphKind, ...] = ("native", "portable")
MOST = 80_000  # bytes of a part; of the weights below, 64 output features take 24,576
W, BIAS = floats(96, 320), floats(320)
X = {"x": floats(20, 96)}


@dataclass(frozen=True)
class Case:
    """A model in ONNX text form, and how many parts its weights have.

    Attributes:
        body: Between the braces.
        weights: By name.
        feeds: What it is run on.
        parts: Of every weight that is cut, in all.
        ends: The inputs and outputs.
        exact: Whether the parts give the same bits, as blocks and sums of at most 128 products do; else 1e-6.
    """

    body: str
    weights: Mapping[str, Any]
    feeds: Mapping[str, Any] = field(default_factory=lambda: X)
    parts: int = 2
    ends: str = "(float[n,96] x) => (float[n,320] y)"
    exact: bool = True

    def graphs(self, folder: Path, kind: GraphKind) -> tuple[Source, ModelGraph, ModelGraph]:
        """Return the model, its graph as it is, and with its large weights cut."""
        source = Source.open(models.save(text(f"g {self.ends} {{ {self.body} }}", **self.weights), folder), "model")
        return source, *both(source, folder, kind, self.feeds)


def both(
    source: Source, folder: Path, kind: GraphKind, feeds: Mapping[str, Any] | None = None
) -> tuple[ModelGraph, ModelGraph]:
    cache = folder / "cache"
    return load_graph(source, kind, cache, feeds=feeds), load_graph(
        source, kind, cache, max_weight_bytes=MOST, feeds=feeds
    )


ROWS = "(float[2,n,96] x) => (float[2,n,320] y)"
IMAGE = "(float[2,96,6,6] x) => (float[2,320,6,6] y)"
IMAGES = {"x": floats(2, 96, 6, 6)}
CUT = {
    "Gemm": Case("y = Gemm(x, w, b)", {"w": W, "b": BIAS}),
    "Gemm of one row": Case("y = Gemm(x, w, b)", {"w": W, "b": BIAS}, {"x": floats(1, 96)}),
    "Gemm with transB, scaled": Case(
        "y = Gemm <transB=1, alpha=0.5, beta=2.0> (x, w, b)", {"w": W.T.copy(), "b": BIAS.reshape(1, 320)}
    ),
    "Gemm with transA, and a number for each row": Case(
        "y = Gemm <transA=1> (x, w, b)", {"w": W, "b": floats(20, 1)}, {"x": floats(96, 20)},
        ends="(float[96,20] x) => (float[20,320] y)",
    ),
    "Gemm and a matrix": Case(
        "y = Gemm(x, w, b)", {"w": W, "b": floats(2, 320)}, {"x": floats(2, 96)},
        ends="(float[2,96] x) => (float[2,320] y)",
    ),
    "Gemm and what is computed": Case(
        "b = ReduceMax <keepdims=0> (x) y = Gemm(x, w, b)", {"w": W}, exact=False
    ),
    "Gemm and one number": Case("y = Gemm(x, w, b)", {"w": W, "b": np.float32(0.5)}),
    "Gemm alone": Case("y = Gemm(x, w)", {"w": W}),
    "Gemm and what is fused with it": Case(
        "a = Gemm <transB=1> (x, w, b) y = Relu(a)", {"w": W.T.copy(), "b": BIAS}, {"x": floats(2, 96)}
    ),
    "MatMul and a bias": Case(
        "a = MatMul(x, w) y = Add(a, b)", {"w": W, "b": BIAS}, {"x": floats(2, 20, 96)}, ends=ROWS
    ),
    "MatMul of a vector": Case("y = MatMul(x, w)", {"w": W}, {"x": floats(96)}, ends="(float[96] x) => (float[320] y)"),
    "one weight of two products": Case(
        "a = MatMul(x, w) t = Tanh(x) b = MatMul(t, w) y = Add(a, b)", {"w": W}
    ),
    "float64": Case("y = MatMul(x, w)", {"w": W.astype(np.float64)}, {"x": np.float64(X["x"])}, 5,
                    "(double[n,96] x) => (double[n,320] y)", exact=False),
    "a weight whose features come in no multiple": Case(
        "y = Gemm <transB=1> (x, w, b)", {"w": floats(300, 96), "b": floats(300)},
        ends="(float[n,96] x) => (float[n,300] y)", exact=False,
    ),
    "Conv": Case(
        "a = Conv <kernel_shape=[3,3], pads=[1,1,1,1]> (x, w, b) y = Relu(a)", {"w": floats(320, 96, 3, 3), "b": BIAS},
        IMAGES, 20, IMAGE, exact=False,
    ),
    "Conv of rows": Case("y = Conv(x, w)", {"w": floats(320, 96, 3)}, {"x": floats(2, 96, 9)}, 5,
                         "(float[2,96,9] x) => (float[2,320,7] y)", exact=False),
}  # fmt: skip
KEPT = {
    "read by a lookup, too": Case(
        "r = Gather(w, at) y = Gemm <transB=1> (r, w)",
        {"w": W.T.copy()}, {"at": np.array([3, 1])}, ends="(int64[n] at) => (float[n,320] y)",
    ),
    "a convolution in groups": Case(
        "y = Conv <kernel_shape=[3,3], pads=[1,1,1,1], group=2> (x, w)", {"w": floats(320, 48, 3, 3)}, IMAGES,
        ends=IMAGE,
    ),
    "integers": Case(
        "a, s, z = DynamicQuantizeLinear(x) i = MatMulInteger(a, w, z) f = Cast <to=1> (i) y = Mul(f, s)",
        {"w": np.tile((W * 20).clip(-127, 127).astype(np.int8), (1, 4))}, ends="(float[n,96] x) => (float[n,1280] y)",
    ),
    "an output": Case("y = MatMul(x, w)", {"w": W}, ends="(float[n,96] x) => (float[n,320] y, float[96,320] w)"),
}  # fmt: skip


def largest(graph: ModelGraph) -> int:
    return max(graph.weights_bytes.values())


def run(graph: ModelGraph, feeds: Mapping[str, Any]) -> Any:
    return open_session(graph.path).run(None, dict(feeds))[0]


def assert_cut(case: Case, source: Source, plain: ModelGraph, cut: ModelGraph) -> None:
    """Every weight fits, each part can be a stage of its own, and the model answers as before."""
    assert largest(plain) > MOST >= largest(cut)
    parts = cut.weights_bytes.keys() - plain.weights_bytes.keys()
    assert sum(cut.weights_bytes[name] > 16_000 for name in parts) == case.parts
    assert max(block.weights_bytes for block in cut.blocks) <= MOST
    assert len(cut.cut_points) == len(cut.nodes) - 1 - (len(plain.nodes) - 1 - len(plain.cut_points))
    left, right = run(cut, case.feeds), run(plain, case.feeds)
    np.testing.assert_allclose(left, right, rtol=0, atol=0 if case.exact else 1e-6 * float(np.abs(right).max()))
    assert check_graph(source, cut, feeds=case.feeds).passed


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CUT)
def test_parts_fit_and_give_what_the_whole_gave(name: str, kind: GraphKind, tmp_path: Path) -> None:
    assert_cut(CUT[name], *CUT[name].graphs(tmp_path, kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", KEPT)
def test_what_cannot_be_cut_stays_as_it_is(name: str, kind: GraphKind, tmp_path: Path) -> None:
    _, plain, cut = KEPT[name].graphs(tmp_path, kind)
    assert largest(cut) == largest(plain) > MOST
    weight, node, nbytes = cut.largest_weight()
    assert nbytes == cut.weights_bytes[weight] == max(
        cut.weights_bytes[each] for node in cut.nodes if node.op_type != "Gather" for each in node.weights
    )  # fmt: skip
    assert weight in node.weights


@needs_blocks
def test_parts_of_a_blocked_product_share_one_way_in_and_one_out(tmp_path: Path, accepting: None) -> None:
    case = CUT["MatMul and a bias"]
    source, plain, cut = case.graphs(tmp_path, "native")
    assert_cut(case, source, plain, cut)
    nodes = onnx.load(cut.path, load_external_data=False).graph.node
    order = [node.op_type for node in nodes if node.domain == DOMAIN or node.op_type == "Concat"]
    assert order == ["ReorderInput", "Conv", "Conv", "Concat", "ReorderOutput"]


@needs_blocks
@pytest.mark.parametrize("bias", ["", ", d"])
def test_a_convolution_that_a_sum_is_fused_with_adds_each_part_of_it(bias: str, tmp_path: Path) -> None:
    conv = "Conv <kernel_shape=[3,3], pads=[1,1,1,1]>"
    body = f"a = {conv} (x, v) t = Relu(a) b = {conv} (t, w{bias}) c = Add(b, t) y = Relu(c)"
    weights = {"v": floats(96, 16, 3, 3), "w": floats(96, 96, 3, 3), "d": floats(96)}
    feeds = {"x": floats(2, 16, 6, 6)}
    case = Case(body, weights, feeds, 6, "(float[2,16,6,6] x) => (float[2,96,6,6] y)")
    source, plain, cut = case.graphs(tmp_path, "native")
    assert "Slice" not in [node.op_type for node in plain.nodes]
    assert [node.op_type for node in cut.nodes].count("Slice") == 6
    assert_cut(case, source, plain, cut)


def test_a_fused_activation_stays_with_each_part(tmp_path: Path) -> None:
    _, _, cut = CUT["Gemm and what is fused with it"].graphs(tmp_path, "native")
    assert [node.op_type for node in cut.nodes] == ["FusedGemm", "FusedGemm", "Concat"]


@pytest.mark.parametrize("kind", KINDS)
def test_float16_parts_are_stored_as_float16(kind: GraphKind, tmp_path: Path) -> None:
    half = {"w": W.astype(np.float16), "b": BIAS.astype(np.float16)}
    ends = "(float16[n,96] x) => (float16[n,320] y)"
    case = Case("y = Gemm(x, w, b)", half, {"x": X["x"].astype(np.float16)}, ends=ends)
    _, plain, cut = case.graphs(tmp_path, kind)
    assert sum(cut.weights_bytes.values()) == sum(plain.weights_bytes.values())
    model = onnx.load(cut.path, load_external_data=False)
    made = [node for node in model.graph.node if is_maker(node)]
    assert {node.input[0] for node in made} <= cut.weights_bytes.keys()
    assert max(largest(cut), max((2 * cut.weights_bytes[node.input[0]] for node in made), default=0)) <= MOST
    np.testing.assert_array_equal(run(cut, case.feeds), run(plain, case.feeds))


def test_weights_in_files_of_their_own_and_batches_of_any_size(tmp_path: Path) -> None:
    model = text("g (float[n,96] x) => (float[n,320] y) { y = MatMul(x, w) }", w=W)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    source = Source.open(tmp_path / "m.onnx", "m")
    plain, cut = both(source, tmp_path, "portable")
    assert cut.source_sha256 == source.sha256
    assert plain.path.with_name("model.bin").stat().st_size == W.nbytes  # it was read, and nothing else
    for rows in (0, 1, 33):
        feeds = {"x": floats(rows, 96)}
        np.testing.assert_array_equal(run(cut, feeds), run(plain, feeds))
    assert [path.name for path in cut.path.parent.iterdir() if path.is_symlink()] == []


def test_names_that_are_taken_are_not_given_again(tmp_path: Path) -> None:
    model = text("g (float[n,96] x) => (float[n,320] y) { a = Abs(x) b = Tanh(a) y = MatMul(b, w) }", w=W)
    for old, new in {"a": "y/0-128", "b": "w/0-128"}.items():  # which no text form takes
        rename_uses(model.graph, {old: new})
        next(node for node in model.graph.node if node.output[0] == old).output[0] = new
    source = Source.open(models.save(model, tmp_path), "model")
    _, cut = both(source, tmp_path, "portable")
    assert [node.op_type for node in cut.nodes] == ["Abs", "Tanh", "MatMul", "MatMul", "Concat"]
    assert check_graph(source, cut).passed


def test_without_a_limit_or_a_large_weight_nothing_is_made(tmp_path: Path) -> None:
    source, plain, cut = CUT["Gemm"].graphs(tmp_path, "portable")
    before = {path: path.stat() for path in (tmp_path / "cache").rglob("*")}
    again = load_graph(source, "portable", tmp_path / "cache", max_weight_bytes=W.nbytes)
    assert again.path == plain.path != cut.path
    assert load_graph(source, "portable", tmp_path / "cache", max_weight_bytes=MOST).path == cut.path
    assert before == {path: path.stat() for path in (tmp_path / "cache").rglob("*")}


def test_before_a_tail_that_is_trained_weights_are_cut_and_in_it_they_stay(tmp_path: Path) -> None:
    body = "a = Gemm(x, v, d) b = Relu(a) y = Gemm(b, w, e)"
    weights = {"v": W, "d": BIAS, "w": floats(320, 96), "e": floats(96)}
    model = text(f"g (float[n,96] x) => (float[n,96] y) {{ {body} }}", **weights)
    source = Source.open(models.save(model, tmp_path), "model")
    opened = load_opened(source, "native", tmp_path / "cache", "1", max_weight_bytes=MOST, feeds=X)
    sizes = opened.graph.weights_bytes
    assert opened.graph.trainable == ("w", "e")
    assert [name for name in sizes if sizes[name] > MOST] == ["w"]
    assert len(opened.graph.blocks) == len(opened.graph.nodes)
    assert check_graph(source, opened.graph, feeds=X).passed
    plain = load_opened(source, "native", tmp_path / "cache", "1", feeds=X)
    assert largest(plain.graph) == W.nbytes


def test_a_bundle_with_parts_in_several_stages_answers_like_a_stock_session(tmp_path: Path) -> None:
    """Both variants share the parts; each part of the large layer is a stage of its own."""
    body = "a = Gemm(x, v) b = Relu(a) c = Gemm(b, w, d) e = Relu(c) y = Gemm <transB=1> (e, u)"
    weights = {"v": floats(96, 96), "w": floats(96, 640), "d": floats(640), "u": floats(10, 640)}
    model = models.save(text(f"g (float[n,96] x) => (float[n,10] y) {{ {body} }}", **weights), tmp_path)
    source = Source.open(model, "model")
    graphs = [both(source, tmp_path, kind)[1] for kind in KINDS]
    assert [largest(graph) <= MOST for graph in graphs] == [True, True]
    plans = [
        VariantPlan(graph, Partition(len(graph.blocks), tuple(range(1, len(graph.blocks)))), 1) for graph in graphs
    ]
    bundle = tmp_path / "model.splitload"
    build_bundle(bundle, plans, device="host")
    manifest = read_manifest(bundle, "hashes")
    assert manifest.model_sha256 == source.sha256
    assert all(stage.weights_bytes <= MOST for variant in manifest.variants for stage in variant.stages)
    stored = sum(file.bytes for file in manifest.files())
    assert stored < 1.5 * source.size_bytes
    assert all(value <= 1e-6 for value in compare_with_stock(bundle, manifest, model, X).difference.values())
    with ParallelLoader(bundle) as loaded:
        expected = stock_session(str(model), plain_options()).run(None, X)[0]
        np.testing.assert_allclose(loaded.run(None, X)[0], expected, rtol=0, atol=1e-6 * float(np.abs(expected).max()))

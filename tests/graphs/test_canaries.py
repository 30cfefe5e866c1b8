"""A canary uses each internal operator of a native graph in each way it runs, and is made of nothing that is wrong."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from onnx import helper

from splitload.bundle.manifest import Needs
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs import blocked, canaries
from splitload.graphs.canaries import _smaller, needs_of
from splitload.graphs.layout import channel_block
from splitload.plan.graph import ModelGraph
from splitload.runtime import canary

BLOCK = channel_block()
BLOCKS = pytest.mark.skipif(BLOCK is None, reason="onnxruntime has no blocked layout on this processor")
SIDE = 32  # pixels

# the body of a graph from an image x to y, the shapes of its weights, and how often its canary has each operator
NETWORKS = {
    "kernels": (
        "a = Conv(x, w0, b0) b = Relu(a) c = Conv<group=32>(b, w1) d = Conv<group=2, strides=[2, 2]>(c, w2)"
        " y = Conv(d, w3)",
        {"w0": (32, 3, 3, 3), "b0": (32,), "w1": (32, 1, 3, 3), "w2": (64, 16, 3, 3), "w3": (32, 64, 1, 1)},
        {"Conv": 4, "ReorderOutput": 1},
    ),
    "sums": (
        "a = Conv<pads=[1, 1, 1, 1]>(x, w0) b = Conv<pads=[1, 1, 1, 1]>(a, w1, b1) c = Add(a, b) d = Relu(c)"
        ' e = Conv<auto_pad="SAME_UPPER", strides=[2, 2]>(d, w1) y = Conv<dilations=[2, 2]>(e, w1)',
        {"w0": (32, 3, 3, 3), "w1": (32, 32, 3, 3), "b1": (32,)},
        {"Conv": 4, "ReorderOutput": 1},
    ),
    "activations": (
        "a = Conv(x, w0) b = Sigmoid(a) c = Conv(b, w1) d = Tanh(c) e = Conv(d, w1) f = LeakyRelu<alpha=0.3>(e)"
        " g = Conv(f, w1) h = HardSigmoid<alpha=0.3, beta=0.4>(g) i = Conv(h, w1) j = HardSwish(i) k = Conv(j, w1)"
        " y = Clip(k, zero, half)",
        {"w0": (32, 3, 1, 1), "w1": (32, 32, 1, 1)},
        {"Conv": 6, "ReorderOutput": 1},
    ),
    "pools": (
        "a = Conv(x, w0) b = MaxPool<kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1>(a)"
        " c = AveragePool<kernel_shape=[2, 2], pads=[1, 1, 1, 1]>(b)"
        " d = AveragePool<kernel_shape=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1>(c)"
        " e = GlobalMaxPool(d) f = GlobalAveragePool(d) y = Add(e, f)",
        {"w0": (32, 3, 1, 1)},
        {"Conv": 1, "MaxPool": 1, "AveragePool": 2, "GlobalMaxPool": 1, "GlobalAveragePool": 1, "ReorderOutput": 1},
    ),
    "partial blocks": (
        'a = Conv(x, w0) b = Conv(a, w1) y = Resize<mode="nearest", coordinate_transformation_mode="asymmetric",'
        ' nearest_mode="floor">(b, , scales)',
        {"w0": (32, 3, 1, 1), "w1": (20, 32, 1, 1)},
        {"Conv": 2, "Upsample": 1, "ReorderOutput": 1},
    ),
}  # fmt: skip

# of plain layout: a body from x[n, 12, 48], weights, and the operators that onnxruntime makes of it
FUSED = {
    "gelu": (
        "a = MatMul(x, w0) b = Div(a, root) c = Erf(b) d = Add(c, one) e = Mul(a, d) y = Mul(e, half)",
        {"w0": (48, 192)},
        {"com.microsoft:Gelu"},
    ),
    "attention": (
        "a = MatMul(x, w0) b = Transpose<perm=[0, 2, 1]>(x) c = MatMul(a, b) d = Mul(c, half) y = Softmax<axis=-1>(d)",
        {"w0": (48, 48)},
        {"com.microsoft:FusedMatMul"},
    ),
    "none": ("y = Tanh(x)", {}, set()),
}  # fmt: skip


IMAGE = (f"float[1, 3, {SIDE}, {SIDE}] x", "float[1, c, h, w] y")
ROWS = ("float[n, 12, 48] x", "float[n, 12, m] y")
CONSTANTS = {
    "zero": 0.0,
    "scales": np.array([1, 1, 2, 2], np.float32),
    "root": np.float32(2**0.5),
    "one": 1.0,
    "half": 0.5,
}


def native_graph(
    folder: Path, head: tuple[str, str], body: str, weights: dict[str, Any], opset: int = 17
) -> ModelGraph:
    arrays = {name: models.floats(*shape) / 4 for name, shape in weights.items()}
    arrays |= {name: np.array(value, np.float32) for name, value in CONSTANTS.items() if name in body}
    text = f"small ({head[0]}) => ({head[1]}) {{ {body} }}"
    model = models.text(text, opset, **arrays)
    return load_graph(Source.open(models.save(model, folder), "small"), "native", folder / "cache")


def instances(folder: Path, needs: Needs) -> Counter[str]:
    """Return how many outputs a canary has of each operator."""
    assert needs.canary is not None
    assert canary.failure(folder, needs.canary, "this", canary.in_module) is None
    names = [re.match("[A-Za-z]+", name) for name in canary.answers(folder / needs.canary.graph.name)]
    return Counter(found[0] for found in names if found and found[0] != "standard")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))


@BLOCKS
@pytest.mark.parametrize("name", NETWORKS)
def test_each_operator_on_blocks_has_an_instance_for_each_way_it_runs(name: str, tmp_path: Path) -> None:
    body, weights, expected = NETWORKS[name]
    needs, why = needs_of(native_graph(tmp_path, IMAGE, body, weights), tmp_path)
    assert why is None
    assert (needs.block, needs.ort_format) == (BLOCK, "6")
    assert needs.operators == tuple(sorted(f"com.microsoft.nchwc:{kind}" for kind in expected))
    assert instances(tmp_path, needs) == expected


@pytest.mark.parametrize("name", FUSED)
def test_others_are_the_graphs_own_cut_down(name: str, tmp_path: Path) -> None:
    body, weights, expected = FUSED[name]
    needs, why = needs_of(native_graph(tmp_path, ROWS, body, weights), tmp_path)
    assert why is None
    assert set(needs.operators) == expected
    assert set(instances(tmp_path, needs)) == {name.partition(":")[2] for name in expected}
    assert needs.canary is not None
    assert needs.canary.graph.bytes < 10_000


def test_quantised_layers_of_middling_images_are_cut_down_too(tmp_path: Path) -> None:
    """An image of 14 x 14 with 32 channels and an open batch; averages of bytes that a scale must not level."""
    body = """
        a = QuantizeLinear(x, wide, zero) b = DequantizeLinear(a, wide, zero)
        w = DequantizeLinear(filters, narrow, level) c = Conv<group=32, pads=[1, 1, 1, 1]>(b, w)
        d = QuantizeLinear(c, wide, zero) e = DequantizeLinear(d, wide, zero)
        f = GlobalAveragePool(e) g = QuantizeLinear(f, narrow, zero) y = DequantizeLinear(g, narrow, zero)"""
    values = {"wide": np.float32(0.1), "narrow": np.float32(0.02), "zero": np.uint8(0), "level": np.int8(0)}
    filters = np.arange(32 * 9, dtype=np.int8).reshape(32, 1, 3, 3)
    arrays = {name: np.asarray(value) for name, value in values.items()} | {"filters": filters}
    model = models.text(f"small (float[n, 32, 14, 14] x) => (float[n, 32, 1, 1] y) {{ {body} }}", 17, **arrays)
    graph = load_graph(Source.open(models.save(model, tmp_path), "small"), "native", tmp_path / "cache")
    needs, why = needs_of(graph, tmp_path)
    assert why is None
    assert set(needs.operators) == {"com.microsoft:QLinearConv", "com.microsoft:QLinearGlobalAveragePool"}
    assert set(instances(tmp_path, needs)) == {"QLinearConv", "QLinearGlobalAveragePool"}


def test_a_wide_kernel_is_cut_down_far_enough() -> None:
    weight = (64, 48, 5, 5)
    sizes = [
        {size: each.get(size, size) for size in (35, *weight)} for each in _smaller([(1, 35, 35, 48), weight], [weight])
    ]
    assert {35: 4, 64: 4, 48: 3, 5: 5} in sizes
    assert all(each[64] * 3 == each[48] * 4 for each in sizes[:3]), "what one size is of the other stays"


@BLOCKS
def test_equal_instances_are_one_however_large_the_layers_are(tmp_path: Path) -> None:
    body = "a = Conv(x, w0) b = Conv(a, w1) c = Conv(b, w2) y = Conv(c, w3)"
    sizes = {"w0": (32, 3, 1, 1), "w1": (64, 32, 1, 1), "w2": (128, 64, 1, 1), "w3": (32, 128, 1, 1)}
    needs, _ = needs_of(native_graph(tmp_path, IMAGE, body, sizes), tmp_path)
    assert instances(tmp_path, needs) == {"Conv": 2, "ReorderOutput": 1}


@BLOCKS
def test_a_layout_that_is_not_the_runtimes_is_found_when_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = native_graph(tmp_path, IMAGE, *NETWORKS["kernels"][:2])
    real = blocked.to_layout
    swapped = {"filter": "plain"}
    monkeypatch.setattr(
        blocked, "to_layout", lambda value, layout, block: real(value, swapped.get(layout, layout), block)
    )
    needs, why = needs_of(graph, tmp_path)
    assert needs.canary is None
    assert "do not compute what they should" in str(why)


def test_what_has_no_instance_leaves_a_graph_without_a_canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = native_graph(tmp_path, ROWS, *FUSED["gelu"][:2])
    monkeypatch.setattr(canaries, "MAX_ELEMENTS", 1)
    needs, why = needs_of(graph, tmp_path)
    assert needs.canary is None
    assert needs.operators == ("com.microsoft:Gelu",)
    assert why == "no small instance of com.microsoft:Gelu can be made"
    assert not list(tmp_path.glob("canary*"))


def test_an_unknown_activation_has_no_instance() -> None:
    """A later onnxruntime may fuse more: then the variant has no canary, and needs the version that made it."""
    node = helper.make_node("Conv", ["x", "w"], ["y"], domain="com.microsoft.nchwc")
    known = {"kernel_shape": [1, 1], "activation": b"HardSwish"}
    assert blocked.instance(node, known, (16, 16, 1, 1), 8) is not None
    assert blocked.instance(node, known | {"activation": b"Later"}, (16, 16, 1, 1), 8) is None

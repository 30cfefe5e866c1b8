"""Rows that are computed piece by piece, and joined, are those of the whole."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from row_cases import Whole

from splitload.graphs.row_windows import Window

HEAD = '<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'

LOCAL = {
    "relu": "(float[1,3,12,5] x) => (float[n] y) { y = Relu(x) }",
    "conv": "(float[1,3,12,9] x, float[4,3,3,3] w) => (float[n] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
    "conv, stride": "(float[1,3,13,9] x, float[4,3,3,3] w, float[4] wb) => (float[n] y) "
    "{ y = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w, wb) }",
    "conv, dilation": "(float[1,3,15,9] x, float[4,3,3,3] w) => (float[n] y) "
    "{ y = Conv<pads=[2,1,2,1], dilations=[2,1]>(x, w) }",
    "conv, groups": "(float[1,4,12,9] x, float[4,1,7,3] w) => (float[n] y) { y = Conv<pads=[3,1,3,1], group=4>(x, w) }",
    "conv, other pads above": "(float[1,3,12,9] x, float[4,3,4,3] w) => (float[n] y) "
    "{ y = Conv<pads=[2,0,1,1]>(x, w) }",
    "conv, same upper": "(float[1,3,13,9] x, float[4,3,4,3] w) => (float[n] y) "
    '{ y = Conv<auto_pad="SAME_UPPER", strides=[2,2]>(x, w) }',
    "conv, same lower": "(float[1,3,13,9] x, float[4,3,4,3] w) => (float[n] y) "
    '{ y = Conv<auto_pad="SAME_LOWER", strides=[2,2]>(x, w) }',
    "conv, valid": "(float[1,3,13,9] x, float[4,3,4,3] w) => (float[n] y) "
    '{ y = Conv<auto_pad="VALID", strides=[3,1]>(x, w) }',
    "conv, one axis": "(float[1,3,30] x, float[4,3,5] w) => (float[n] y) { y = Conv<pads=[2,2], strides=[2]>(x, w) }",
    "transposed": "(float[1,3,7,5] x, float[3,4,3,3] w) => (float[n] y) "
    "{ y = ConvTranspose<strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]>(x, w) }",
    "transposed, dilation": "(float[1,3,7,5] x, float[3,4,3,3] w) => (float[n] y) "
    "{ y = ConvTranspose<strides=[2,1], dilations=[2,1], pads=[1,0,2,0]>(x, w) }",
    "max": "(float[1,3,13,9] x) => (float[n] y) { y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x) }",
    "max, ceil": "(float[1,3,14,10] x) => (float[n] y) "
    "{ y = MaxPool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) }",
    "mean": "(float[1,3,13,9] x) => (float[n] y) "
    "{ y = AveragePool<kernel_shape=[3,3], strides=[1,2], pads=[1,1,1,1]>(x) }",
    "mean, counts padding": "(float[1,3,13,9] x) => (float[n] y) "
    "{ y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x) }",
    "mean, ceil": "(float[1,3,14,9] x) => (float[n] y) "
    "{ y = AveragePool<kernel_shape=[3,3], strides=[2,2], ceil_mode=1>(x) }",
    "batch norm": "(float[1,3,6,5] x, float[3] ws, float[3] wb, float[3] wm) => (float[n] y) "
    "{ v = Mul(wm, wm) y = BatchNormalization(x, ws, wb, wm, v) }",
    "broadcast": "(float[1,3,6,5] x, float[3,1,1] w, float[6,1] wr) => (float[n] y) { a = Add(x, w) y = Mul(a, wr) }",
    "concat": "(float[1,3,6,5] x) => (float[n] y) { a = Relu(x) y = Concat<axis=1>(x, a) }",
    "two parts": "(float[1,4,6,5] x) => (float[n] y) { s = Constant<value_ints=[1,3]>() a, b = Split<axis=1>(x, s) "
    "c = Concat<axis=1>(b, a) y = Relu(c) }",
    "slice": "(float[1,4,6,5] x) => (float[n] y) { b = Constant<value_ints=[1,0]>() e = Constant<value_ints=[3,4]>() "
    "a = Constant<value_ints=[1,3]>() y = Slice(x, b, e, a) }",
    "slice of rows": "(float[1,4,9,5] x) => (float[n] y) { b = Constant<value_ints=[1,2]>() "
    "e = Constant<value_ints=[3,-1]>() a = Constant<value_ints=[1,2]>() y = Slice(x, b, e, a) }",
    "pad": "(float[1,4,9,5] x) => (float[n] y) { p = Constant<value_ints=[0,0,2,1,0,0,3,0]>() y = Pad(x, p) }",
    "pad, reflect": "(float[1,4,9,5] x) => (float[n] y) { p = Constant<value_ints=[0,0,0,1,0,0,0,2]>() "
    'y = Pad<mode="reflect">(x, p) }',
    "to tokens": "(float[1,4,6,5] x) => (float[n] y) { s = Constant<value_ints=[1,4,-1]>() a = Reshape(x, s) "
    "y = Transpose<perm=[0,2,1]>(a) }",
    "to images": "(float[1,4,30] x) => (float[n] y) { s = Constant<value_ints=[1,4,6,5]>() a = Reshape(x, s) "
    "y = Relu(a) }",
    "channels last": "(float[1,4,6,5] x, float[5] w, float[5] wb) => (float[n] y) "
    "{ a = Transpose<perm=[0,2,1,3]>(x) y = LayerNormalization<axis=-1>(a, w, wb) }",
    "products": "(float[1,6,5] x, float[5,7] w, float[7] wb) => (float[n] y) { a = MatMul(x, w) y = Add(a, wb) }",
    "gemm": "(float[6,5] x, float[7,5] w, float[6,7] wc) => (float[n] y) { y = Gemm<transB=1>(x, w, wc) }",
    "gemm, turned": "(float[5,6] x, float[5,7] w) => (float[n] y) { y = Gemm<transA=1>(x, w) }",
    "softmax": "(float[1,6,5] x) => (float[n] y) { y = Softmax<axis=-1>(x) }",
    "mean over others": "(float[1,3,6,5] x) => (float[n] y) { a = Constant<value_ints=[1]>() "
    "y = ReduceMean<keepdims=0>(x, a) }",
    "embedding": "(int64[1,6] x, float[4,5] w) => (float[n] y) { y = Gather(w, x) }",
    "gather": "(float[1,6,5] x) => (float[n] y) { i = Constant<value_ints=[3,1]>() y = Gather<axis=2>(x, i) }",
    "resize, nearest": "(float[1,3,6,5] x) => (float[n] y) { s = Constant<value_floats=[1.0,1.0,2.0,2.0]>() "
    'y = Resize<coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , s) }',
    "resize, linear": "(float[1,3,6,5] x) => (float[n] y) { s = Constant<value_floats=[1.0,1.0,2.0,2.0]>() "
    'y = Resize<mode="linear">(x, , s) }',
    "resize, to sizes": "(float[1,3,6,5] x) => (float[n] y) { s = Constant<value_ints=[1,3,9,5]>() "
    'y = Resize<mode="linear", coordinate_transformation_mode="pytorch_half_pixel">(x, , , s) }',
    "resize, cubic": "(float[1,3,8,5] x) => (float[n] y) { s = Constant<value_ints=[1,3,24,10]>() "
    'y = Resize<mode="cubic">(x, , , s) }',
    "resize, smaller": "(float[1,3,12,5] x) => (float[n] y) { s = Constant<value_ints=[1,3,4,5]>() "
    'y = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(x, , , s) }',
    "depth to space": "(float[1,8,6,5] x) => (float[n] y) { y = DepthToSpace<blocksize=2>(x) }",
    "space to depth": "(float[1,2,8,6] x) => (float[n] y) { y = SpaceToDepth<blocksize=2>(x) }",
    "expand": "(float[1,1,6,1] x) => (float[n] y) { s = Constant<value_ints=[1,3,6,5]>() y = Expand(x, s) }",
    "squeeze": "(float[1,1,6,5] x) => (float[n] y) { a = Constant<value_ints=[1]>() y = Squeeze(x, a) }",
    "attention up to its softmax": "(float[1,6,4] x, float[4,4] wq) => (float[n] y) "
    "{ q = MatMul(x, wq) y = Softmax<axis=-1>(q) }",
    "residual": "(float[1,3,12,9] x, float[3,3,3,3] w, float[3,3,3,3] wt) => (float[n] y) "
    "{ a = Conv<pads=[1,1,1,1]>(x, w) b = Relu(a) c = Conv<pads=[1,1,1,1]>(b, wt) d = Add(c, x) y = Relu(d) }",
    "u-net": "(float[1,3,12,8] x, float[4,3,3,3] w, float[4,3,2,2] wu, float[2,6,3,3] we) => (float[n] y) "
    "{ a = Conv<pads=[1,1,1,1], strides=[2,2]>(x, w) b = Relu(a) u = ConvTranspose<strides=[2,2]>(b, wu) "
    "c = Concat<axis=1>(x, u) y = Conv<pads=[1,1,1,1]>(c, we) }",
}
GLOBAL = {
    "softmax over the only axis": "(float[6] x) => (float[n] y) { y = Softmax<axis=0>(x) }",
    "sum": "(float[1,3,6,5] x) => (float[n] y) { y = ReduceSum(x) }",
    "flat": "(float[1,3,6,5] x, float[90,4] w) => (float[n] y) { a = Flatten(x) y = MatMul(a, w) }",
    "mean that counts what ceil adds": "(float[1,1,14,1] x) => (float[n] y) "
    "{ y = AveragePool<kernel_shape=[3,1], strides=[2,1], ceil_mode=1, count_include_pad=1>(x) }",
    "transposed, gaps": "(float[1,1,7,1] x, float[1,4,2,2] w) => (float[n] y) "
    "{ y = ConvTranspose<strides=[3,3]>(x, w) }",
    "control flow": "(float[6] x) => (float[n] y) { c = Constant<value_ints=[1]>() b = Cast<to=9>(c) y = If (b) "
    "<then_branch = t () => (float[6] r) { r = Relu(x) }, else_branch = e () => (float[6] r) { r = Neg(x) }> }",
}


def whole(text: str, opset: int = 18, seed: int = 0) -> Whole:
    return Whole(f"{HEAD.format(opset=opset)}g {text}", seed)


@pytest.mark.parametrize("name", LOCAL)
def test_each_operator_by_every_two_and_by_single_rows(name: str) -> None:
    case = whole(LOCAL[name])
    assert all(node.is_local for node in case.graph.nodes), "nothing is needed whole"
    size = case.graph.size("y")
    everything = range(len(case.graph.nodes))
    for bounds in ([0, size], list(range(size + 1)), *([0, at, size] for at in range(1, size))):
        joined = case.joined({"y": bounds}, everything)["y"]
        np.testing.assert_allclose(joined, case.values["y"], rtol=1e-5, atol=1e-5, err_msg=str(bounds))


@pytest.mark.parametrize("name", GLOBAL)
def test_what_needs_everything_is_found(name: str) -> None:
    case = whole(GLOBAL[name])
    assert not all(node.is_local for node in case.graph.nodes)
    assert "y" not in case.graph.axes or any(node.rows is None for node in case.graph.nodes)


def test_keys_and_values_are_needed_whole_and_queries_by_rows() -> None:
    case = whole(
        "(float[1,6,4] x, float[4,4] wq, float[4,4] wk) => (float[n] y) { q = MatMul(x, wq) k = MatMul(x, wk) "
        "t = Transpose<perm=[0,2,1]>(k) s = MatMul(q, t) p = Softmax<axis=-1>(s) y = MatMul(p, k) }"
    )
    kinds = {node.proto.output[0]: node.is_local for node in case.graph.nodes}
    assert kinds == {"q": True, "k": True, "t": True, "s": False, "p": True, "y": False}
    joined = case.joined({"y": [0, 1, 4, 6]}, range(len(case.graph.nodes)))["y"]
    np.testing.assert_allclose(joined, case.values["y"], rtol=1e-5, atol=1e-6)


def test_rows_begin_anew_behind_what_needs_everything() -> None:
    case = whole(
        "(float[1,6,4] x, float[6,4] w) => (float[n] y) { m = Constant<value_ints=[1]>() a = ReduceSum(x, m) "
        "b = Add(a, w) y = Relu(b) }"
    )
    assert [node.rows is None for node in case.graph.nodes] == [False, False, False]
    assert case.graph.axes["y"] == 2, "the sum is over rows, so that columns are rows of another kind"


@pytest.mark.parametrize("opset", [9, 13])
def test_older_operators_have_their_lists_as_attributes(opset: int) -> None:
    lists = "b = Constant<value_ints=[1]>() e = Constant<value_ints=[3]>() a = Constant<value_ints=[1]>()"
    kind = f"{lists} s = Slice(x, b, e, a)" if opset > 9 else "s = Slice<starts=[1], ends=[3], axes=[1]>(x)"
    case = whole(f"(float[1,4,9,5] x) => (float[n] y) {{ {kind} y = Softmax<axis=3>(s) }}", opset)
    assert case.graph.axes["y"] == 1
    joined = case.joined({"y": [0, 1, 2]}, range(2))["y"]
    np.testing.assert_allclose(joined, case.values["y"], rtol=1e-6)


STEPS = (
    "{o} = Relu({i})",
    "{o} = Conv<pads=[1,1,1,1]>({i}, w3)",
    "{o} = Conv<pads=[0,2,2,2], dilations=[1,2]>({i}, w3)",
    "{o} = Conv<pads=[3,3,3,3], group=4>({i}, w7)",
    '{o} = Conv<auto_pad="SAME_LOWER">({i}, w7g)',
    "{o} = MaxPool<kernel_shape=[3,3], pads=[1,1,1,1]>({i})",
    "{o} = AveragePool<kernel_shape=[5,3], pads=[2,1,2,1], count_include_pad=1>({i})",
    "{o} = Add({i}, {other})",
    "{o}c = Concat<axis=1>({i}, {other}) {o} = Conv(\n{o}c, w1)",
    "{o} = BatchNormalization({i}, w4, w4, w4, w4v)",
    "{o}d = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>({i}) {o} = ConvTranspose<strides=[1,1]>({o}d, w2)",
)
WEIGHTS = (
    "float[4,4,3,3] w3, float[4,1,7,7] w7, float[4,4,7,3] w7g, float[4,8,1,1] w1, float[4] w4, float[4] w4s, "
    "float[4,4,2,2] w2"
)


@given(data=st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_random_graphs_ranges_and_cuts(data: st.DataObject) -> None:
    """Chains with branches, of any size and depth, from a cut on, by any rows."""
    height, width = data.draw(st.integers(5, 24), "height"), data.draw(st.integers(5, 12), "width")
    steps = data.draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=7), "steps")
    names, lines, size = ["x"], ["w4v = Mul(w4s, w4s)"], {"x": (height, width)}
    for number, step in enumerate(steps):
        source, made = names[-1], f"t{number}"
        same = [name for name in names if size[name] == size[source]]
        lines.append(step.format(i=source, o=made, other=data.draw(st.sampled_from(same), "other")))
        size[made] = _after(step, size[source])
        names.append(made)
    text = f"(float[1,4,{height},{width}] x, {WEIGHTS}) => (float[n] {names[-1]}) {{ {' '.join(lines)} }}"
    case = whole(text, seed=data.draw(st.integers(0, 9), "seed"))
    (output,) = case.outputs
    rows, count = case.graph.size(output), len(case.graph.nodes)
    inner = data.draw(st.lists(st.integers(1, max(rows - 1, 1)), max_size=4, unique=True), "bounds")
    bounds = sorted({0, *(at for at in inner if at < rows), rows})
    begin = data.draw(st.integers(0, count - 1), "first node")
    joined = case.joined({output: bounds}, range(begin, count))[output]
    np.testing.assert_allclose(joined, case.values[output], rtol=1e-4, atol=1e-3 * np.abs(case.values[output]).max())


def _after(step: str, size: tuple[int, int]) -> tuple[int, int]:
    if "d = MaxPool" in step:
        return (size[0] + 1) // 2 + 1, (size[1] + 1) // 2 + 1
    return size


@given(
    st.integers(1, 4), st.integers(1, 4), st.integers(-9, 9), st.integers(0, 9), st.integers(0, 20), st.integers(1, 9)
)
@settings(derandomize=True)
def test_a_window_of_rows_is_the_hull_of_the_windows_of_each(
    step: int, per: int, first: int, reach: int, start: int, count: int
) -> None:
    window = Window(step, per, first, first + reach)
    single = list(itertools.chain.from_iterable(window.rows(row, row + 1) for row in range(start, start + count)))
    assert window.rows(start, start + count) == (min(single), max(single))

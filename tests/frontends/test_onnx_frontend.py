"""The ONNX frontend on small real models: every construct is cut everywhere, and computes what it did uncut."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import control_models
import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitload.base.errors import ModelError
from splitload.build.equality import check_graph, run_split
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.stages import StageWriter
from splitload.plan.graph import GraphKind, ModelGraph
from splitload.runtime.answers import identical
from splitload.runtime.session import open_session

KINDS: list[GraphKind] = ["native", "portable"]


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., ModelGraph]:
    """Return a function that writes a model, and reads it as a graph."""

    def read(model: onnx.ModelProto, kind: GraphKind = "portable", **options: Any) -> ModelGraph:
        source = Source.open(models.save(model, tmp_path), "model")
        return load_graph(source, kind, tmp_path / "cache", **options)

    return read


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", models.CONSTRUCTS)
def test_every_cut_of_every_construct_is_exact(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, kind: GraphKind
) -> None:
    model, feeds = models.CONSTRUCTS[name]()
    source = Source.open(models.save(model, tmp_path), name)
    graph = load_graph(source, kind, tmp_path / "cache", feeds=feeds)
    outcome = check_graph(source, graph, feeds=feeds)
    assert outcome.num_cuts >= 1
    assert outcome.different == ()
    assert outcome.original_error <= 1e-4
    assert outcome.passed
    assert graph.outputs == tuple(value.name for value in model.graph.output)
    assert capfd.readouterr() == ("", "")  # onnxruntime must not talk to the user


@pytest.mark.parametrize("opset", range(7, 29))
def test_every_opset_the_runtime_knows(tmp_path: Path, opset: int) -> None:
    model = models.text(
        """g (float[2,4] x) => (float[2,4] y) {
        a = Relu(x)
        b = Gemm(a, w, c)
        d = MatMul(b, w)
        e = Mul(d, a)
        y = Softmax(e)
    }""",
        opset=opset,
        ir=3 if opset < 9 else 8,
        w=models.floats(4, 4),
        c=models.floats(4),
    )
    if opset < 9:  # weights had to be inputs then
        for tensor in model.graph.initializer:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, 1, tensor.dims))
    source = Source.open(models.save(model, tmp_path), "model")
    try:
        ort.InferenceSession(str(source.path), providers=["CPUExecutionProvider"])
    except Exception:  # an older runtime: it must be the one that says no
        assert opset > 21
        with pytest.raises(ModelError, match=r"onnxruntime .* cannot load"):
            load_graph(source, "portable", tmp_path)
        return
    graph = load_graph(source, "portable", tmp_path)
    outcome = check_graph(source, graph)
    assert outcome.passed
    assert outcome.num_cuts >= 3
    assert graph.inputs == ("x",)


def body_of(graph: ModelGraph, op_type: str) -> int:
    (index,) = (index for index, node in enumerate(graph.nodes) if node.op_type == op_type)
    return index


def test_what_bodies_take_from_outside_crosses_the_cut(read: Callable[..., ModelGraph]) -> None:
    graph = read(control_models.conditional())
    before = body_of(graph, "If")
    reads = set(graph.nodes[before].inputs)
    made_before = {name for node in graph.nodes[:before] for name in node.outputs}
    assert reads >= {"a", "b", "go"}  # b is read by a body within the body only
    assert set(graph.boundary(before)) == {name for name in made_before if name in reads or name == "b"}
    loop = read(control_models.loop())
    assert {"scale", "n"} <= set(loop.nodes[body_of(loop, "Loop")].inputs)
    assert "shift" in loop.nodes[body_of(loop, "Loop")].weights


def test_weights_inside_a_body_count(read: Callable[..., ModelGraph]) -> None:
    graph = read(control_models.scan())
    node = body_of(graph, "Scan")
    assert graph.segment_weights_bytes(node, node + 1) >= 9 * 4


def test_a_construct_alone_is_one_stage(read: Callable[..., ModelGraph]) -> None:
    graph = read(
        models.text("""g (float[3] x, bool c) => (float[3] y) { y = If (c) <
            then_branch = t () => (float[3] p) { r = Tanh(x)  p = Neg(r) },
            else_branch = e () => (float[3] q) { q = Neg(x) }
        > }""")
    )
    assert graph.cut_points == ()
    assert len(graph.blocks) == 1


def test_sequences_are_never_cut_through(read: Callable[..., ModelGraph]) -> None:
    graph = read(control_models.sequences())
    split = body_of(graph, "SplitToSequence")
    last_read = body_of(graph, "SequenceAt")
    assert [cut.position for cut in graph.cut_points if split < cut.position <= last_read] == []
    assert graph.tensors["parts"].type == "seq(tensor(float))"
    assert len(graph.cut_points) >= 2


def test_constants_behind_chains_are_repeated_not_carried(read: Callable[..., ModelGraph]) -> None:
    for kind in KINDS:
        graph = read(models.shared(), kind)
        assert all(len(cut.boundary) == 1 for cut in graph.cut_points)
        assert not {node.op_type for node in graph.nodes} & {"Identity", "Constant"}


def test_constant_makers_that_the_runtime_leaves_are_repeated_in_each_stage(tmp_path: Path) -> None:
    # sequences of constants are not folded
    model = models.text(
        """g (float[2,3] x) => (float[2,3] y) {
        s = SequenceConstruct(w, v)
        one = Constant <value = int64 {1}> ()
        a = SequenceAt(s, one)
        b = Add(x, a)
        c = Tanh(b)
        y = Mul(c, a)
    }""",
        w=models.floats(2, 3),
        v=models.floats(2, 3),
    )
    source = Source.open(models.save(model, tmp_path), "model")
    graph = load_graph(source, "portable", tmp_path)
    assert [node.op_type for node in graph.nodes] == ["Add", "Tanh", "Mul"]
    assert all({"w", "v"} <= set(graph.nodes[index].weights) for index in (0, 2))
    assert check_graph(source, graph).passed


def test_nodes_that_no_output_needs_make_no_stage(tmp_path: Path) -> None:
    model = models.text("""g (float[2,3] x) => (float[2,3] y) {
        a = Tanh(x)
        unused = Exp(a)
        y = Neg(a)
        more = Log(y)
        last = Abs(more)
    }""")
    source = Source.open(models.save(model, tmp_path), "model")
    for kind in KINDS:
        graph = load_graph(source, kind, tmp_path)
        assert [node.op_type for node in graph.nodes] == ["Tanh", "Neg"]
        assert check_graph(source, graph).passed


def test_stages_agree_on_random_numbers(read: Callable[..., ModelGraph]) -> None:
    graph = read(models.random_numbers())
    assert len(graph.cut_points) == 5
    feeds = {"x": models.floats(2, 3)}
    writer = StageWriter(graph, copy_weights=False)
    for cut in graph.cut_points:
        (y,) = run_split(writer, graph, [cut.position], feeds)
        np.testing.assert_allclose(y, feeds["x"], atol=1e-5)


def test_sizes_and_types_are_those_of_the_run(read: Callable[..., ModelGraph]) -> None:
    graph = read(models.dynamic(), feeds={"x": models.floats(3, 5, 4)})
    assert graph.tensors["flat"].nbytes == 3 * 5 * 4 * 4
    assert graph.tensors["x"].shape == ("N", "S", 4)
    narrow = read(models.narrow())
    sizes = {tensor.type: tensor.nbytes for tensor in narrow.tensors.values()}
    assert sizes["tensor(bfloat16)"] == 12
    assert sizes["tensor(float8e4m3fn)"] == 6
    strings = read(models.widths())
    assert strings.tensors["s"].nbytes is None
    scalar = read(models.small(), feeds={"x": models.floats(0, 3), "s": np.array(2, np.float32)})
    assert (scalar.tensors["t"].nbytes, scalar.tensors["y"].nbytes) == (4, 0)


def test_sizes_follow_declared_shapes_where_made_up_inputs_do_not_suit(read: Callable[..., ModelGraph]) -> None:
    graph = read(
        models.text(
            """g (float[2,3] x, int64[1] to) => (float[n] y) {
        a = Tanh(x)
        b = Reshape(a, to)
        y = Neg(b)
    }"""
        )
    )  # the made-up target shape is [1], of six elements
    assert graph.tensors["a"].nbytes == 24
    assert graph.tensors["b"].nbytes is None
    assert len(graph.cut_points) == 2


def test_bfloat16_inputs_can_be_made_up(tmp_path: Path) -> None:
    model = models.text("g (bfloat16[3] x) => (float[3] y) { a = Cast <to=1> (x)\n y = Tanh(a) }")
    source = Source.open(models.save(model, tmp_path), "model")
    graph = load_graph(source, "portable", tmp_path)
    assert check_graph(source, graph).passed
    assert graph.tensors["x"].nbytes == 6


@pytest.mark.parametrize("level", ["ORT_ENABLE_ALL", "ORT_ENABLE_EXTENDED"])
def test_models_that_onnxruntime_optimised_before(tmp_path: Path, level: str) -> None:
    model, feeds = models.CONSTRUCTS["branches and long skips"]()
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "before.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = Source.open(tmp_path / "before.onnx", "before")
    for kind in KINDS:
        assert check_graph(source, load_graph(source, kind, tmp_path, feeds=feeds), feeds=feeds).passed


def test_where_optimising_fails_the_model_is_taken_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from splitload.graphs import optimize as optimizing

    levels = []
    optimize = optimizing.optimize

    def fail_unless_disabled(path: Path, folder: Path, level: Any, runtime: Any) -> None:
        levels.append(level)
        if level != "none":
            raise RuntimeError("Attempt to replace the existing tensor")
        optimize(path, folder, level, runtime)

    monkeypatch.setattr(optimizing, "optimize", fail_unless_disabled)
    source = Source.open(models.save(models.several(), tmp_path), "model")
    assert check_graph(source, load_graph(source, "native", tmp_path / "cache")).passed
    tried = len(levels)
    assert tried == 2 + 3  # the portable graph comes first, as the native one must share its weights
    load_graph(source, "native", tmp_path / "cache")
    assert len(levels) == tried  # from the cache


def test_a_chain_of_2000_nodes(read: Callable[..., ModelGraph]) -> None:
    graph = read(models.chain(2000))
    assert len(graph.cut_points) == 1999
    assert 32 <= len(graph.blocks) <= 64
    feeds = {"x": models.floats(1, 4)}
    expected = open_session(graph.path).run(None, feeds)
    split = run_split(StageWriter(graph, copy_weights=False), graph, [block.end for block in graph.blocks[:-1]], feeds)
    assert all(map(identical, split, expected))


def external(folder: Path, location: str = "weights.bin") -> Path:
    model, _ = models.CONSTRUCTS["branches and long skips"]()
    path = folder / "external.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location=location, size_threshold=100)
    return path


def test_external_data(tmp_path: Path) -> None:
    source = Source.open(external(tmp_path), "external")
    assert source.size_bytes == source.path.stat().st_size + (tmp_path / "weights.bin").stat().st_size
    assert check_graph(source, load_graph(source, "native", tmp_path)).passed
    before = source.sha256
    data = bytearray((tmp_path / "weights.bin").read_bytes())
    data[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(data)
    assert Source.open(source.path, "external").sha256 != before


@pytest.mark.slow
def test_external_data_beyond_2_gb(tmp_path: Path) -> None:
    """A real file of 2.4 GB, full of holes until the runtime writes its own."""
    model = models.text(
        """g (int64[2] at, float[1,4] x) => (float[2,4] y) {
        a = Gather(table, at)
        b = Tanh(x)
        y = Add(a, b)
    }"""
    )
    rows = 150_000_000
    table = model.graph.initializer.add(name="table", data_type=1, dims=[rows, 4], data_location=1)
    table.external_data.add(key="location", value="table.bin")
    with (tmp_path / "table.bin").open("wb") as file:
        file.truncate(rows * 16)
        file.seek((rows - 1) * 16)
        file.write(np.arange(4, dtype=np.float32).tobytes())
    source = Source.open(models.save(model, tmp_path), "large")
    assert source.size_bytes > 2 << 30
    graph = load_graph(source, "portable", tmp_path / "cache")
    feeds = {"at": np.array([0, rows - 1]), "x": np.zeros((1, 4), np.float32)}
    (y,) = run_split(StageWriter(graph), graph, [cut.position for cut in graph.cut_points], feeds)
    np.testing.assert_array_equal(y, [[0, 0, 0, 0], [0, 1, 2, 3]])


def test_a_model_word_opens_a_file(tmp_path: Path) -> None:
    path = models.save(models.several(), tmp_path, "small.onnx")
    assert open_source(str(path), tmp_path) == Source.open(path, "small")


UNARY = ["Tanh", "Sigmoid", "Relu", "Neg", "Abs", "Identity", "Softplus"]
BINARY = ["Add", "Mul", "Sub", "Max"]


@st.composite
def dags(draw: st.DrawFn) -> tuple[onnx.ModelProto, list[float]]:
    """A small random model of several inputs and outputs, and where to cut it as shares of its cut points."""
    values, lines, outputs = ["x0", "x1"], [], []
    for index in range(draw(st.integers(2, 12))):
        pick = st.sampled_from(values[-5:] + values[:2] + ["w0", "w1"])
        kind = draw(st.integers(0, 3))
        name = f"t{index}"
        if kind == 0:
            lines.append(f"{name} = {draw(st.sampled_from(UNARY))}({draw(pick)})")
        elif kind == 1:
            lines.append(f"{name} = {draw(st.sampled_from(BINARY))}({draw(pick)}, {draw(pick)})")
        elif kind == 2:
            lines.append(f"{name} = MatMul({draw(pick)}, {draw(st.sampled_from(['w0', 'w1']))})")
        else:
            lines.append(f"{name}, {name}b = Split <axis=0, num_outputs=2> ({draw(pick)})")
            lines.append(f"{name}c = Concat <axis=0> ({name}b, {name})")
            name = f"{name}c"
        values.append(name)
        if draw(st.integers(0, 4)) == 0:
            outputs.append(name)
    outputs = list(dict.fromkeys([*outputs, values[-1]]))
    lines.append(f"last = Add({values[-1]}, x0)")
    outputs.append("last")
    declared = ", ".join(f"float[4,4] {name}" for name in outputs)
    rng = np.random.default_rng(len(lines))
    arrays = {name: rng.standard_normal((4, 4)).astype(np.float32) for name in ("w0", "w1")}
    body = "\n".join(lines)
    model = models.text(f"g (float[4,4] x0, float[4,4] x1) => ({declared}) {{ {body} }}", **arrays)
    return model, draw(st.lists(st.floats(0, 0.999), max_size=5))


@given(dags(), st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_partition_of_any_small_dag_composes_to_the_whole(
    tmp_path: Path, drawn: tuple[onnx.ModelProto, list[float]], kind: GraphKind
) -> None:
    model, shares = drawn
    source = Source.open(models.save(model, tmp_path), "dag")
    graph = load_graph(source, kind, tmp_path / "cache")
    cuts = [cut.position for cut in graph.cut_points]
    positions = sorted({cuts[int(share * len(cuts))] for share in shares if cuts})
    feeds = {"x0": models.floats(4, 4), "x1": models.floats(4, 4)}
    expected = open_session(graph.path).run(list(graph.outputs), feeds)
    got = run_split(StageWriter(graph, copy_weights=False), graph, positions, feeds)
    assert all(map(identical, got, expected))
    for start, end in pairwise([0, *positions, len(graph.nodes)]):
        made = {name for node in graph.nodes[start:end] for name in node.outputs}
        assert set(graph.boundary(end)) <= made | set(graph.boundary(start))

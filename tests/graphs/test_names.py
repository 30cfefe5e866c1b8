"""onnxruntime optimises again what it has optimised before, though it names new weights like those it made then."""

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import floats

from splitload.build.assemble import VariantPlan, build_bundle
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs import layout
from splitload.graphs.layout import channel_block
from splitload.graphs.names import NAME_CLASH, rename_weights
from splitload.graphs.optimize import optimize
from splitload.plan.partition import Partition
from splitload.runtime.session import open_session

LEVELS = ort.GraphOptimizationLevel


def attention() -> onnx.ModelProto:
    """A layer of BERT with fixed sizes: MatMul + Add becomes Gemm early behind it, and late in front of it."""
    return models.text(
        """g (float[1,32,64] x) => (float[1,32,64] y) {
            ln = LayerNormalization <axis=-1> (x, one, zero)
            q0 = MatMul(ln, wq)
            q1 = Add(q0, b)
            q = Tanh(q1)
            k0 = MatMul(ln, wk)
            k1 = Add(k0, b)
            k = Sigmoid(k1)
            v0 = MatMul(ln, wv)
            v1 = Add(v0, b)
            qk = Mul(q, k)
            a = Mul(qk, v1)
            p0 = MatMul(a, wp)
            p1 = Add(p0, b)
            r = Add(p1, ln)
            ln2 = LayerNormalization <axis=-1> (r, one, zero)
            f0 = MatMul(ln2, wf)
            f1 = Add(f0, b)
            y = Relu(f1)
        }""",
        one=np.ones(64, np.float32),
        zero=np.zeros(64, np.float32),
        b=floats(64),
        **{f"w{each}": floats(64, 64) / 8 for each in "qkvpf"},
    )


@pytest.mark.skipif(channel_block() is None, reason="this processor has no blocked layout to restore")
def test_a_portable_stage_that_is_optimised_again_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "is_as_fast", lambda *_: True)  # it is measured, and so small a model is a close call
    path = models.save(attention(), tmp_path)
    source = Source.open(path, "attention")
    graphs = [load_graph(source, kind, tmp_path / "cache") for kind in ("native", "portable")]
    plans = [VariantPlan(graph, Partition.of(len(graph.blocks), ()), 2) for graph in graphs]
    manifest = build_bundle(tmp_path / "b.splitload", plans, device="host")
    (stage,) = manifest.variants[1].stages
    assert stage.reoptimize
    x = floats(1, 32, 64)
    (expected,) = ort.InferenceSession(path).run(None, {"x": x})
    (actual,) = open_session(tmp_path / "b.splitload" / stage.graph.name, optimize=True).run(None, {"x": x})
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"])
def test_a_model_that_was_optimised_before_is_optimised_again(tmp_path, level):
    options = ort.SessionOptions()
    options.graph_optimization_level = getattr(LEVELS, level)
    options.log_severity_level = 4
    options.optimized_model_filepath = str(tmp_path / "once.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "once.bin")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    ort.InferenceSession(models.save(attention(), tmp_path), options)
    (tmp_path / "twice").mkdir()
    optimize(tmp_path / "once.onnx", tmp_path / "twice", "all")
    x = floats(1, 32, 64)
    first, second = (open_session(tmp_path / name).run(None, {"x": x})[0] for name in ("once.onnx", "twice/model.onnx"))
    np.testing.assert_allclose(first, second, rtol=1e-5, atol=1e-5)


def clashing() -> onnx.ModelProto:
    """A model with weights named as optimisers name theirs, one of them read in a body beside its own."""
    return models.text(
        """g (float[2,3,4] x, bool c) => (float[2,3,4] y) {
            flat = Reshape(x, gemm_input_shape)
            t = Tanh(flat)
            back = Reshape(t, gemm_output_shape)
            z = If <then_branch = a () => (float[2,3,4] ya) { ya = Add(back, read) },
                    else_branch = b () => (float[2,3,4] yb)
                        <float[4] own = {5, 6, 7, 8}> { yb = Add(back, own) }> (c)
            m = MatMul(z, w)
            y = Add(m, bias)
        }""",
        gemm_input_shape=np.array([6, 4]),
        gemm_output_shape=np.array([2, 3, 4]),
        read=floats(4),
        w=floats(4, 4),
        bias=floats(4),
    )


def test_names_are_changed_in_all_that_reads_them(tmp_path):
    model = clashing()
    path = models.save(model, tmp_path)
    with pytest.raises(Exception, match=NAME_CLASH):
        ort.InferenceSession(path, providers=["CPUExecutionProvider"], enable_fallback=0)
    rename_weights(model.graph)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for condition in (True, False):
        feeds = {"x": floats(2, 3, 4), "c": np.array(condition)}
        (expected,) = open_session(path).run(None, feeds)
        np.testing.assert_allclose(session.run(None, feeds)[0], expected, rtol=1e-5, atol=1e-5)


def test_defaults_of_inputs_and_outputs_that_are_weights_keep_their_names():
    model = models.text("g (float[2] x, float[2] d) => (float[2] y, float[2] w) { y = Add(x, d) }")
    model.graph.initializer.extend(onnx.numpy_helper.from_array(floats(2), name) for name in ("d", "w", "w/1"))
    rename_weights(model.graph)
    assert [tensor.name for tensor in model.graph.initializer] == ["d", "w", "w/1/2"]
    assert list(model.graph.node[0].input) == ["x", "d"]

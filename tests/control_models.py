"""Small ONNX models with control flow, local functions, sequences, optionals and maps; importing it adds them."""

from __future__ import annotations

import numpy as np
import onnx
from models import construct, floats, text
from onnx import TensorProto, helper, numpy_helper, parser


@construct("If that captures outer tensors, nested", {"x": floats(2, 3), "go": np.array(True)})
def conditional() -> onnx.ModelProto:
    return text(
        """g (float[2,3] x, bool go) => (float[2,3] y) {
        a = Tanh(x)
        b = Sigmoid(x)
        no = Not(go)
        c = If (go) <
            then_branch = t () => (float[2,3] p) { q = Add(a, big)  p = If (no) <
                then_branch = tt () => (float[2,3] r) { r = Mul(q, b) },
                else_branch = te () => (float[2,3] s) { s = Sub(b, q) }
            > },
            else_branch = e () => (float[2,3] z) { z = Neg(a) }
        >
        d = Relu(c)
        y = Add(d, b)
    }""",
        big=floats(2, 3),
    )


@construct("Loop over outer tensors", {"x": floats(2, 3), "n": np.array(3, np.int64)})
def loop() -> onnx.ModelProto:
    return text(
        """g (float[2,3] x, int64 n) => (float[2,3] y, float[k,2,3] each) {
        scale = Tanh(x)
        start = Neg(x)
        more = Constant <value = bool {1}> ()
        mid, each = Loop (n, more, start) <
            body = b (int64 i, bool c, float[2,3] v) => (bool c2, float[2,3] v2, float[2,3] out) {
                c2 = Identity(c)
                v1 = Mul(v, scale)
                v2 = Add(v1, shift)
                out = Identity(v2)
            }
        >
        z = Relu(mid)
        y = Add(z, scale)
    }""",
        shift=floats(2, 3),
    )


@construct("Scan with weights of its own", {"x": floats(4, 3)})
def scan() -> onnx.ModelProto:
    model = text(
        """g (float[4,3] x) => (float[3] total, float[4,3] sums, float[4,3] y) {
        a = Tanh(x)
        gain = ReduceMean <keepdims=0> (a)
        total, sums = Scan <num_scan_inputs = 1, body = b (float[3] s, float[3] v) => (float[3] s2, float[3] o) {
            w = MatMul(v, inner)
            g1 = Mul(w, gain)
            s2 = Add(s, g1)
            o = Identity(s2)
        }> (zero, a)
        y = Sub(sums, a)
    }""",
        zero=np.zeros(3, np.float32),
    )
    node = next(node for node in model.graph.node if node.op_type == "Scan")
    body = next(attribute.g for attribute in node.attribute if attribute.name == "body")
    body.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32) * 0.5, "inner"))
    return model


@construct("local functions", {"x": floats(2, 3)})
def functions() -> onnx.ModelProto:
    return parser.parse_model("""<ir_version: 8, opset_import: ["": 18, "local": 1]>
    g (float[2,3] x) => (float[2,3] y) {
        a = local.outer(x)
        b = local.inner(a)
        c, d = local.outer2 <k = 2.0> (b)
        y = Add(c, d)
    }
    <domain: "local", opset_import: ["": 18]> inner (x) => (y) { t = Tanh(x)  y = Add(t, x) }
    <domain: "local", opset_import: ["": 18, "local": 1]> outer (x) => (y) { t = local.inner(x)  y = local.inner(t) }
    <domain: "local", opset_import: ["": 18]> outer2 <k> (x) => (y, z) {
        s = Constant <value_float: float = @k> ()
        y = Mul(x, s)
        z = Neg(y)
    }""")


@construct("sequences inside", {"x": floats(4, 3)})
def sequences() -> onnx.ModelProto:
    return text("""g (float[4,3] x) => (float[4,3] y) {
        a = Tanh(x)
        parts = SplitToSequence <axis=0, keepdims=1> (a)
        joined = ConcatFromSequence <axis=0> (parts)
        b = Relu(joined)
        one = Constant <value = int64 {1}> ()
        second = SequenceAt(parts, one)
        c = Add(b, second)
        y = Neg(c)
    }""")


@construct("sequences at the ends", {"parts": [floats(2, 3), floats(1, 3)]})
def sequence_ends() -> onnx.ModelProto:
    return text("""g (seq(float[n, 3]) parts) => (seq(float[m, 3]) out, float[k, 3] y) {
        a = ConcatFromSequence <axis=0> (parts)
        b = Tanh(a)
        y = Relu(b)
        out = SplitToSequence <axis=0, keepdims=1> (y)
    }""")


@construct("optional at the ends", {"x": floats(2, 3)})
def optional_ends() -> onnx.ModelProto:
    return text("""g (float[2,3] x, optional(float[2,3]) o) => (float[2,3] y) {
        a = Tanh(x)
        has = OptionalHasElement(o)
        b = If (has) <
            then_branch = t () => (float[2,3] p) { p = OptionalGetElement(o) },
            else_branch = e () => (float[2,3] q) { q = Neg(a) }
        >
        y = Relu(b)
    }""")


@construct("a map as output", {"x": floats(2, 3)})
def map_output() -> onnx.ModelProto:
    model = text("""g (float[2,3] x) => (float[2,3] y) {
        a = Tanh(x)
        y = Softmax(a)
    }""")
    zipped = helper.make_node("ZipMap", ["y"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[0, 1, 2])
    model.graph.node.append(zipped)
    kind = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(kind)))
    return model


@construct("a Loop inside an If that reads outer tensors", {"x": floats(2, 3), "go": np.array(True), "n": np.array(3)})
def loop_in_if() -> onnx.ModelProto:
    return text("""g (float[2,3] x, bool go, int64 n) => (float[2,3] y) {
        a = Tanh(x)
        b = Sigmoid(x)
        e = Exp(x)
        t = Constant <value = bool {1}> ()
        c = If (go) <
            then_branch = yes () => (float[2,3] p) { p = Loop (n, t, a) <
                body = b1 (int64 i, bool k, float[2,3] v) => (bool k2, float[2,3] v2) {
                    k2 = Identity(k)
                    u = Mul(v, b)
                    v2 = If (k) <
                        then_branch = q () => (float[2,3] r) { r = Add(u, e) },
                        else_branch = q2 () => (float[2,3] s) { s = Sub(u, e) }
                    >
                }
            > },
            else_branch = no () => (float[2,3] z) { z = Identity(a) }
        >
        y = Relu(c)
    }""")


@construct("optionals made inside and given out", {"x": floats(2, 3)})
def optional_inside() -> onnx.ModelProto:
    return text("""g (float[2,3] x) => (optional(float[2,3]) o, float[2,3] y) {
        a = Tanh(x)
        b = Exp(a)
        o = Optional(b)
        c = OptionalGetElement(o)
        y = Add(c, a)
    }""")

#!/usr/bin/env bash
# onnx infers another shape for ConvTranspose with auto_pad=SAME_UPPER and output_padding than is computed.
#
# Versions:  onnx 1.23.0, onnxruntime 1.31.1, Python 3.11, Linux x86-64.
# Input:     ConvTranspose (opset 17), input 1x1x5x5, kernel 3x3, strides 2, auto_pad SAME_UPPER or SAME_LOWER,
#            output_padding 1; onnx's checker takes it.
# Expected:  one shape. By the operator's text auto_pad SAME makes output = input * stride, 10x10 here.
# Seen:      infer_shapes(strict_mode=True) says 1x1x11x11; onnxruntime and onnx's own reference evaluator compute
#            1x1x10x10, and onnxruntime warns that its inferred shape "does not match actual shape". Without output_padding
#            all three say 10x10.
# So:        whoever needs the size of such a tensor takes it from a run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.0 onnxruntime==1.31.1
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

options = ort.SessionOptions()
options.log_severity_level = 3  # it warns of the shape
x = np.ones((1, 1, 5, 5), np.float32)
kernel = numpy_helper.from_array(np.ones((1, 1, 3, 3), np.float32), "w")


def shapes(auto_pad, output_padding):
    """Return what onnx infers, what onnxruntime computes, and what onnx's reference evaluator computes."""
    node = helper.make_node(
        "ConvTranspose", ["x", "w"], ["y"], strides=[2, 2], auto_pad=auto_pad, output_padding=[output_padding] * 2
    )
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    wanted = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", "c", "h", "w"])
    model = helper.make_model(
        helper.make_graph([node], "up", [given], [wanted], [kernel]),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.output[0].type.tensor_type.shape.dim
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (computed,), (evaluated,) = session.run(None, {"x": x}), ReferenceEvaluator(model).run(None, {"x": x})
    return [tuple(size.dim_value for size in inferred), computed.shape, evaluated.shape]


as_described = True
for auto_pad in ("SAME_UPPER", "SAME_LOWER"):
    for output_padding in (0, 1):
        inferred, computed, evaluated = shapes(auto_pad, output_padding)
        print(f"{auto_pad}, output_padding {output_padding}: inferred {inferred}, onnxruntime {computed}, onnx {evaluated}")
        size = 10 + output_padding
        as_described &= inferred == (1, 1, size, size) and computed == evaluated == (1, 1, 10, 10)
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON

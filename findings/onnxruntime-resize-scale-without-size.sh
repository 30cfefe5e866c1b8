#!/usr/bin/env bash
# onnxruntime's Resize copies a row or resamples it with the same scale, by whether another axis changes its size.
#
# Versions:  onnx 1.23.0, onnxruntime 1.32.0, numpy 2.3.5, Python 3.11, Linux x86-64.
# Input:     Resize (opset 18, mode linear, half_pixel) of 1x1x4x11 with scale 1.05 for the last axis: 11 columns stay 11, as
#            the operator's text rounds 11.55 down.
# Expected:  the columns of the result depend on the last axis and its scale alone, as the axes of a linear Resize are
#            independent.
# Seen:      with scales 1, 1, 1, 1.05 the result is the input, bit by bit. With 1, 1, 2, 1.05 the columns are resampled: they
#            differ from the input's, and are those that onnx's reference evaluator computes in both cases.
# So:        a Resize that is done axis by axis, or on a part of an image, may answer otherwise than the whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.0 onnxruntime==1.32.0 numpy==2.3.5
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

x = np.tile(np.arange(11, dtype=np.float32) ** 2, (4, 1))[None, None]  # all four rows are the same


def first_row(rows_scale):
    """Return the first row that onnxruntime makes, and that onnx's reference evaluator makes."""
    scales = numpy_helper.from_array(np.array([1, 1, rows_scale, 1.05], np.float32), "s")
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], mode="linear")
    given = helper.make_tensor_value_info("x", TensorProto.FLOAT, x.shape)
    wanted = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 4 * rows_scale, 11])
    model = helper.make_model(
        helper.make_graph([node], "resize", [given], [wanted], [scales]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=9,
    )
    onnx.checker.check_model(model, full_check=True)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (computed,), (evaluated,) = session.run(None, {"x": x}), ReferenceEvaluator(model).run(None, {"x": x})
    assert computed.shape == evaluated.shape == (1, 1, 4 * rows_scale, 11)
    return computed[0, 0, 0], evaluated[0, 0, 0]


alone, alone_by_onnx = first_row(1)
beside, beside_by_onnx = first_row(2)
print("input row:                ", x[0, 0, 0])
print("onnxruntime, 1.05 alone:  ", alone)
print("onnxruntime, 2 and 1.05:  ", beside)
print("onnx's reference, both:   ", alone_by_onnx, beside_by_onnx)
as_described = (
    np.array_equal(alone, x[0, 0, 0])
    and float(np.abs(beside - x[0, 0, 0]).max()) > 1
    and np.allclose(alone_by_onnx, beside, atol=1e-3)
    and np.allclose(beside_by_onnx, beside, atol=1e-3)
)
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON

#!/usr/bin/env bash
# onnxruntime does not compute DequantizeLinear of constants ahead of a Conv: it stays a node, which every run computes.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.0, Python 3.11, Linux x86-64.
# Input:     Conv whose weight is DequantizeLinear of an int8 constant; and the same with Mul of a float constant.
# Expected:  constant folding computes both when the session is made.
# Seen:      Mul is folded at ORT_ENABLE_ALL, and Conv gets its blocked layout; DequantizeLinear stays in the optimised model
#            at every level, and Conv as it was.
# So:        whoever wants such a model fast on the processor folds the weights first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.0 onnxruntime==1.32.0
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

def model(first):
    made = parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[1,3,8,8] x) => (float[1,4,6,6] y) <float scale = {0.5}>'
        f"{{ floats = {first}(weight, scale) y = Conv(x, floats) }}"
    )
    weight = np.ones((4, 3, 3, 3), np.int8 if first == "DequantizeLinear" else np.float32)
    made.graph.initializer.append(numpy_helper.from_array(weight, "weight"))
    onnx.checker.check_model(made, full_check=True)
    return made.SerializeToString()


def optimized(first, level):
    options = ort.SessionOptions()
    options.log_severity_level = 3  # it warns that such a file is for this machine
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, f"ORT_{level}")
    options.optimized_model_filepath = "optimized.onnx"
    ort.InferenceSession(model(first), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load("optimized.onnx").graph.node]


folded = optimized("Mul", "ENABLE_ALL")
print(f"onnxruntime {ort.__version__}: Mul, ENABLE_ALL: {folded}")
as_described = "Mul" not in folded
for level in ("ENABLE_BASIC", "ENABLE_EXTENDED", "ENABLE_ALL"):
    nodes = optimized("DequantizeLinear", level)
    print(f"DequantizeLinear, {level}: {nodes}")
    as_described &= nodes == ["DequantizeLinear", "Conv"]
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON

#!/usr/bin/env bash
# onnxruntime's optimiser stores a weight that two nodes share, one of them by a Transpose, twice.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.2, Python 3.11, Linux x86-64.
# Input:     a language model in small: an embedding table of 4,000 x 256 float32 (4.1 MB), looked up by Gather and, behind a
#            Transpose, multiplied with at the end, as exporters write tied weights; saved by optimized_model_filepath.
# Expected:  an optimised file of about the same size: MatMul with a transposed weight has kernels that read it as it lies.
# Seen:      twice the size from ORT_ENABLE_BASIC on: the Transpose is folded into a second copy of all of the table. With
#            optimisation off, or ConstantFolding alone left out, the size stays.
# So:        tied weights cost their size again in file and memory; whoever ships optimised files leaves ConstantFolding out,
#            or folds first what is small.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnxruntime==1.32.0 onnx==1.23.2
cd "$folder"
ORT_DISABLE_TELEMETRY=1 HOME="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

model = parser.parse_model(
    """<ir_version: 10, opset_import: ["": 17]>
    g (int64[n] tokens) => (float[n,4000] scores) {
        hidden = Gather(table, tokens)
        turned = Tanh(hidden)
        columns = Transpose <perm=[1,0]> (table)
        scores = MatMul(turned, columns)
    }"""
)
table = np.random.default_rng(0).standard_normal((4000, 256)).astype(np.float32)
model.graph.initializer.append(numpy_helper.from_array(table, "table"))
onnx.save(model, "model.onnx")


def megabytes_of(level, left_out=()):
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.optimized_model_filepath = "optimised.onnx"
    ort.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=list(left_out))
    return Path("optimised.onnx").stat().st_size / 1e6


levels = ort.GraphOptimizationLevel
seen = {
    "off": megabytes_of(levels.ORT_DISABLE_ALL),
    "basic": megabytes_of(levels.ORT_ENABLE_BASIC),
    "all": megabytes_of(levels.ORT_ENABLE_ALL),
    "all but ConstantFolding": megabytes_of(levels.ORT_ENABLE_ALL, ["ConstantFolding"]),
}
print(f"the model: {Path('model.onnx').stat().st_size / 1e6:.1f} MB")
for name, size in seen.items():
    print(f"optimised, {name}: {size:.1f} MB")
as_described = [round(size / 4.1) for size in seen.values()] == [1, 2, 2, 1]
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON

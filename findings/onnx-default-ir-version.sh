#!/usr/bin/env bash
# onnx 1.23.0 writes models by default that onnxruntime 1.31.1 refuses.
#
# Versions:  onnx 1.23.0, onnxruntime 1.31.1, Python 3.11, Linux x86-64.
# Input:     helper.make_model of a graph with one Abs and no version given; onnx's own checker takes it.
# Expected:  the session opens: nothing newer than Abs is in the model.
# Seen:      ir 14, opset 28; InferenceSession raises Fail: "Unsupported model IR version: 14, max supported IR version: 13".
#            With ir_version=13 and opset 17 given the same graph opens, and gives the right answer.
# So:        whoever makes models says both versions, for the oldest runtime that is to read them.
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
from onnx import TensorProto, helper


def model(**versions):
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy")
    made = helper.make_model(helper.make_graph([helper.make_node("Abs", ["x"], ["y"])], "abs", [x], [y]), **versions)
    onnx.checker.check_model(made, full_check=True)
    return made


by_default = model()
print(f"by default: IR version {by_default.ir_version}, opset {by_default.opset_import[0].version}")
try:
    ort.InferenceSession(by_default.SerializeToString(), providers=["CPUExecutionProvider"])
    refused = ""
except Exception as error:
    refused = str(error)
print(f"onnxruntime {ort.__version__}: {refused or 'opened it'}")
told = model(ir_version=13, opset_imports=[helper.make_opsetid("", 17)])
session = ort.InferenceSession(told.SerializeToString(), providers=["CPUExecutionProvider"])
(y,) = session.run(None, {"x": np.array([-2], np.float32)})
print(f"with IR version 13 and opset 17: {y}")
as_described = by_default.ir_version == 14 and "max supported IR version: 13" in refused and y.tolist() == [2]
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON

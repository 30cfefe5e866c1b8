#!/usr/bin/env bash
# onnxruntime takes an array of the other byte order, reads its bytes as if they were in its own, and says nothing.
#
# Versions:  onnxruntime 1.32.0, numpy 2.4.6, onnx 1.23.0, Python 3.11, Linux x86-64.
# Input:     y = Identity(x) on the numbers 1, 2 and 3 as numpy dtype ">f4", big-endian, as files of sensors, FITS images
#            and arrays saved on other machines come.
# Expected:  1, 2, 3, or an error: the type of the input is checked, and float64 in place of float32 is refused.
# Seen:      numbers near 1e-41, from `run` and from `OrtValue.ortvalue_from_numpy` alike, with no word. A list of the
#            same arrays is converted and gives 1, 2, 3.
# So:        whoever feeds arrays that come from elsewhere makes them native first: array.astype(array.dtype.newbyteorder("=")).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.0 onnxruntime==1.32.0
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper

ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, [3])] for name in "xy"]
graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "same", *ends)
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
swapped = np.array([1, 2, 3], ">f4")
try:
    session.run(None, {"x": swapped.astype(">f8")})
    refused = "nothing"
except Exception as error:
    refused = type(error).__name__
seen = {
    "native": session.run(None, {"x": swapped.astype("=f4")})[0],
    "swapped": session.run(None, {"x": swapped})[0],
    "swapped, as an OrtValue": ort.OrtValue.ortvalue_from_numpy(swapped).numpy(),
    "swapped, in a list": session.run(None, {"x": list(swapped)})[0],
}
for how, answer in seen.items():
    print(f"{how}: {answer.dtype} {answer.tolist()}")
print(f"big-endian float64: {refused}")
right, raw = np.array([1, 2, 3], "=f4"), swapped.view("=f4")
expected = {how: raw if how in ("swapped", "swapped, as an OrtValue") else right for how in seen}
same = all(np.array_equal(seen[how], answer) for how, answer in expected.items())
sys.exit(0 if same and refused == "InvalidArgument" else "the behaviour is another now")
PYTHON

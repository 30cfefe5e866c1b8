#!/usr/bin/env bash
# onnxruntime computes a bfloat16 output, and its Python module has no way to hand it over, nor the outputs beside it.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.0, numpy 2.4.6, Python 3.11, Linux x86-64.
# Input:     a valid model that gives a float input as bfloat16, and that as float again.
# Expected:  what onnx's own reference does with such a type (an array of ml_dtypes), the bits as uint16, or at least DLPack, which
#            has a bfloat16: `OrtValue` offers all three ways out, by `run`, `numpy` and `__dlpack__`.
# Seen:      the session is made, says tensor(bfloat16), and run_with_ort_values returns the value; `run` of all outputs raises a
#            RuntimeError, so that the float one is lost as well, and so do copy_outputs_to_cpu, `numpy()` and DLPack.
# So:        only the value's address (`data_ptr`) leads to the numbers; other outputs must be asked for by name.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 onnx==1.23.0 onnxruntime==1.32.0
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import ctypes
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import parser

ort.set_default_logger_severity(4)
text = "g (float[2] x) => (bfloat16[2] y, float[2] z) { y = Cast<to=16>(x) z = Cast<to=1>(y) }"
model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
onnx.checker.check_model(model, full_check=True)
session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
x = np.array([1.5, -2.0], np.float32)
(value,) = session.run_with_ort_values(["y"], {"x": ort.OrtValue.ortvalue_from_numpy(x)})
binding = session.io_binding()
binding.bind_cpu_input("x", x)
binding.bind_output("y")
session.run_with_iobinding(binding)


def outcome(call):
    try:
        return f"gives {call()}"
    except RuntimeError as error:
        return f"raises RuntimeError: {error}"


ways = {
    "run(None)": lambda: session.run(None, {"x": x}),
    "OrtValue.numpy()": value.numpy,
    "DLPack": lambda: np.from_dlpack(value._ortvalue),
    "copy_outputs_to_cpu()": binding.copy_outputs_to_cpu,
}
found = {name: outcome(call) for name, call in ways.items()}
bits = list((ctypes.c_uint16 * 2).from_address(value.data_ptr()))
print(f"onnxruntime {ort.__version__}: {value.data_type()} with the bits {[hex(each) for each in bits]}")
for name, told in found.items():
    print(f"{name} {told}")
as_described = all(told.startswith("raises") for told in found.values()) and bits == [0x3FC0, 0xC000]
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON

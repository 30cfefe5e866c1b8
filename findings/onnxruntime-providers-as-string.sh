#!/usr/bin/env bash
# onnxruntime takes a provider's name that is given as a string letter by letter.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.0, Python 3.11, Linux x86-64.
# Input:     InferenceSession(model, providers="CPUExecutionProvider"), not a list.
# Expected:  the provider of that name, or one error that says that a list is wanted.
# Seen:      a warning for each letter ("Specified provider 'C' is not in available provider names"), and for those that come
#            twice, "EP Error Unknown Provider Type: C" on stdout, and a session that the fallback has made.
#            With enable_fallback=0 a RuntimeError "Unknown Provider Type: C".
# So:        whoever takes providers from users checks that they are no string.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.0 onnxruntime==1.32.0
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import io
import sys
import warnings

import onnx
import onnxruntime as ort
from onnx import parser

model = parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Sin(x) }')
onnx.checker.check_model(model, full_check=True)
said = io.StringIO()
with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(said):
    warnings.simplefilter("always")
    session = ort.InferenceSession(model.SerializeToString(), providers="CPUExecutionProvider")
unknown = [str(each.message) for each in warned if "is not in available provider names" in str(each.message)]
print(f"onnxruntime {ort.__version__}: {len(warned)} warnings, of unknown providers {len(unknown)}: {unknown[0]}")
print(said.getvalue())
try:
    with warnings.catch_warnings(action="ignore"):
        ort.InferenceSession(model.SerializeToString(), providers="CPUExecutionProvider", enable_fallback=0)
    refused = ""
except RuntimeError as error:
    refused = str(error)
print(f"the session has {session.get_providers()}; without fallback: {refused or 'made'}")
as_described = len(unknown) == len("CPUExecutionProvider") and "Unknown Provider Type: C" in said.getvalue()
as_described &= session.get_providers() == ["CPUExecutionProvider"] and "Unknown Provider Type: C" in refused
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON

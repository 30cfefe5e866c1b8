#!/usr/bin/env bash
# onnxruntime registers a second shared allocator for the same memory without an error, and the first one is no longer used.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.0, Python 3.11, Linux x86-64.
# Input:     create_and_register_allocator for an OrtMemoryInfo of the processor's arena, without a limit, and again for the
#            same one with max_mem of 64 KiB; a model that needs 400 kB for a tensor, in sessions that set
#            session.use_env_allocators.
# Expected:  an error at the second call: the C API's text on CreateAndRegisterAllocator promises one where an allocator of
#            the same memory is registered already.
# Seen:      the second call returns as the first did. A session made before it still runs; one that is made after it fails
#            for want of memory, so it has the second allocator.
# So:        whoever registers one in a process that is shared with other code may take away theirs.
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
from onnx import parser

ort.set_default_logger_severity(4)
text = "g (float[1,100000] x) => (float[1,100000] y) { a = Sin(x) b = Cos(a) y = Cos(b) }"
model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
onnx.checker.check_model(model, full_check=True)
memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)


def session():
    options = ort.SessionOptions()
    options.add_session_config_entry("session.use_env_allocators", "1")
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def outcome(session):
    try:
        session.run(None, {"x": np.ones((1, 100000), np.float32)})
        return "runs"
    except Exception as error:
        return str(error)


ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"max_mem": 0}))
before = session()
first = outcome(before)
try:
    ort.create_and_register_allocator(memory, ort.OrtArenaCfg({"max_mem": 1 << 16}))
    refused = ""
except Exception as error:
    refused = str(error)
after = outcome(session())
print(f"onnxruntime {ort.__version__}: the second allocator is {refused or 'registered'}")
print(f"a session made before: {first}, and afterwards {outcome(before)}")
print(f"a session made after: {after}")
as_described = not refused and first == outcome(before) == "runs" and "Available memory of" in after
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON

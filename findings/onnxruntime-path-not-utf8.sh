#!/usr/bin/env bash
# onnxruntime's Python sessions do not take the path of a file whose name is not UTF-8, which Python opens.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.0, Python 3.11, Linux x86-64.
# Input:     a model in a file whose name has the byte E9, "é" in Latin-1; os.fsdecode gives it as 'caf\udce9.onnx'.
# Expected:  the session opens, as open() does, or says that it cannot take such a name.
# Seen:      for the name as text and as pathlib.Path a TypeError "incompatible constructor arguments", which lists argument
#            types that are the given ones. An os.PathLike that returns bytes opens.
# So:        whoever opens files of any name wraps them in such a PathLike.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.0 onnxruntime==1.32.0
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import os
import pathlib
import sys

import onnx
import onnxruntime as ort
from onnx import parser

model = parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[1] x) => (float[1] y) { y = Sin(x) }')
onnx.checker.check_model(model, full_check=True)
name = os.path.join(os.getcwd(), os.fsdecode(b"caf\xe9.onnx"))
with open(name, "wb") as file:
    file.write(model.SerializeToString())


class Raw:
    def __fspath__(self):
        return os.fsencode(name)


def outcome(path):
    try:
        ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        return "opens"
    except TypeError as error:
        return f"TypeError: {str(error).splitlines()[0]}"


with open(name, "rb") as file:
    print(f"open() reads {len(file.read())} bytes of {os.path.basename(name)!r}")
seen = {"text": outcome(name), "pathlib.Path": outcome(pathlib.Path(name)), "a PathLike of bytes": outcome(Raw())}
print(f"onnxruntime {ort.__version__}: {seen}")
refused = all("incompatible constructor arguments" in seen[kind] for kind in ("text", "pathlib.Path"))
sys.exit(0 if refused and seen["a PathLike of bytes"] == "opens" else "the behaviour is another now")
PYTHON

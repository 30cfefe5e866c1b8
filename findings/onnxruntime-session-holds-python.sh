#!/usr/bin/env bash
# onnxruntime up to 1.30 holds Python's interpreter lock while it makes a session; from 1.31 on it lets other threads run.
#
# Versions:  onnxruntime 1.30.0 and 1.31.1, onnx 1.19.0, numpy 2.2.6, Python 3.11, Linux x86-64.
# Input:     a chain of 300 matrix products of 512 x 512, made into a session while a thread counts steps of 1 ms.
# Expected:  the same in both: sessions that run let other threads go on, and the way sessions are made is not said to differ.
# Seen:      1.30.0: the thread takes hardly a step until the session is there. 1.31.1: it goes on all the time.
# So:        who loads several models on threads, or serves while a model loads, gains nothing below 1.31, and all requests
#            stand still for as long as a load takes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/count.py" <<'PYTHON'
import sys
import threading
import time

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

DEPTH, WIDTH = 300, 512
rng = np.random.default_rng(0)
weights = [
    numpy_helper.from_array(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32), f"w{n}") for n in range(DEPTH)
]
nodes = [helper.make_node("MatMul", [f"t{n}", f"w{n}"], [f"t{n + 1}"]) for n in range(DEPTH)]
ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in ("t0", f"t{DEPTH}")]
graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], weights)
data = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()
onnx.checker.check_model(data)

over, steps = threading.Event(), []


def count():
    while not over.is_set():
        time.sleep(0.001)
        steps.append(time.perf_counter())


thread = threading.Thread(target=count)
thread.start()
start = time.perf_counter()
ort.InferenceSession(data, providers=["CPUExecutionProvider"])
end = time.perf_counter()
over.set()
thread.join()
taken = sum(start < step < end for step in steps)
print(f"onnxruntime {ort.__version__}: {taken} steps while a session was made in {1e3 * (end - start):.0f} ms")
share = taken * 0.001 / (end - start)
sys.exit(not (share < 0.05 if ort.__version__ < "1.31" else share > 0.2))
PYTHON
for version in 1.30.0 1.31.1; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check "onnxruntime==$version" onnx==1.19.0 numpy==2.2.6
  (cd "$folder" && ORT_DISABLE_TELEMETRY=1 "$folder/$version/bin/python" count.py) ||
    { echo "onnxruntime $version does otherwise than described" >&2; exit 1; }
done

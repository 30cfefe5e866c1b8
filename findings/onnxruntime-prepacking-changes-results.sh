#!/usr/bin/env bash
# onnxruntime gives other numbers for a product of matrices when session.disable_prepacking is set, in most elements.
#
# Versions:  onnxruntime 1.32.0, onnx 1.23.0, numpy 2.4.0, Python 3.11, Linux x86-64 with AVX-512.
# Input:     y = x · w of float32, x of 16 rows, w a constant of 768 × 768, one thread, once with prepacked weights, which is
#            the default, and once with the configuration entry session.disable_prepacking = 1; the same with 128 × 768.
# Expected:  the same bits: prepacking orders weights in memory for the kernel, and neither the model nor the number of threads
#            differs.
# Seen:      with 768 terms in each sum 80 to 95 % of the elements differ, by up to some 5e-7 of the largest; with 128 terms
#            none does. Sums are added up in blocks of another length.
# So:        who compares or caches results by their bits must leave this entry as it is, and a stage that is mapped from its
#            file without prepacking answers within rounding of a stock session, not to the bit.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check onnx==1.23.0 onnxruntime==1.32.0 numpy==2.4.0
cd "$folder"
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" - <<'PYTHON'
import sys

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

random = np.random.default_rng(0)


def answer(model, x, entries):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for name, value in entries.items():
        options.add_session_config_entry(name, value)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


shares = {}
for terms in (128, 768):
    text = f"g (float[16,{terms}] x) => (float[16,768] y) {{ y = MatMul(x, w) }}"
    model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    weights = random.standard_normal((terms, 768)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(weights, "w"))
    onnx.checker.check_model(model, full_check=True)
    x = random.standard_normal((16, terms)).astype(np.float32)
    packed, plain = answer(model, x, {}), answer(model, x, {"session.disable_prepacking": "1"})
    assert np.array_equal(packed, answer(model, x, {})), "one session answers as another one does"
    shares[terms] = float((packed != plain).mean())
    most = float(np.abs(packed - plain).max() / np.abs(packed).max())
    print(f"onnxruntime {ort.__version__}, {terms} terms: {shares[terms]:.0%} of the elements differ, by up to {most:.1e}")
sys.exit(0 if shares[128] == 0 and shares[768] > 0.5 else "the behaviour is another now")
PYTHON

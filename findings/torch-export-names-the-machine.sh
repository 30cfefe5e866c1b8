#!/usr/bin/env bash
# torch.onnx.export writes folders of the machine that exports, and lines of its source, into every node of the file.
#
# Versions:  torch 2.13.0 (CPU), onnx 1.23.2, onnxscript 0.7.2, Python 3.11, Linux x86-64.
# Input:     a module of one's own with a Linear layer, exported with dynamo=True and without report or verbose.
# Expected:  a graph and weights: what an engine needs.
# Seen:      each node's metadata_props have a stack trace, with the full path of the file that the module was written in
#            and the source line that called it, and a dump of the fx node. onnx.checker takes it, onnxruntime ignores it.
# So:        whoever publishes an exported file publishes user names and source lines with it: clear metadata_props first.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2
mkdir -p "$folder/home/somebody/project"
cd "$folder/home/somebody/project"
cat > secret_idea.py <<'PYTHON'
import sys
import warnings

import onnx
import torch

warnings.simplefilter("ignore")


class Idea(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x):
        return torch.relu(self.layer(x) * 3)  # why three


torch.onnx.export(Idea().eval(), (torch.randn(1, 4),), "model.onnx", dynamo=True, verbose=False)
model = onnx.load("model.onnx")
onnx.checker.check_model(model)
told = [each.value for node in model.graph.node for each in node.metadata_props if each.key.endswith("stack_trace")]
paths = [text for text in told if "/somebody/project/secret_idea.py" in text]
lines = [text for text in told if "return torch.relu(self.layer(x) * 3)" in text]
print(f"{len(model.graph.node)} nodes, {len(paths)} with the path of the module's file, {len(lines)} with its source")
sys.exit(0 if paths and lines else "the behaviour is another now")
PYTHON
"$folder/venv/bin/python" secret_idea.py 2> "$folder/log" || { cat "$folder/log"; exit 1; }

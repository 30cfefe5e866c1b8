#!/usr/bin/env bash
# A training step exported by torch has wrong gradients where its loss is cross_entropy, and no warning.
#
# Versions:  torch 2.13.0 (CPU), onnx 1.23.2, onnxscript 0.7.2, onnxruntime 1.32.0, Python 3.11, Linux x86-64.
# Input:     gradients of torch.nn.functional.cross_entropy of a linear layer (4 samples, 5 classes), traced by make_fx of
#            torch.func.grad_and_value, and exported with dynamo=True; and the same loss written out, as log_softmax and gather.
# Expected:  the exported gradients are autograd's, as those of the traced graph are.
# Seen:      the loss is exact in both. Of cross_entropy the gradients are off by more than their own size, by onnxruntime
#            and by onnx's reference evaluator alike: the file itself is wrong. Written out they are right.
# So:        an exported training step writes its loss out, and is compared with autograd before it is used.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy onnx==1.23.2 onnxscript==0.7.2 \
    onnxruntime==1.32.0
cd "$folder"
cat > step.py <<'PYTHON'
import sys
import warnings

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnx.reference import ReferenceEvaluator
from torch.fx.experimental.proxy_tensor import make_fx

warnings.simplefilter("ignore")
torch.manual_seed(0)
weight, bias, x, label = torch.randn(5, 8), torch.zeros(5), torch.randn(4, 8), torch.tensor([0, 1, 2, 4])


def built_in(weight, bias, x, label):
    return torch.nn.functional.cross_entropy(x @ weight.T + bias, label)


def written_out(weight, bias, x, label):
    return -torch.log_softmax(x @ weight.T + bias, 1).gather(1, label[:, None]).mean()


class Step(torch.nn.Module):
    def __init__(self, traced):
        super().__init__()
        self.traced = traced

    def forward(self, *values):
        (of_weight, of_bias), loss = self.traced(*values)
        return of_weight, of_bias, loss


def errors_of(loss):
    """Return by whom it is run how far gradient and loss are off, the gradient relative to its largest element."""
    given = (weight, bias, x, label)
    traced = make_fx(torch.func.grad_and_value(loss, argnums=(0, 1)))(*given)
    leaf = weight.clone().requires_grad_()
    value = loss(leaf, bias, x, label)
    value.backward()
    right, largest = leaf.grad.numpy(), leaf.grad.abs().max().item()
    torch.onnx.export(Step(traced), given, "step.onnx", dynamo=True, verbose=False)
    session = ort.InferenceSession("step.onnx", providers=["CPUExecutionProvider"])
    feeds = {each.name: tensor.numpy() for each, tensor in zip(session.get_inputs(), given)}
    found = {
        "traced": [each.numpy() for each in Step(traced)(*given)],
        "onnxruntime": session.run(None, feeds),
        "reference": ReferenceEvaluator(onnx.load("step.onnx")).run(None, feeds),
    }
    return {
        name: (float(np.abs(of_weight - right).max() / largest), abs(float(loss) - value.item()))
        for name, (of_weight, _, loss) in found.items()
    }


seen = {loss.__name__: errors_of(loss) for loss in (built_in, written_out)}
for loss, errors in seen.items():
    for name, (gradient, value) in errors.items():
        print(f"{loss}, {name}: gradient off by {gradient:.1e} of its largest element, loss by {value:.1e}")
as_described = all(
    value < 1e-5 and (gradient > 0.5) == (loss == "built_in" and name != "traced")
    for loss, errors in seen.items()
    for name, (gradient, value) in errors.items()
)
sys.exit(0 if as_described else "the behaviour is another now")
PYTHON
ORT_DISABLE_TELEMETRY=1 "$folder/venv/bin/python" step.py 2> log || { cat log; exit 1; }

"""Gradients of ONNX graphs: `tape` goes through a graph backwards, by rules for each operator.

`rules` has those of elements, matrices and arrangement, `windows` those of convolution and pooling.
"""

from splitload.training.gradients import rules, windows
from splitload.training.gradients.tape import Gradients, differentiable

__all__ = ["Gradients", "differentiable", "rules", "windows"]

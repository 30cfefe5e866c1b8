"""Gradients of ONNX graphs: `tape` goes through a graph backwards, by rules for each operator.

`rules` has those of elements, matrices and arrangement, `windows` those of convolution and pooling.
"""

from splitload.frontends.gradients import rules, windows
from splitload.frontends.gradients.tape import Gradients, differentiable

__all__ = ["Gradients", "differentiable", "rules", "windows"]

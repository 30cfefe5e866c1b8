"""Gradients of ONNX graphs: `tape` goes through a graph backwards, by rules for each operator.

`rules` has those of elements and matrices, `arrangement` those of the order of elements, `windows` those of convolution
and pooling.
"""

from splitload.training.gradients import arrangement, rules, windows
from splitload.training.gradients.tape import Gradients, differentiable

__all__ = ["Gradients", "arrangement", "differentiable", "rules", "windows"]

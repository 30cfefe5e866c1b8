"""Which graphs answer otherwise, or far slower, until onnxruntime has fused their operators or packed their weights."""

from __future__ import annotations

from typing import Any

from splitload.graphs.folding import is_maker
from splitload.graphs.proto import is_external, node_inputs, split_constants

# Their kernels compute with other numbers, and a hundred times slower, where weights are not packed.
PACKED = {("com.microsoft", "MatMulNBits"), ("com.microsoft", "QMoE")}
_PRODUCTS = {"MatMul", "Gemm"}


def needs_packing(graph: Any) -> bool:
    """Return whether the first session has to pack weights, so that later ones answer as it does.

    onnxruntime makes MatMulNBits out of a product whose weights, of 4 or 8 bits, DequantizeLinear reads.

    Args:
        graph: The onnx.GraphProto of a stage.
    """
    stored = {tensor.name for tensor in graph.initializer}
    scaled = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in stored}
    return any(
        (node.domain, node.op_type) in PACKED or (node.op_type in _PRODUCTS and not scaled.isdisjoint(node.input))
        for node in graph.node
    )


def needs_fusions(graph: Any) -> bool:
    """Return whether a graph of standard operators is to be optimised at load, as a stock session would.

    Quantised operators are written as float ones between changes of type: until they are fused they compute other
    numbers than the integer kernels. Large weights that are made out of smaller ones would be made in every run.

    Args:
        graph: The onnx.GraphProto of a stage.
    """
    if any("antizeLinear" in node.op_type or is_maker(node) for node in graph.node):  # Quantize, Dequantize, Dynamic-
        return True
    large = {tensor.name for tensor in graph.initializer if is_external(tensor)}
    makers = {id(node): node for node in split_constants(graph)[1].values()}.values()
    return any(not large.isdisjoint(node_inputs(node)) for node in makers)

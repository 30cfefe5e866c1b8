"""Names of weights that onnxruntime cannot make a second time, when it optimises what it has optimised before.

Some of its optimisers (MatMulAddFusion for one) name a new weight without looking whether there is a weight of that
name: only names of *nodes* are compared. A graph that holds such a weight already, because it comes out of an
optimiser, is then refused: "Attempt to replace the existing tensor". No optimiser makes a name that ends like ours.
Source: onnxruntime 1.32, `core/optimizer/matmul_add_fusion.cc` and `Graph::GenerateNodeName`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitload.graphs.proto import bodies

NAME_CLASH = "Attempt to replace the existing tensor"  # what onnxruntime says


def rename_weights(graph: Any) -> None:
    """Give every weight of a graph a name that no optimiser makes; those of inputs and outputs stay.

    Weights in the bodies of nodes are left as they are: they have names of their own in onnxruntime.
    """
    fixed = {value.name for value in (*graph.input, *graph.output)}
    taken = fixed | {name for node in graph.node for name in node.output}
    taken |= {tensor.name for tensor in graph.initializer}
    names: dict[str, str] = {}
    stored = (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer))
    for number, tensor in enumerate(stored):
        name = f"{tensor.name}/{number}"
        if tensor.name not in fixed and name not in taken:
            names[tensor.name] = tensor.name = name
    for value in graph.value_info:
        value.name = names.get(value.name, value.name)
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = names.get(annotation.tensor_name, annotation.tensor_name)
    rename_uses(graph, names)


def rename_uses(graph: Any, names: Mapping[str, str]) -> None:
    """Let the nodes of a graph, and of the bodies in them, read values by their new names."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        for body in bodies(node):
            own = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
            own |= {sparse.values.name for sparse in body.sparse_initializer}
            own |= {name for inner in body.node for name in inner.output}
            outer = {old: new for old, new in names.items() if old not in own}
            for value in body.output:
                value.name = outer.get(value.name, value.name)
            rename_uses(body, outer)

"""Runs an ONNX graph in torch, node by node, so that torch can differentiate it: to check gradients, and to train."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.graphs.observe import one_line
from splitload.graphs.proto import attributes

if TYPE_CHECKING:
    import torch


def run_graph(graph: Any, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Compute every value of a graph.

    Args:
        graph: A `GraphProto` of operators of the ONNX standard.
        values: Its inputs and initializers as tensors, by name.

    Raises:
        ModelError: If there is an operator that is not known here, or not as it stands.
    """
    from splitload.training.torch_operators import OPERATORS

    known = dict(values)
    for node in graph.node:
        operator = OPERATORS.get(node.op_type)
        if operator is None or node.domain not in ("", "ai.onnx"):
            raise ModelError(f"the operator {node.op_type} cannot be run in torch")
        try:
            results = operator(attributes(node), *(known.get(name) for name in node.input))
        except ModelError:
            raise
        except Exception as error:  # torch has no common root for its errors
            where = node.name or next(iter(node.output), "")
            raise ModelError(
                f"the operator {node.op_type} (node '{where}') cannot be run in torch as it stands: {one_line(error)}"
            ) from error
        results = results if isinstance(results, list | tuple) else (results,)
        known.update((name, result) for name, result in zip(node.output, results, strict=False) if name)
    return known


def tensors_of(graph: Any, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the initializers of a graph as tensors, float32 ones in another type.

    Raises:
        ModelError: If one is of a type that torch has not.
    """
    import torch
    from onnx import numpy_helper

    found = {}
    for stored in graph.initializer:
        array = np.array(numpy_helper.to_array(stored))
        try:
            tensor = torch.from_numpy(array)
        except TypeError as error:
            raise ModelError(f"'{stored.name}' is of type {array.dtype}, which torch cannot take") from error
        found[stored.name] = tensor.to(dtype) if tensor.dtype == torch.float32 else tensor
    return found

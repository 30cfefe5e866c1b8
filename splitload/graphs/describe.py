"""What a manifest says of a model: the graph's names, sizes and tensors in the words of the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitload.bundle.manifest import Manifest, TensorSpec
from splitload.plan.graph import ModelGraph


def tensor_spec(graph: ModelGraph, name: str) -> TensorSpec:
    """Return a tensor of a graph as a manifest has it."""
    tensor = graph.tensors[name]
    return TensorSpec(name, tensor.type, tensor.shape)


def describe(
    graph: ModelGraph, *, cpu: str, device: str, created_with: Mapping[str, str], plan: Mapping[str, Any]
) -> Manifest:
    """Return the manifest of a model without variants.

    Args:
        graph: The model.
        cpu: Architecture of the processor that the bundle is made on.
        device: Name of the device that it is made for.
        created_with: Versions of the packages that make it.
        plan: How its plan was found, as JSON values.
    """
    return Manifest(
        model=graph.name,
        model_sha256=graph.source_sha256,
        model_bytes=graph.source_bytes,
        created_with=dict(created_with),
        cpu=cpu,
        device=device,
        plan=dict(plan),
        inputs=tuple(tensor_spec(graph, name) for name in graph.inputs),
        outputs=tuple(tensor_spec(graph, name) for name in graph.outputs),
        variants=(),
    )

"""Which operators of a model two machines can share, and which need everything that they read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from splitload.graphs.proto import split_constants, store_constants
from splitload.graphs.read import parse_model
from splitload.graphs.row_graph import RowGraph, small_constants
from splitload.graphs.row_windows import Shape
from splitload.plan.graph import ModelGraph, Tensor


@dataclass(frozen=True, slots=True)
class Operators:
    """Operators of a model, counted.

    Attributes:
        local: Those of which each row needs some rows of what it reads, by kind.
        whole: Those that need all of something that has rows, or give none, by kind.
        local_flops: Floating-point operations of the first.
        flops: Of all.
    """

    local: Mapping[str, int]
    whole: Mapping[str, int]
    local_flops: int
    flops: int

    @property
    def local_share(self) -> float:
        """The share of floating-point operations that is local."""
        return self.local_flops / self.flops if self.flops else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints."""
        return {
            "local": sum(self.local.values()),
            "global": sum(self.whole.values()),
            "local_by_kind": dict(self.local),
            "global_by_kind": dict(self.whole),
            "local_flops": self.local_flops,
            "flops": self.flops,
        }


def count_operators(graph: ModelGraph) -> Operators:
    """Return how many operators of a graph are local; each node is one."""
    rows = row_graph(graph)
    kinds: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    local_flops = 0
    for node, own in zip(rows.nodes, graph.nodes, strict=True):
        kinds[node.is_local][own.op_type] += 1
        local_flops += own.flops if node.is_local else 0
    ordered = [dict(kinds[is_local].most_common()) for is_local in (True, False)]
    return Operators(ordered[0], ordered[1], local_flops, sum(node.flops for node in graph.nodes))


def row_graph(graph: ModelGraph) -> RowGraph:
    """Return a graph as operators on rows, of the sizes that a run on the example inputs showed."""
    return opened(graph)[2]


def opened(graph: ModelGraph) -> tuple[Any, dict[str, Any], RowGraph]:
    """Return the onnx.ModelProto of a graph, its nodes that prepare constants, and the graph as operators on rows."""
    model = parse_model(graph.path)
    store_constants(model.graph)
    body, constants = split_constants(model.graph)
    shapes: dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    shapes.update(seen_shapes(graph.tensors.values()))
    opsets = {entry.domain.replace("ai.onnx", ""): entry.version for entry in model.opset_import}
    work = [node.flops for node in graph.nodes]
    return model, constants, RowGraph.of(body, graph.inputs, shapes, small_constants(model.graph), opsets, work)


def seen_shapes(tensors: Iterable[Tensor]) -> dict[str, Shape]:
    """Return the shapes of tensors in the run that told their bytes, as far as these settle them.

    A size with a name is what it is in any tensor that has no other unknown size.
    """
    tensors = [each for each in tensors if each.shape is not None and each.nbytes is not None]
    named: dict[str, int] = {}
    found: dict[str, Shape] = {}
    for _ in range(2):  # names are known after the first time
        for tensor in tensors:
            shape = _seen(tensor, named)
            if shape is not None:
                found[tensor.name] = shape
                sizes = zip(tensor.shape or (), shape, strict=True)
                named.update((name, size) for name, size in sizes if isinstance(name, str))
    return found


def _seen(tensor: Tensor, named: Mapping[str, int]) -> Shape | None:
    from splitload.runtime.capi.elements import BY_TYPE

    element = BY_TYPE.get(tensor.type)
    sizes = [named.get(each) if isinstance(each, str) else each for each in tensor.shape or ()]
    unknown = [at for at, size in enumerate(sizes) if size is None]
    if not unknown:
        return tuple(size or 0 for size in sizes)
    known = math.prod(size for size in sizes if size is not None)
    if len(unknown) > 1 or element is None or not known:
        return None
    sizes[unknown[0]] = (tensor.nbytes or 0) // element.item_bytes // known
    return tuple(size or 0 for size in sizes)

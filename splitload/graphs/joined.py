"""One model out of the stages of a bundle, as it was before it was cut."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from splitload.bundle.manifest import Manifest
from splitload.graphs.names import rename_uses
from splitload.graphs.observe import elem_type
from splitload.graphs.proto import external_entry, is_external


def join_stages(paths: Iterable[Path], manifest: Manifest) -> Any:
    """Return the model that consecutive .onnx stages make together; their weights stay where they are.

    Args:
        paths: The stages' files, in order.
        manifest: Names the inputs and outputs of the model.
    """
    import onnx

    stages = [onnx.load_model(str(path), format="protobuf", load_external_data=False) for path in paths]
    model = onnx.ModelProto(ir_version=stages[0].ir_version, producer_name="splitload")
    model.opset_import.extend(stages[0].opset_import)
    model.functions.extend(stages[0].functions)
    model.graph.name = manifest.model.encode("utf-8", "replace").decode()  # JSON holds what is no text, too
    declared: dict[str, Any] = {}
    places: dict[tuple[Any, ...], str] = {}
    seen: set[str] = set()  # constants are repeated in every stage that needs them
    for stage in stages:
        _read_at_one_place(stage.graph, places)
        for value in (*stage.graph.input, *stage.graph.output):
            declared.setdefault(value.name, value)
        for node in stage.graph.node:
            if not seen.intersection(node.output):
                model.graph.node.append(node)
                seen.update(name for name in node.output if name)
        for tensor in stage.graph.initializer:
            if tensor.name not in seen:
                model.graph.initializer.append(tensor)
                seen.add(tensor.name)
        for sparse in stage.graph.sparse_initializer:
            if sparse.values.name not in seen:
                model.graph.sparse_initializer.append(sparse)
                seen.add(sparse.values.name)
    for values, specs in ((model.graph.input, manifest.inputs), (model.graph.output, manifest.outputs)):
        values.extend(
            declared.get(spec.name) or onnx.helper.make_tensor_value_info(spec.name, elem_type(spec.type), spec.shape)
            for spec in specs
        )
    return model


def _read_at_one_place(graph: Any, places: dict[tuple[Any, ...], str]) -> None:
    """Have the nodes of a stage call a weight that an earlier stage reads at the same place as that one does.

    Args:
        graph: The stage.
        places: Names of weights by their place; those of this stage are added.
    """
    names = {}
    for tensor in graph.initializer:
        if is_external(tensor):
            place = (*external_entry(tensor), tensor.data_type, *tensor.dims)
            if (known := places.setdefault(place, tensor.name)) != tensor.name:
                names[tensor.name] = known
    rename_uses(graph, names)
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)

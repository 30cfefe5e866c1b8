"""Weights inside the bodies of If, Loop and Scan, moved to the graph around them, where every variant shares them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from splitload.graphs.names import rename_uses
from splitload.graphs.proto import all_tensors, attributes, bodies, tensor_bytes, value_names
from splitload.graphs.read import read_whole
from splitload.graphs.rewrite import EXTERNAL_FROM_BYTES, save_with_data


def has_hidden_weights(graph: Any) -> bool:
    """Return whether bodies of nodes hold weights that are not small."""
    return any(
        tensor_bytes(tensor) >= EXTERNAL_FROM_BYTES
        for node in graph.node
        for body in bodies(node)
        for tensor in all_tensors(body)
    )


def weights_outside_bodies(path: Path, folder: Path) -> Path:
    """Return a model file, or one in a new folder there, if bodies of nodes hold weights that are not small.

    Args:
        path: The .onnx file.
        folder: Where there is room.

    Raises:
        OSError: If it cannot be written.
    """
    import onnx

    if not has_hidden_weights(onnx.load_model(str(path), format="protobuf", load_external_data=False).graph):
        return path
    model = read_whole(path)
    hoist(model)
    plain = folder / "plain" / "model.onnx"
    plain.parent.mkdir()
    save_with_data(model, plain)
    return plain


def hoist(model: Any) -> int:
    """Move weights that are not small out of bodies; bodies read them by names of the graph around them.

    Args:
        model: An onnx.ModelProto with its weights inside; it is changed.

    Returns:
        How many were moved.
    """
    graph = model.graph
    taken = set(value_names(graph))
    moved = [tensor for node in graph.node for body in bodies(node) for tensor in _hoist_from(body, taken)]
    graph.initializer.extend(moved)
    if moved:
        model.ir_version = max(model.ir_version, 4)  # before, every initializer had to be an input as well
    return len(moved)


def _hoist_from(body: Any, taken: set[str]) -> Iterator[Any]:
    """Take weights out of a body and those inside it, and yield them under names that nothing else has."""
    kept_names = {value.name for value in (*body.input, *body.output)}
    names: dict[str, str] = {}
    for tensor in [each for each in body.initializer if each.name not in kept_names]:
        if tensor_bytes(tensor) >= EXTERNAL_FROM_BYTES:
            yield _renamed(tensor, tensor.name, names, taken)
            body.initializer.remove(tensor)
    for node in [each for each in body.node if each.op_type == "Constant" and each.output[0] not in kept_names]:
        value = attributes(node).get("value")
        if value is not None and tensor_bytes(value) >= EXTERNAL_FROM_BYTES:
            yield _renamed(value, node.output[0], names, taken)
            body.node.remove(node)
    rename_uses(body, names)
    for node in body.node:
        for inner in bodies(node):
            yield from _hoist_from(inner, taken)


def _renamed(tensor: Any, old: str, names: dict[str, str], taken: set[str]) -> Any:
    copy = type(tensor)()
    copy.CopyFrom(tensor)
    name, number = old, 1
    while name in taken:
        name, number = f"{old}/hoisted{number}", number + 1
    taken.add(name)
    names[old] = copy.name = name
    return copy

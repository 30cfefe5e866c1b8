"""What an ONNX file says, read from its protobuf: what nodes read, what is constant, where stored tensors lie."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.bundle.manifest import NO_VERSION, Metadata
from splitload.plan.graph import used_names

_RANDOM = {"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli"}


def node_inputs(node: Any) -> tuple[str, ...]:
    """Return the names a node reads from the graph it stands in, those its bodies capture included."""
    return used_names([*node.input, *captured(node)])


def attributes(node: Any) -> dict[str, Any]:
    """Return the attributes of a node as Python values, text as bytes."""
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}


def bodies(node: Any) -> Iterator[Any]:
    """Yield the graphs in a node's attributes: the bodies of If, Loop and Scan."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def captured(node: Any) -> Iterator[str]:
    """Yield the names that the bodies of a node take from outside."""
    for body in bodies(node):
        known = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        known |= {sparse.values.name for sparse in body.sparse_initializer}
        for inner in body.node:
            yield from (name for name in node_inputs(inner) if name not in known)
            known.update(inner.output)
        yield from (value.name for value in body.output if value.name not in known)


def split_constants(graph: Any) -> tuple[list[Any], dict[str, Any]]:
    """Divide the nodes of a graph into those that depend on its inputs and those that only prepare constants.

    A tensor derived from constants would look alive across every cut; its makers are repeated in each stage instead.
    Random nodes and makers of a model output are never constants. Nodes that no output depends on are left out: a
    stage of nothing else would have nothing to give.

    Returns:
        The nodes to cut, in topological order, and the constant node behind each constant tensor.
    """
    fixed = {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}
    outputs = {value.name for value in graph.output}
    body: list[Any] = []
    constants: dict[str, Any] = {}
    for node in graph.node:
        is_constant = (
            all(name in fixed for name in node_inputs(node))
            and node.op_type not in _RANDOM
            and not any(name in outputs for name in node.output)
            and not any(True for _ in bodies(node))
        )
        if is_constant:
            fixed.update(name for name in node.output if name)
            constants.update((name, node) for name in node.output if name)
        else:
            body.append(node)
    return needed_nodes(body, outputs), constants


def needed_nodes(nodes: Sequence[Any], outputs: Iterable[str]) -> list[Any]:
    """Return those of the nodes, in topological order, that the outputs depend on."""
    needed = set(outputs)
    found = []
    for node in reversed(nodes):
        if not needed.isdisjoint(node.output):
            found.append(node)
            needed.update(node_inputs(node))
    return found[::-1]


def with_constants(names: Iterable[str], constants: Mapping[str, Any]) -> tuple[str, ...]:
    """Return `names` and all that the constant nodes behind them read."""
    found = dict.fromkeys(used_names(names))
    queue = list(found)
    for name in queue:
        if name in constants:
            new = [extra for extra in node_inputs(constants[name]) if extra not in found]
            found.update(dict.fromkeys(new))
            queue.extend(new)
    return tuple(found)


def all_tensors(graph: Any) -> Iterator[Any]:
    """Yield every stored tensor of a graph, those in attributes and bodies included."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
        for body in bodies(node):
            yield from all_tensors(body)


def is_external(tensor: Any) -> bool:
    """Return whether a tensor's bytes lie in another file."""
    return bool(tensor.data_location == 1)  # TensorProto.EXTERNAL


def external_entry(tensor: Any) -> tuple[str, int, int | None]:
    """Return the location, offset and length (None: to the end of the file) of an external tensor.

    Raises:
        ModelError: If offset or length is no count.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    offset, length = entries.get("offset") or "0", entries.get("length") or None
    for count in (offset, length or "0"):
        if not (count.isascii() and count.isdigit()):
            raise ModelError(f"the external data of '{tensor.name}' has '{count}' for an offset or length")
    return entries.get("location", ""), int(offset), int(length) if length else None


def point(tensor: Any, location: str, offset: int, length: int) -> None:
    """Say where the bytes of an external tensor lie."""
    del tensor.external_data[:]
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def external_sizes(model: Any) -> dict[str, int]:
    """Return the external data files of a model as it names them, in order, and where its data in each ends."""
    needed: dict[str, int] = {}
    in_functions = (tensor for function in model.functions for tensor in _node_tensors(function.node))
    for tensor in (*all_tensors(model.graph), *in_functions):
        if is_external(tensor):
            location, offset, length = external_entry(tensor)
            needed[location] = max(needed.get(location, 0), offset + (length or 0))
    return dict(sorted(needed.items()))


def external_files(model: Any, path: Path) -> list[Path]:
    """Return the external data files of a model, checked to lie beside it and to be long enough.

    Where model and data are links, as huggingface_hub keeps them, they are followed as onnxruntime follows them: to
    files in the model's own folder or in the folder of the file that the model links to, and to no others.
    """
    files = []
    folders = {path.parent.resolve(), path.resolve().parent}
    for location, size in external_sizes(model).items():
        plain = os.path.normpath(location.replace("\0", ""))
        file = path.parent / plain
        outside = plain.startswith("..") or not any(file.resolve().is_relative_to(folder) for folder in folders)
        if not location or "\0" in location or outside:
            raise ModelError(f"'{path}' wants external data at '{location}', outside its own folder; refused")
        if not file.is_file():
            raise ModelError(f"'{path}' wants its weights in '{location}', which is missing beside it")
        if file.stat().st_size < size:
            raise ModelError(f"'{location}' is truncated: {file.stat().st_size} bytes, '{path.name}' needs {size}")
        files.append(file)
    return files


def metadata_of(model: Any) -> Metadata:
    """Return what a model says of itself, as onnxruntime tells it."""
    return Metadata(
        producer_name=model.producer_name,
        graph_name=model.graph.name,
        domain=model.domain,
        description=model.doc_string,
        graph_description=model.graph.doc_string,
        version=model.model_version if model.HasField("model_version") else NO_VERSION,
        custom_metadata_map={entry.key: entry.value for entry in model.metadata_props},
    )


def defaults_of(model: Any) -> tuple[str, ...]:
    """Return the names of inputs that have a default value; before version 4 every weight had to be an input too."""
    if model.ir_version < 4:
        return ()
    weights = {tensor.name for tensor in model.graph.initializer}
    weights |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    return tuple(value.name for value in model.graph.input if value.name in weights)


def tensor_bytes(tensor: Any) -> int:
    """Return the size of a stored tensor in bytes."""
    import onnx

    if is_external(tensor):
        length = external_entry(tensor)[2]
        if length is not None:
            return length
    if tensor.raw_data:
        return len(tensor.raw_data)
    if tensor.data_type == onnx.TensorProto.STRING:
        return sum(len(value) for value in tensor.string_data)
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims)) * itemsize


def without_traces(model: Any) -> Any:
    """Take what exporters note of their machine out of a model, in place, and return it: stack traces, and texts."""
    nodes = [node for each in (model.graph, *model.functions) for node in each.node]
    graphs = [model.graph]
    for node in nodes:  # grows while it is gone through
        for body in bodies(node):
            graphs.append(body)
            nodes += body.node
    values = [each for graph in graphs for each in (*graph.input, *graph.output, *graph.value_info)]
    values += [each for function in model.functions for each in function.value_info]
    tensors = [*all_tensors(model.graph), *_node_tensors(nodes)]
    for each in (model, *model.functions, *graphs, *values, *tensors, *nodes):
        each.ClearField("doc_string")
        del each.metadata_props[:]
    for attribute in (each for node in nodes for each in node.attribute):
        attribute.ClearField("doc_string")
    return model


def store_constants(graph: Any) -> None:
    """Have arrays that Constant nodes make be stored like others, in place; outputs of the model stay as they are."""
    from onnx import numpy_helper

    outputs = {value.name for value in graph.output}
    for node in [each for each in graph.node if each.op_type == "Constant" and each.domain in ("", "ai.onnx")]:
        settings = attributes(node)
        tensor = settings.get("value")
        if "value_floats" in settings:
            tensor = numpy_helper.from_array(np.array(settings["value_floats"], dtype=np.float32))
        if tensor is not None and tensor.dims and node.output[0] not in outputs:
            stored = graph.initializer.add()
            stored.CopyFrom(tensor)
            stored.name = node.output[0]
            graph.node.remove(node)


def value_names(graph: Any) -> Iterator[str]:
    """Yield every name of a value in a graph and in the bodies of its nodes."""
    yield from (each.name for each in (*graph.input, *graph.output, *graph.initializer))
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from (*node.input, *node.output)
        for body in bodies(node):
            yield from value_names(body)


def fresh_name(graph: Any, wanted: str) -> str:
    """Return a name that no value of a graph has: the wanted one, or one that begins with it."""
    taken = set(value_names(graph))
    while wanted in taken:
        wanted += "_"
    return wanted

"""A fresh last layer for a model, of other classes than those it was trained for: `--new-head CLASSES`."""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.entries import is_whole, making
from splitload.base.errors import ModelError, UsageError
from splitload.frontends.onnx import Source
from splitload.graphs.here import HERE
from splitload.graphs.observe import observe, one_line, plain_options
from splitload.graphs.proto import (
    external_files,
    fresh_name,
    node_inputs,
    split_constants,
    store_constants,
    with_constants,
)
from splitload.graphs.read import parse_model
from splitload.runtime.inputs import example_inputs
from splitload.runtime.stock import stock_session
from splitload.training.layers import layer_name

MAX_CLASSES = 1 << 20
_VERSION = 1  # raise it when a change here changes a file
_CLASS_AXIS = {"Gemm": 1, "MatMul": -1, "Conv": 1}  # of what each gives


def with_new_head(source: Source, classes: int, cache: Path, *, feeds: Mapping[str, Any] | None = None) -> Source:
    """Return the model with its last Gemm, MatMul or Conv replaced by a fresh one of so many classes.

    Weights and biases are drawn, with a fixed seed, uniformly within 1/sqrt(fan-in), as those of `torch.nn.Linear` are.
    What comes behind may reshape, pool or normalise the classes, but hold no weights of its own. The new model is kept
    in the cache.

    Args:
        source: The model.
        classes: How many, 2 or more.
        cache: The user's cache folder.
        feeds: Inputs for the runs that see the sizes of tensors; made up where they are missing.

    Raises:
        UsageError: If the number of classes cannot be, or the model does not end with such a layer.
        ModelError: If the model does not run, or not with its new head.
        OutputError: If it cannot be written to the cache.
    """
    if not 2 <= classes <= MAX_CLASSES:
        raise UsageError(f"--new-head takes 2 to {MAX_CLASSES} classes, not {classes}")
    folder = cache / "heads" / f"{source.sha256[:24]}-{classes}-v{_VERSION}"
    file = folder / "model.onnx"
    if not is_whole(folder):
        with making(folder, "the model with its new head") as made:
            _write(source, made / file.name, classes, feeds)
    return Source.open(file, source.name, source.examples)


def _write(source: Source, file: Path, classes: int, feeds: Mapping[str, Any] | None) -> None:
    """Write the model with its new head; weights that lie in other files are copied."""
    from onnx import numpy_helper

    model = parse_model(source.path)
    _copy_weights(model, source.path, file.parent)
    graph = model.graph
    store_constants(graph)
    body, constants = split_constants(graph)
    shapes = {name: shape for name, (_, shape) in observe(file, model, body, feeds, HERE).items()}
    head = _head(source.name, body, constants, graph)
    behind = _behind(head, body)
    made = shapes[head.output[0]]
    if made is None:
        raise ModelError(f"'{source.name}' does not run on made-up inputs; give fitting ones with --input")
    old = made[_CLASS_AXIS[head.op_type]]
    stored = {tensor.name: tensor for tensor in graph.initializer}
    weight = stored[with_constants([head.input[1]], constants)[-1]]
    if weight.data_type != weight.FLOAT:
        raise UsageError(f"--new-head: the weights of the last layer of '{source.name}' are not of type float32")
    sizes = _sizes(head, shapes[head.input[0]] or (), tuple(weight.dims), classes)
    bound = 1 / math.sqrt(math.prod(sizes) / classes)
    layer = layer_name(weight.name, head)
    fixed = {*stored, *constants}
    fresh = [(head, 1, "weight", sizes)]
    for node, at in _bias(head, behind, fixed):
        spread = len(made) - 2 if head.op_type == "Conv" and node is not head else 0  # what an Add repeats it over
        fresh.append((node, at, "bias", (classes, *[1] * spread)))
    rng = np.random.default_rng(0)
    added = []
    for node, at, what, dims in fresh:
        node.input[at] = fresh_name(graph, f"{layer}.new.{what}")
        added.append(numpy_helper.from_array(rng.uniform(-bound, bound, dims).astype(np.float32), node.input[at]))
    _fit(source.name, graph, behind, constants, old, classes)
    graph.initializer.extend(added)
    used = {name for node in graph.node for name in node_inputs(node)}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept)
    changed = {name for node in (head, *behind) for name in node.output}
    expected = {}
    for value in graph.output:
        if value.name in changed:
            expected[value.name] = _renumbered(shapes[value.name] or (), old, classes)
            for dim, size in zip(value.type.tensor_type.shape.dim, expected[value.name], strict=False):
                if dim.dim_value == old and size == classes:
                    dim.dim_value = classes
    file.write_bytes(model.SerializeToString())
    _check(source.name, file, expected, feeds)


def _copy_weights(model: Any, path: Path, folder: Path) -> None:
    for data in external_files(model, path):
        place = folder / data.relative_to(path.parent)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data, place)  # a link would follow what becomes of the other; onnx refuses such


def _head(name: str, body: Sequence[Any], constants: Mapping[str, Any], graph: Any) -> Any:
    """Return the node of the last layer."""
    stored = {tensor.name for tensor in graph.initializer}
    for node in reversed(body):
        if node.op_type in _CLASS_AXIS and with_constants([node.input[1]], constants)[-1] in stored:
            if any(each.name == "group" and each.i > 1 for each in node.attribute):
                raise UsageError(f"--new-head: the last layer of '{name}', {node.name}, is a Conv of groups")
            return node
    raise UsageError(
        f"--new-head: '{name}' has no Gemm, MatMul or Conv with stored weights, whose classes could change"
    )


def _behind(head: Any, body: Sequence[Any]) -> list[Any]:
    """Return the nodes that depend on what the last layer gives."""
    depends, found = set(head.output), []
    for node in body:
        if not depends.isdisjoint(node_inputs(node)):
            found.append(node)
            depends.update(node.output)
    return found


def _sizes(head: Any, given: tuple[int, ...], stored: tuple[int, ...], classes: int) -> tuple[int, ...]:
    """Return the shape of the fresh weights."""
    if head.op_type == "Conv":
        return (classes, *stored[1:])
    flags = {each.name: each.i for each in head.attribute}
    features = given[0 if flags.get("transA") else -1]
    return (classes, features) if flags.get("transB") else (features, classes)


def _bias(head: Any, behind: Sequence[Any], fixed: Collection[str]) -> list[tuple[Any, int]]:
    """Return the node and the place where a bias is read: the layer's own, or a fixed one of an Add right behind it."""
    if len(head.input) > 2 and head.input[2]:
        return [(head, 2)]
    readers = [node for node in behind if head.output[0] in node.input]
    if len(readers) == 1 and readers[0].op_type == "Add":
        return [(readers[0], place) for place, name in enumerate(readers[0].input) if name in fixed]
    return []


def _renumbered(shape: Sequence[int], old: int, classes: int) -> tuple[int, ...]:
    """Return a shape with its last size of `old` changed: the classes come after the samples."""
    sizes = list(shape)
    for axis in reversed(range(len(sizes))):
        if sizes[axis] == old:
            sizes[axis] = classes
            break
    return tuple(sizes)


def _fit(name: str, graph: Any, behind: Sequence[Any], constants: Mapping[str, Any], old: int, classes: int) -> None:
    """Change the number of classes where a Reshape behind the last layer names it; refuse weights there."""
    from onnx import numpy_helper

    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in behind:
        for at, read in enumerate(node.input):
            if node.op_type == "Reshape" and read in stored:
                sizes = numpy_helper.to_array(stored[read]).tolist()
                node.input[at] = fresh_name(graph, f"{node.output[0]}/sizes")
                fitting = np.array(_renumbered(sizes, old, classes), dtype=np.int64)
                graph.initializer.append(numpy_helper.from_array(fitting, node.input[at]))
                continue
            behind_it = (stored[each] for each in with_constants([read], constants) if each in stored)
            if any(tensor.data_type == tensor.FLOAT and math.prod(tensor.dims) > 1 for tensor in behind_it):
                raise UsageError(
                    f"--new-head: behind the last layer of '{name}' {node.op_type} reads the weights '{read}', "
                    "which are for the old classes"
                )


def _check(name: str, file: Path, expected: Mapping[str, tuple[int, ...]], feeds: Mapping[str, Any] | None) -> None:
    """Run the model, and compare the shapes of its outputs with what they should be."""
    try:
        session = stock_session(str(file), plain_options())
        outputs = session.run(list(expected), example_inputs(session.get_inputs(), feeds))
    except Exception as error:  # onnxruntime has no common root for its errors
        raise ModelError(f"'{name}' does not run with its new head: {one_line(error)}") from error
    for (output, shape), value in zip(expected.items(), outputs, strict=True):
        if value.shape != shape:
            raise ModelError(f"with its new head '{name}' gives '{output}' of shape {value.shape}, not {shape}")

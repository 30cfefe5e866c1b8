"""Models of integers in the way that a machine computes soonest; weights stay stored as integers.

*Floats for integers*: onnxruntime has a blocked layout and kernels of its own for float convolutions, and neither for
`ConvInteger`, which dynamic quantisation writes. Whole numbers below 2^24 are exact in float32, in whatever order they
are added: where the sums of a convolution provably stay below that, floats give the very same values, two to three
times as fast. `folding.py` has the weights made when they are used.

*Unsigned for signed*: on x86 onnxruntime has kernels for unsigned bytes only, and has signed ones that static
quantisation writes become unsigned where a single operator reads them. What others read stays in floats, between
conversions. As unsigned bytes it is pooled, joined and activated as it is. Where products of bytes would come of it as
well the model stays: sums of two may overflow there on processors without VNNI, where floats are right.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.errors import SplitloadError
from splitload.graphs.here import HERE
from splitload.graphs.layout import channel_block, is_as_fast
from splitload.graphs.proto import attributes, fresh_name, node_inputs, split_constants
from splitload.graphs.read import read_whole
from splitload.graphs.rewrite import save_with_data
from splitload.graphs.runtime import GraphRuntime, is_of_device
from splitload.runtime.inputs import example_inputs

AS_FAST = 1.05  # the time of a graph of fewer nodes may be this share, within which measuring is uncertain
FASTER = 0.9  # share of the time from which on it is worth what the weights take in memory once they are made
_OF_ONE_BYTE = {  # operators of which each byte is made of one byte, or is the largest of some
    "NhwcMaxPool", "MaxPool", "QLinearLeakyRelu", "QLinearSigmoid", "QLinearConcat", "Transpose", "Reshape", "Squeeze",
    "Unsqueeze", "Flatten", "Slice", "Split", "Gather",
}  # fmt: skip
_FLOAT, _UINT8, _INT8 = 1, 2, 3  # as onnx numbers types
_EXACT = 1 << 24  # below it every whole number is a float32 value
_SPAN = 255  # the farthest that a byte can be from its zero point


def faster_integers(
    plain: Path,
    folder: Path,
    feeds: Mapping[str, Any] | None,
    optimize: Callable[[Path, Path], None],
    runtime: GraphRuntime = HERE,
) -> Path:
    """Put the graph of a rewritten model in place of an optimised one, where there is one that is faster.

    Args:
        plain: The file that was optimised.
        folder: With the optimised `model.onnx`; copies are made in folders of it.
        feeds: Inputs to measure with; made up where they are missing, and then a model that does not run stays.
        optimize: Optimises a file into a folder, as `plain` was.
        runtime: What it is for.

    Returns:
        The file that the graph in place is made of.

    Raises:
        SplitloadError: If `feeds` do not fit.
        OSError: If files cannot be put in place.
    """
    rewrites: dict[str, Callable[[Any], int]] = {}
    if (block := channel_block(runtime)) is not None:
        rewrites["ConvInteger"] = partial(floats_for_integers, block=block)
    if runtime.cpu.startswith("x86"):
        rewrites["QuantizeLinear"] = unsigned_for_signed
    for operator, rewrite in rewrites.items():
        if operator not in _operators(plain):
            continue
        model = read_whole(plain)
        if not rewrite(model):
            continue
        changed, optimized = folder / operator / "model.onnx", folder / f"{operator}-optimized"
        changed.parent.mkdir()
        optimized.mkdir()
        if not _is_taken(optimize, model, changed, optimized):
            continue
        del model
        try:
            ready = example_inputs(runtime.open(plain).inputs, feeds)
        except SplitloadError as error:
            if feeds or is_of_device(error):
                raise
            return plain
        graphs = optimized / "model.onnx", folder / "model.onnx"
        made, there = map(_operators, graphs)
        if operator == "QuantizeLinear" and not set(made - there) <= _OF_ONE_BYTE:
            continue
        share = AS_FAST if made.total() < there.total() else FASTER
        if is_as_fast(*graphs, ready, share, runtime):
            for file in filter(Path.is_file, list(folder.iterdir())):
                file.unlink()
            for file in optimized.iterdir():
                file.replace(folder / file.name)
            plain = changed
    return plain


def _is_taken(optimize: Callable[[Path, Path], None], model: Any, path: Path, folder: Path) -> bool:
    """Optimise a model into a folder; return whether it can be written and onnxruntime takes it.

    If not, the graph in place does without it: what fails here is no reason to give up that one.
    """
    try:
        save_with_data(model, path)
        optimize(path, folder)
    except Exception as error:  # onnxruntime has no common root for its errors
        if is_of_device(error):
            raise
        return False
    return True


def _operators(path: Path) -> Counter[str]:
    """Return how many nodes of each operator a graph has."""
    import onnx

    model = onnx.load_model(str(path), format="protobuf", load_external_data=False)
    return Counter(str(node.op_type) for node in model.graph.node)


def unsigned_for_signed(model: Any) -> int:
    """Replace signed bytes that are only restored to floats by unsigned ones, which have the same distance from zero.

    Args:
        model: An onnx.ModelProto with its weights inside; it is changed.

    Returns:
        How many tensors were replaced.
    """
    graph = model.graph
    signed = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type == _INT8}
    for value in graph.input:
        signed.pop(value.name, None)
    given = {value.name for value in graph.output}
    constants = {tensor.name for tensor in graph.initializer}.union(split_constants(graph)[1])
    readers = _readers(graph)
    replaced: dict[str, list[Any]] = {}  # by the name of the tensor: what makes it, and what reads it
    for node in graph.node:
        if not _is_standard(node, "QuantizeLinear") or len(node.input) < 3:
            continue
        if node.input[0] not in constants and node.output[0] not in given:  # weights stay as others have them
            restored = readers.get(node.output[0], [])
            both = all(_is_standard(each, "DequantizeLinear") and len(each.input) == 3 for each in restored)
            if both and all(each.input[2] in signed for each in (node, *restored)):
                replaced[node.output[0]] = [node, *restored]
    points: dict[str, str] = {}
    for node in itertools.chain.from_iterable(replaced.values()):
        if node.input[2] not in points:
            points[node.input[2]] = _unsigned(graph, signed[node.input[2]])
        node.input[2] = points[node.input[2]]
        for attribute in [each for each in node.attribute if each.name == "output_dtype"]:
            node.attribute.remove(attribute)  # the type is that of the zero point
    for value in graph.value_info:
        if value.name in replaced:
            value.type.tensor_type.elem_type = _UINT8
    return len(replaced)


def _unsigned(graph: Any, point: Any) -> str:
    """Add the unsigned zero point that stands for a signed one, and return its name."""
    from onnx import numpy_helper

    name = fresh_name(graph, f"{point.name}/unsigned")
    values = (numpy_helper.to_array(point).astype(np.int16) + 128).astype(np.uint8)
    graph.initializer.append(numpy_helper.from_array(values, name))
    return name


def _is_standard(node: Any, operator: str) -> bool:
    return bool(node.op_type == operator and node.domain in ("", "ai.onnx"))


def _readers(graph: Any) -> dict[str, list[Any]]:
    """Return the nodes that read each value."""
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node_inputs(node):
            readers.setdefault(name, []).append(node)
    return readers


def floats_for_integers(model: Any, block: int) -> int:
    """Replace the convolutions of integers whose sums are exact in float32.

    Only those are replaced that are cast to float32 and multiplied by what depends on the input, as dynamic
    quantisation writes them: into others onnxruntime would put the factor, and the sums would be no whole numbers.

    Args:
        model: An onnx.ModelProto with its weights inside; it is changed.
        block: How many channels the blocked layout holds together; others than multiples would be stored filled.

    Returns:
        How many were replaced.
    """
    from onnx import numpy_helper

    graph = model.graph
    fixed = {tensor.name: tensor for tensor in graph.initializer}
    for value in graph.input:
        fixed.pop(value.name, None)
    constants = {*fixed, *split_constants(graph)[1]}
    given = {value.name for value in graph.output}
    readers = _readers(graph)
    replaced: set[str] = set()
    casts: set[str] = set()
    for node in graph.node:
        if _is_exact(node, fixed, block):
            read_by = readers.get(node.output[0], [])
            results = {node.output[0], *(cast.output[0] for cast in read_by)}
            if given & results or not all(map(_is_cast_to_float, read_by)):
                continue
            scaled = [each for cast in read_by for each in readers.get(cast.output[0], [])]
            if scaled and all(_is_scaling(each, constants) for each in scaled):
                replaced.add(node.output[0])
                casts |= {each.output[0] for each in read_by}
    if not replaced:
        return 0
    one = fresh_name(graph, "one")
    graph.initializer.append(numpy_helper.from_array(np.array(1, np.float32), one))
    nodes: list[Any] = []
    for node in graph.node:
        if node.output and node.output[0] in replaced:
            nodes += _in_floats(node, one, fresh_name(graph, f"{node.output[0]}/float"), fixed)
        elif node.output and node.output[0] in casts:
            node.op_type = "Identity"
            del node.attribute[:]
            nodes.append(node)
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return len(replaced)


def _in_floats(node: Any, one: str, stem: str, fixed: Mapping[str, Any]) -> list[Any]:
    """Return nodes that compute what a convolution of integers does, as floats under the same name."""
    from onnx import helper, numpy_helper

    data, weights, point, offset = [*node.input, "", ""][:4]
    filters = f"{stem}/weights"
    nodes = [
        helper.make_node("DequantizeLinear", [data, one, *filter(None, [point])], [f"{stem}/data"]),
        helper.make_node("Cast", [weights], [filters], to=_FLOAT),
    ]
    if offset and numpy_helper.to_array(fixed[offset]).any():
        nodes.append(helper.make_node("Cast", [offset], [f"{stem}/offset"], to=_FLOAT))
        nodes.append(helper.make_node("Sub", [filters, f"{stem}/offset"], [f"{stem}/filters"]))
        filters = f"{stem}/filters"
    made = helper.make_node("Conv", [f"{stem}/data", filters], [node.output[0]], node.name)
    made.attribute.extend(node.attribute)
    return [*nodes, made]


def _is_cast_to_float(node: Any) -> bool:
    return bool(node.op_type == "Cast" and attributes(node)["to"] == _FLOAT)


def _is_scaling(node: Any, constants: set[str]) -> bool:
    return bool(node.op_type == "Mul" and not constants & set(node.input))


def _is_exact(node: Any, fixed: Mapping[str, Any], block: int) -> bool:
    """Return whether no sum of a convolution of integers can leave what float32 holds exactly.

    Data lies between -p and 255 - p for a zero point p, so that a sum of some products is at most 255 times the sum of
    the positive weights of a filter, or of the negative ones.
    """
    from onnx import numpy_helper

    if not _is_standard(node, "ConvInteger"):
        return False
    _, name, _, offset = [*node.input, "", ""][:4]
    if name not in fixed or (offset and (offset not in fixed or list(fixed[offset].dims) not in ([], [1]))):
        return False
    weights = numpy_helper.to_array(fixed[name]).astype(np.int64)
    if offset:
        weights -= numpy_helper.to_array(fixed[offset]).astype(np.int64)
    if weights.ndim != 4 or weights.shape[0] % block:
        return False
    filters = weights.reshape(len(weights), -1)
    largest = max(np.maximum(filters, 0).sum(1).max(initial=0), np.maximum(-filters, 0).sum(1).max(initial=0))
    return bool(_SPAN * largest < _EXACT)

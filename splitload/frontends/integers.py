"""Convolutions of integers as convolutions of floats that compute the same numbers, two to three times as fast.

onnxruntime has a blocked layout and kernels of its own for float convolutions, and neither for `ConvInteger`, which
dynamic quantisation writes. Whole numbers below 2^24 are exact in float32, in whatever order they are added: where the
sums of a convolution provably stay below that, floats give the very same values. Weights stay stored as integers, and
`folding.py` has them made when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from splitload.errors import SplitloadError
from splitload.frontends.layout import channel_block, is_as_fast
from splitload.frontends.observe import plain_options
from splitload.frontends.proto import attributes, fresh_name, node_inputs, split_constants
from splitload.frontends.rewrite import save_with_data
from splitload.inputs import example_inputs
from splitload.stock import stock_session

FASTER = 0.9  # share of the time from which on it is worth what the weights take in memory once they are made
_FLOAT = 1  # as onnx numbers types
_EXACT = 1 << 24  # below it every whole number is a float32 value
_SPAN = 255  # the farthest that a byte can be from its zero point


def faster_in_floats(
    plain: Path,
    folder: Path,
    feeds: Mapping[str, Any] | None,
    read_whole: Callable[[Path], Any],
    optimize: Callable[[Path, Path], None],
) -> Path:
    """Put the graph with floats for integers in place of an optimised one, if there is one that is faster.

    Args:
        plain: The file that was optimised.
        folder: With the optimised `model.onnx`; copies are made in folders of it.
        feeds: Inputs to measure with; made up where they are missing, and then a model that does not run stays.
        read_whole: Reads a file with its external data.
        optimize: Optimises a file into a folder, as `plain` was.

    Returns:
        The file that the graph in place is made of.

    Raises:
        SplitloadError: If `feeds` do not fit.
        OSError: If files cannot be written.
    """
    import onnx

    shell = onnx.load_model(str(plain), format="protobuf", load_external_data=False)
    if not any(node.op_type == "ConvInteger" for node in shell.graph.node) or (block := channel_block()) is None:
        return plain
    model = read_whole(plain)
    if not floats_for_integers(model, block):
        return plain
    changed, optimized = folder / "floats" / "model.onnx", folder / "optimized"
    changed.parent.mkdir()
    optimized.mkdir()
    save_with_data(model, changed)
    del model
    try:
        optimize(changed, optimized)
    except OSError:
        raise
    except Exception:  # onnxruntime has no common root for its errors, and the graph in integers is there
        return plain
    try:
        ready = example_inputs(stock_session(str(plain), plain_options()).get_inputs(), feeds)
    except SplitloadError:
        if feeds:
            raise
        return plain
    if not is_as_fast(optimized / "model.onnx", folder / "model.onnx", ready, FASTER):
        return plain
    for file in filter(Path.is_file, list(folder.iterdir())):
        file.unlink()
    for file in optimized.iterdir():
        file.replace(folder / file.name)
    return changed


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
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in node_inputs(node):
            readers.setdefault(name, []).append(node)
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

    if node.op_type != "ConvInteger" or node.domain not in ("", "ai.onnx"):
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

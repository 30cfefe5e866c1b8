"""Cuts weights that are larger than a limit by their output features: a node for each part, and a Concat of the parts.

A stage reads whole weights, so that a model whose largest weight is larger than the memory of a device cannot run
there, however it is cut. Output features of a Gemm, MatMul or Conv do not depend on each other: each part of the weight
gives a part of the result, of the same products. Their sums are bit for bit the same for single rows, in blocks, and in
sessions that rearrange weights. Otherwise they may be rounded in another order: onnxruntime sums in runs of 128 inputs,
or of more where a thread computes at most 64 features. Source: `MlasSgemmOperation` in onnxruntime 1.32, and a trial.

The optimised graph is what is cut, as its fusions and its layout stay: an activation that is fused with a product is
computed by each part, and blocked parts read their input in blocks that are made once and are joined as blocks. Where
output features come first in the weight, as in filters and in products with `transB`, a part is a run of its bytes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from splitload.graphs.folding import MAKER, is_maker
from splitload.graphs.proto import attributes, captured, external_entry, is_external, point
from splitload.graphs.rewrite import Rewriter, raw_bytes
from splitload.graphs.tidy import DOMAIN

MULTIPLES = (64, 16)  # output features that a part is whole in: what a kernel computes at once, or a block at least
_ITEM_BYTES = {1: 4, 10: 2, 11: 8}  # of float, float16 and double, as onnx numbers types
_INT64 = 7
_COLUMNS = "columns.bin"  # parts that are no runs of bytes, until the weights are written anew
_CHUNK_BYTES = 8 << 20
_STANDARD = ("", "ai.onnx")
_MIN_OPSET = 11  # from which on Concat takes axes counted from the last


class LargeWeight(NamedTuple):
    """A weight that can be cut.

    Attributes:
        name: Of the weight.
        axis: Its output features.
        bounds: Where its parts begin, and where the last one ends, in output features.
        readers: The nodes that read it.
    """

    name: str
    axis: int
    bounds: tuple[int, ...]
    readers: tuple[Any, ...]


def cut_large_weights(path: Path, max_weight_bytes: int) -> int:
    """Cut the weights of an optimised file that are larger than a limit into parts of about equal size.

    What stays whole: weights that something else reads as well, such as a lookup; that are inputs or outputs of the
    model; of convolutions in groups; of integers; and all of other operators.

    Args:
        path: The .onnx file; it and its weights are replaced.
        max_weight_bytes: The most bytes of a part, of float32 elements where nodes make them out of float16.

    Returns:
        How many weights were cut.

    Raises:
        OSError: If the files cannot be read or written.
    """
    rewriter = Rewriter(path)
    graph = rewriter.model.graph
    found = large_weights(rewriter.model, max_weight_bytes)
    if not found:
        return 0
    large = {id(node): weight for weight in found for node in weight.readers}
    columns = path.with_name(_COLUMNS)
    with columns.open("wb") as file:
        slices = _Slices(rewriter, path.parent, file)
        nodes = [
            part
            for node in graph.node
            for part in (_parts(node, large[id(node)], slices, rewriter) if id(node) in large else (node,))
        ]
    del graph.node[:]
    graph.node.extend([*slices.makers, *nodes])
    slices.drop_whole()
    rewriter.save()
    columns.unlink()
    return len(found)


def large_weights(model: Any, max_weight_bytes: int) -> list[LargeWeight]:
    """Return the weights of an onnx.ModelProto that are larger than a limit and can be cut."""
    opset = max((each.version for each in model.opset_import if each.domain in _STANDARD), default=0)
    graph = model.graph
    shapes = _shapes(graph)
    fixed = {value.name for value in (*graph.input, *graph.output)}.union(*(captured(node) for node in graph.node))
    readers: dict[str, list[Any]] = {}
    for node in graph.node:
        for name in set(node.input):
            readers.setdefault(name, []).append(node)
    found = []
    for name, (item_bytes, dims) in shapes.items():
        total = math.prod(dims) * item_bytes
        if total <= max_weight_bytes or name in fixed or opset < _MIN_OPSET:
            continue
        axes = {_axis(node, name, shapes) for node in readers.get(name, ())}
        if len(axes) == 1 and (axis := axes.pop()) is not None:
            bounds = _bounds(dims[axis], total // dims[axis], max_weight_bytes)
            if len(bounds) > 2:
                found.append(LargeWeight(name, axis, bounds, tuple(readers[name])))
    return found


def _shapes(graph: Any) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return bytes of an element and shape of each constant weight, stored or made of one that nothing else reads."""
    given = {value.name for value in graph.input}
    shapes = {
        tensor.name: (_ITEM_BYTES[tensor.data_type], tuple(tensor.dims))
        for tensor in graph.initializer
        if tensor.data_type in _ITEM_BYTES and tensor.name not in given
    }
    uses = Counter(name for node in graph.node for name in node.input)
    for node in filter(_casts, graph.node):
        to = attributes(node)["to"]
        if node.input[0] in shapes and uses[node.input[0]] == 1 and to in _ITEM_BYTES:
            shapes[node.output[0]] = (_ITEM_BYTES[to], shapes[node.input[0]][1])
    return shapes


def _casts(node: Any) -> bool:
    return node.op_type == "Cast" and is_maker(node)


def _axis(node: Any, weight: str, shapes: Mapping[str, tuple[int, tuple[int, ...]]]) -> int | None:
    """Return the axis of output features in a weight, or None if the node cannot be cut along it."""
    if len(node.output) != 1 or [place for place, name in enumerate(node.input) if name == weight] != [1]:
        return None
    domain, values, dims = node.domain, attributes(node), shapes[weight][1]
    kind = (node.op_type, "" if domain in _STANDARD else domain)
    if kind in (("Conv", ""), ("FusedConv", "com.microsoft"), ("Conv", DOMAIN)):
        axis = 0 if values.get("group", 1) == 1 else None
    elif kind in (("Gemm", ""), ("FusedGemm", "com.microsoft")) and len(dims) == 2:
        axis = 0 if values.get("transB") else 1
    elif kind in (("MatMul", ""), ("FusedMatMul", "com.microsoft")) and len(dims) == 2:
        axis = None if values.get("transBatchB") else 0 if values.get("transB") else 1
    else:
        axis = None
    if axis is None or not (_fits(node, shapes, dims[axis]) or _adds_later(node, values)):
        return None
    return axis


def _fits(node: Any, shapes: Mapping[str, tuple[int, tuple[int, ...]]], features: int) -> bool:
    """Return whether what a node adds is constant, and one number for each output feature or for all."""
    if not any(node.input[2:3]):
        return True
    return node.input[2] in shapes and shapes[node.input[2]][1][-1:] in ((), (1,), (features,))


def _adds_later(node: Any, values: Mapping[str, Any]) -> bool:
    """Return whether an Add behind the node can do what it does with its third input, which may have any shape."""
    return bool(node.op_type == "Gemm" and values.get("beta", 1.0) == 1.0)


def _bounds(features: int, feature_bytes: int, max_weight_bytes: int) -> tuple[int, ...]:
    """Return where parts of equal size, up to a multiple of features, begin and end; two places if it stays whole."""
    for multiple in MULTIPLES:
        if most := max_weight_bytes // (multiple * feature_bytes):
            units = math.ceil(features / multiple)
            count = math.ceil(units / most)
            return (*(multiple * (units * part // count) for part in range(count)), features)
    return (0, features)


def _parts(node: Any, weight: LargeWeight, slices: _Slices, rewriter: Rewriter) -> Iterator[Any]:
    """Yield a node for each part of its weight, and one that joins what they give."""
    from onnx import helper

    weights = slices.of(weight.name, weight.axis, weight.bounds)
    biases = slices.of_bias(node, weight.bounds)
    name, result = node.name or node.output[0], node.output[0]
    summed = node.input[3] if len(node.input) > 3 else ""  # what a convolution adds to its result, as large as that
    results: list[str] = []
    for begin, end in pairwise(weight.bounds):
        part = type(node)()
        part.CopyFrom(node)
        part.name = f"{name}/{begin}-{end}"
        part.input[1] = weights[len(results)]
        part.input[2:] = biases[len(results) : len(results) + 1]
        if summed:
            own = rewriter.free_name(f"{summed}/{begin}-{end}")
            yield helper.make_node(
                "Slice", [summed, *map(slices.number, (begin, end, 1))], [own], f"{name}/sum-{begin}-{end}"
            )
            part.input.extend([*[""] * (3 - len(part.input)), own])
        results.append(rewriter.free_name(f"{result}/{begin}-{end}"))
        part.output[0] = results[-1]
        yield part
    added = [] if biases else list(filter(None, node.input[2:3]))
    joined = rewriter.free_name(f"{result}/joined") if added else result
    axis = 1 if node.op_type.endswith("Conv") else -1
    yield helper.make_node("Concat", results, [joined], f"{name}/join", axis=axis)
    if added:
        yield helper.make_node("Add", [joined, *added], [result], f"{name}/add")


class _Slices:
    """Parts of weights, as weights of their own.

    Args:
        rewriter: Of the graph.
        folder: Where its external data lies.
        columns: Where parts go that are no runs of bytes.

    Attributes:
        makers: Nodes that make parts out of smaller ones.
    """

    def __init__(self, rewriter: Rewriter, folder: Path, columns: Any) -> None:
        self.makers: list[Any] = []
        self._rewriter, self._folder, self._columns = rewriter, folder, columns
        self._graph = rewriter.model.graph
        self._stored = {tensor.name: tensor for tensor in self._graph.initializer}
        self._casts = {node.output[0]: node for node in self._graph.node if _casts(node)}
        self._shapes = _shapes(self._graph)
        self._numbers: dict[int, str] = {}
        self._made: dict[tuple[str, tuple[int, ...]], list[str]] = {}

    def of(self, name: str, axis: int, bounds: tuple[int, ...]) -> list[str]:
        """Return the names of the parts of a weight along an axis."""
        key = (name, bounds)
        if key not in self._made:
            cast = self._casts.get(name)
            if cast is None:
                self._made[key] = [self._stored_part(name, axis, *part) for part in pairwise(bounds)]
            else:
                leaves = self.of(cast.input[0], axis, bounds)
                parts = zip(leaves, pairwise(bounds), strict=True)
                self._made[key] = [self._cast_part(cast, leaf, part) for leaf, part in parts]
        return self._made[key]

    def of_bias(self, node: Any, bounds: tuple[int, ...]) -> list[str]:
        """Return what each part adds; nothing if the node adds nothing, or what is to be added to all later."""
        if not any(node.input[2:3]) or not _fits(node, self._shapes, bounds[-1]):
            return []
        name = node.input[2]
        dims = self._shapes[name][1]
        if dims[-1:] != (bounds[-1],):  # one number for all features
            return [name] * (len(bounds) - 1)
        return self.of(name, len(dims) - 1, bounds)

    def number(self, value: int) -> str:
        """Return the name of a list of one number."""
        if value not in self._numbers:
            data = np.array([value], np.int64).tobytes()
            self._numbers[value] = self._rewriter.add(f"number/{value}", _INT64, (1,), data)
        return self._numbers[value]

    def drop_whole(self) -> None:
        """Drop weights that only their parts are read of."""
        graph = self._graph
        used = set(chain.from_iterable(node.input for node in graph.node)).union(*map(captured, graph.node))
        used |= {value.name for value in graph.output}
        whole = {name for name, _ in self._made} - used
        for node in [each for each in graph.node if each.output[0] in whole]:
            graph.node.remove(node)
            whole |= {name for name in node.input if name in self._stored}
        for stored in (graph.initializer, graph.value_info):
            kept = [each for each in stored if each.name not in whole]
            del stored[:]
            stored.extend(kept)

    def _stored_part(self, name: str, axis: int, begin: int, end: int) -> str:
        tensor = self._stored[name]
        dims = tuple(tensor.dims)
        rows, width, inner = math.prod(dims[:axis]), dims[axis], math.prod(dims[axis + 1 :])
        item_bytes = _ITEM_BYTES[tensor.data_type]
        sizes = (*dims[:axis], end - begin, *dims[axis + 1 :])
        wish = f"{name}/{begin}-{end}"
        if not is_external(tensor):
            elements = np.frombuffer(raw_bytes(tensor, self._folder), f"V{item_bytes}").reshape(rows, width, inner)
            return self._rewriter.add(wish, tensor.data_type, sizes, elements[:, begin:end].tobytes())
        location, offset, _ = external_entry(tensor)
        length = math.prod(sizes) * item_bytes
        if rows == 1:
            place = (location, offset + begin * inner * item_bytes, length)
        else:
            stored = np.memmap(self._folder / location, f"V{item_bytes}", "r", offset, (rows, width, inner))
            place = (_COLUMNS, self._columns.tell(), length)
            step = max(1, _CHUNK_BYTES // (width * inner * item_bytes))
            for row in range(0, rows, step):
                self._columns.write(stored[row : row + step, begin:end].tobytes())
        part = self._graph.initializer.add()
        part.name, part.data_type, part.data_location = self._rewriter.free_name(wish), tensor.data_type, 1
        part.dims.extend(sizes)
        point(part, *place)
        return str(part.name)

    def _cast_part(self, cast: Any, leaf: str, part: tuple[int, int]) -> str:
        """Return what one part is cast to; as of all that makers make, its shape is declared."""
        from onnx import helper

        name = self._rewriter.free_name(f"{cast.output[0]}/{part[0]}-{part[1]}")
        to = attributes(cast)["to"]
        [dims] = [tensor.dims for tensor in self._graph.initializer if tensor.name == leaf]
        self._graph.value_info.append(helper.make_tensor_value_info(name, to, dims))
        self.makers.append(helper.make_node("Cast", [leaf], [name], f"{MAKER}{name}", to=to))
        return name

"""Weights that two variants of a bundle share: the portable graph reads them out of the native stages' files.

A native graph holds the same numbers as the portable one, most filters in another order. The portable graph names the
place of each weight in a native file, and where the order differs restores it with Transpose and Reshape. So a bundle
holds every weight once. A first answer restores each weight where it is used, in memory that the next one uses again:
a copy or three (turns.py). The session that takes over folds that away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitload.graphs.finding import ByteFinder
from splitload.graphs.proto import external_entry, is_external
from splitload.graphs.turns import Turn, applied, orders
from splitload.plan.graph import ModelGraph

_LARGE_NODE_BYTES = 4096
_SAMPLED = 256  # elements that tell most arrays apart, before all are compared

_Key = tuple[str, tuple[int, ...], bytes]


@dataclass(frozen=True, slots=True)
class StoredPlace:
    """Where the bytes of a weight lie, and how its order is restored.

    Attributes:
        file: Name of the file in the bundle.
        offset: First byte.
        length: How many bytes.
        turns: What comes before a Reshape to the weight's own shape; nothing if it is as it is.
        padded: Shape after that Reshape, of which the weight is the first corner; None if it is the whole.
    """

    file: str
    offset: int
    length: int
    turns: tuple[Turn, ...] = ()
    padded: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A stored tensor that holds an array, and how the array is restored from it.

    Attributes:
        tensor: The onnx.TensorProto.
        turns: What comes before a Reshape to the array's own shape; nothing if it is as it is.
        padded: Shape after that Reshape, of which the array is the first corner; None if it is the whole.
    """

    tensor: Any
    turns: tuple[Turn, ...] = ()
    padded: tuple[int, ...] | None = None


class WeightIndex:
    """Finds arrays among the external tensors of a graph, by their bytes, in whatever order they are stored.

    Args:
        graph: The onnx.GraphProto.
        folder: Where its external data lies.
        block: Channels that its blocked layout holds together; None without one.
    """

    def __init__(self, graph: Any, folder: Path, block: int | None) -> None:
        self._folder = folder
        self._block = block
        self._by_sample: dict[_Key, list[Found]] = {}
        self._filters: dict[tuple[int, ...], list[Any]] = {}
        for tensor in graph.initializer:
            if is_external(tensor):
                stored = self.read(tensor)
                self._add(stored, Found(tensor))
                if stored.dtype.kind not in "biuf":
                    continue
                if stored.ndim == 4:
                    self._filters.setdefault(stored.shape, []).append(tensor)
                for turns, shapes in orders(stored.shape, self._block):
                    restored = applied(stored, turns)
                    for shape in shapes:
                        self._add(restored, Found(tensor, turns), shape)

    def _add(self, stored: Any, found: Found, shape: tuple[int, ...] | None = None) -> None:
        """Note what an array is restored from, with the shape it then has, unless an equal one was noted before."""
        shape = stored.shape if shape is None else shape
        equal = self._by_sample.setdefault(_key(stored, shape), [])
        if not any(_same_bits(self._restored(each, shape), stored.reshape(shape)) for each in equal):
            equal.append(found)

    def _restored(self, found: Found, shape: tuple[int, ...]) -> Any:
        """Return what a stored tensor is restored to, but for what fills it."""
        stored = self.read(found.tensor)
        return applied(stored, found.turns).reshape(shape) if found.turns else stored

    def read(self, tensor: Any) -> Any:
        """Return a stored tensor, mapped."""
        return read_external(tensor, self._folder)

    def find(self, weights: Any) -> Found | None:
        """Return what holds an array of that shape and content, or None."""
        for found in self._by_sample.get(_key(weights, weights.shape), ()):
            if _same_bits(self._restored(found, weights.shape), weights):
                return found
        return self._find_padded(weights)

    def drop(self, found: Found) -> None:
        """Forget a tensor that leaves the graph."""
        for key, equal in self._by_sample.items():
            self._by_sample[key] = [each for each in equal if each.tensor is not found.tensor]

    def _find_padded(self, weights: Any) -> Found | None:
        """Return the filter that holds an array in its first channels, the others being there to fill a block."""
        if self._block is None or weights.ndim != 4 or weights.dtype.kind != "f":
            return None
        full = [-(-size // self._block) * self._block for size in weights.shape[:2]]
        for outputs, inputs in {(full[0], full[1]), (full[0], weights.shape[1])} - {weights.shape[:2]}:
            shape = (outputs, inputs, *weights.shape[2:])
            for tensor in self._filters.get(shape, ()):
                for turns, shapes in orders(shape, self._block):
                    if shape not in shapes:
                        continue
                    corner = applied(self.read(tensor), turns).reshape(shape)[: weights.shape[0], : weights.shape[1]]
                    if corner.dtype == weights.dtype and np.array_equal(corner, weights):
                        return Found(tensor, turns, shape)
        return None


def unshared_bytes(native: Path, portable: Path, block: int | None) -> tuple[int, int]:
    """Return how many bytes of a portable graph lie in no weight of the native one, and how many there are.

    Attributes of nodes that are not small, such as the trees of an ensemble, are never shared.

    Args:
        native: The native .onnx file.
        portable: The portable one.
        block: Channels that the native one's blocked layout holds together; None without one.
    """
    import onnx

    graphs = [
        onnx.load_model(str(path), format="protobuf", load_external_data=False).graph for path in (native, portable)
    ]
    index = WeightIndex(graphs[0], native.parent, block)
    own = [size for node in graphs[1].node if (size := node.ByteSize()) >= _LARGE_NODE_BYTES]
    missing, total = sum(own), sum(own)
    for tensor in filter(is_external, graphs[1].initializer):
        weights = read_external(tensor, portable.parent)
        total += weights.nbytes
        missing += 0 if index.find(weights) else weights.nbytes
    return missing, total


class StoredWeights:
    """Finds weights of a model in the stage files of its native graph.

    Args:
        graph: The native graph.
        folder: The bundle.
        files: Names of the native stages' files there.
        block: Channels that the native graph's blocked layout holds together; None without one.
    """

    def __init__(self, graph: ModelGraph, folder: Path, files: Sequence[str], block: int | None) -> None:
        import onnx

        self._folder = folder
        self._files = files
        self._searched: dict[str, ByteFinder] = {}
        model = onnx.load_model(str(graph.path), format="protobuf", load_external_data=False)
        self._index = WeightIndex(model.graph, graph.path.parent, block)
        self._next: dict[str, int] = {}

    def find(self, weights: Any) -> StoredPlace | None:
        """Return where an array of that shape and content lies in the bundle, or None."""
        found = self._index.find(weights)
        if found is None:
            return None
        data = self._index.read(found.tensor).tobytes()
        for name in self._files:
            if name not in self._searched:
                self._searched[name] = ByteFinder(self._folder / name)
            searched = self._searched[name]
            after = self._next.get(name, 0)  # they mostly lie in the order they are asked for
            offset = searched.find(data, after)
            if offset < 0:
                offset = searched.find(data, 0, after + len(data))
            if offset >= 0:
                self._next[name] = offset + len(data)
                return StoredPlace(name, offset, len(data), found.turns, found.padded)
        return None


def restoring(graph: Any, tensor: Any, place: StoredPlace) -> list[Any]:
    """Have a graph read a weight as it is stored, and return the nodes that restore it under its name.

    Args:
        graph: The onnx.GraphProto.
        tensor: The weight's initializer in it; it gets another name, and the sizes of the first turn.
        place: How it is stored, with one turn at least.
    """
    from onnx import helper, numpy_helper

    name, dims = str(tensor.name), tuple(tensor.dims)
    nodes = []

    def constant(word: str, values: Sequence[int]) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{name}/{word}"))
        return f"{name}/{word}"

    value = tensor.name = f"{name}/stored"
    tensor.dims[:] = place.turns[0].sizes
    for number, (sizes, axes) in enumerate(place.turns):
        sized, turned = f"{name}/sized-{number}", f"{name}/turned-{number}"
        if number:
            nodes.append(helper.make_node("Reshape", [value, constant(f"sizes-{number}", sizes)], [sized]))
            value = sized
        nodes.append(helper.make_node("Transpose", [value], [turned], perm=axes))
        value = turned
    whole = name if place.padded is None else f"{name}/padded"
    nodes.append(helper.make_node("Reshape", [value, constant("shape", place.padded or dims)], [whole]))
    if place.padded is not None:
        corner = (constant("start", [0, 0]), constant("end", dims[:2]), constant("axes", [0, 1]))
        nodes.append(helper.make_node("Slice", [whole, *corner], [name]))
    return nodes


def read_external(tensor: Any, folder: Path) -> Any:
    """Return a tensor stored outside its graph file as an array, mapped; bytes for types that numpy lacks."""
    location, offset, length = external_entry(tensor)
    dtype = _dtype(tensor)
    if dtype is None:
        return np.memmap(folder / location, np.uint8, "r", offset, None if length is None else (length,))
    return np.memmap(folder / location, dtype, "r", offset, tuple(tensor.dims))


def as_array(data: bytes, tensor: Any) -> Any:
    """Return what `read_external` would for a tensor whose bytes are these."""
    dtype = _dtype(tensor)
    return np.frombuffer(data, np.uint8) if dtype is None else np.frombuffer(data, dtype).reshape(tuple(tensor.dims))


def has_numpy_type(tensor: Any) -> bool:
    """Return whether numpy has the type of a tensor."""
    return _dtype(tensor) is not None


def _dtype(tensor: Any) -> Any:
    """Return numpy's type of a tensor, or None where it lacks one."""
    import onnx

    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return dtype if dtype.kind in "biuf" else None


def _key(array: Any, shape: tuple[int, ...]) -> _Key:
    """Return what arrays of the same content share, and few others: type, shape and a sample of the elements.

    Args:
        array: The elements, whose order is that of `shape`; a view of other axes costs no copy.
        shape: What the array is to have.
    """
    count = min(array.size, _SAMPLED)
    places = np.arange(count) * (array.size - 1) // max(count - 1, 1)
    sample = array.reshape(-1)[places] if array.flags.c_contiguous else array[np.unravel_index(places, array.shape)]
    return str(array.dtype), tuple(shape), sample.tobytes()


def _same_bits(left: Any, right: Any) -> bool:
    """Return whether two arrays of one type and shape hold the same bits; 0.0 is not -0.0, and NaN may be itself."""
    bits = f"u{left.dtype.itemsize}"
    return bool(np.array_equal(left.view(bits), right.view(bits)))

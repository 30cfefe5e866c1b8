"""The layers of a graph that have weights, wherever those are stored and whatever type they are of."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from splitload.frontends.torch import SCOPES, module_of
from splitload.graphs.proto import split_constants

_FIXED = {"BatchNormalization": (3, 4), "GRU": (4, 5), "LSTM": (4, 5, 6), "RNN": (4, 5)}  # inputs measured or given
_TABLES = {"Gather": (0,)}  # inputs of operators that read only these as weights
_WEIGHTS = {
    "BatchNormalization", "Conv", "ConvInteger", "ConvTranspose", "DeformConv", "Einsum", "GRU", "Gemm",
    "GroupNormalization", "InstanceNormalization", "LSTM", "LayerNormalization", "MatMul", "MatMulInteger", "PRelu",
    "QLinearConv", "QLinearMatMul", "RMSNormalization", "RNN",
}  # fmt: skip
_ARITHMETIC = {"Add", "Div", "Mul", "Sub"}
_ARRANGED = {  # operators that give the elements of their first input; others say how
    "Cast", "CastLike", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity", "Pad", "Reshape", "Slice",
    "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
_NO_DATA = {"ConstantOfShape", "NonZero", "Range", "Shape", "Size"}
_STANDARD = ("", "ai.onnx")
_SMALL = {"int8", "uint8", "int4", "uint4", "int2", "uint2"}  # types of quantised weights


@dataclass(frozen=True, slots=True)
class Layer:
    """A module with weights, in the order of its first use.

    Attributes:
        name: Path of the module where the model tells it; otherwise what its weight or node is called.
        weights: Names of its weights.
        first: Index of the first node that reads one, among the nodes that depend on inputs.
        num_weights: How many numbers they are.
        reason: Why they cannot be trained, None if they can.
    """

    name: str
    weights: tuple[str, ...]
    first: int
    num_weights: int
    reason: str | None


def layers_of(graph: Any) -> list[Layer]:
    """Return the layers of a graph that have weights, those included that cannot be trained.

    What Constant nodes make is seen only when it was stored like others, see `store_constants`. A bias that an Add of
    its own brings belongs to the layer before, unless each has the name of a module of its own. What an operator of
    arithmetic reads, and no module claims, is a constant, such as a scale of outputs, unless there is nothing else.
    """
    body, constants = split_constants(graph)
    stored = _Stored(graph, constants)
    found: dict[str, _Found] = {}
    loose: dict[str, _Found] = {}
    makers: dict[str, _Found] = {}  # by what a layer gives
    for index, node in enumerate(body):
        first = ""  # what a node is called by that nothing names: its other weights are of the same layer
        for place, name in enumerate(node.input):
            for weight, reason in stored.weights(node, place, name).items():
                first = first or weight
                layer, claimed = layer_name(weight, node, first), _is_claimed(weight, node)
                biased = None
                if node.op_type == "Add" and stored.is_row(weight):
                    biased = makers.get(node.input[1 - place])
                if biased is not None and not (claimed and (biased.claimed or layer in found)):
                    if claimed:  # the bias tells what the layer is called
                        found = {layer if each is biased else key: each for key, each in found.items()}
                        biased.claimed = True
                    biased.weights[weight] = reason
                    continue
                kept = loose if node.op_type in _ARITHMETIC and not claimed else found
                made = kept.setdefault(layer, _Found({}, index, claimed))
                made.weights[weight] = reason
                if node.op_type not in _ARITHMETIC:
                    makers.update(dict.fromkeys(node.output, made))
    return [
        Layer(
            name,
            tuple(each.weights),
            each.first,
            sum(stored.size(weight) for weight in each.weights),
            next((reason for reason in each.weights.values() if reason), None),
        )
        for name, each in (found or loose).items()
    ]


@dataclass(slots=True)
class _Found:
    """A layer as far as it was found: why each of its weights cannot be trained, or None."""

    weights: dict[str, str | None]
    first: int
    claimed: bool


def layer_name(weight: str, node: Any, first: str = "") -> str:
    """Return what the layer is called that holds a weight, which this node reads, perhaps after its first weight."""
    if "." in weight:
        return weight.rpartition(".")[0]
    return _module(node) or str(node.name or first or weight)


def _module(node: Any) -> str:
    scopes = next((entry.value for entry in node.metadata_props if entry.key == SCOPES), "")
    return module_of(scopes) or ""


def _is_claimed(weight: str, node: Any) -> bool:
    """Return whether a module's name stands in that of a weight, or of the node that reads it."""
    return "." in weight or bool(_module(node))


class _Tensor(NamedTuple):
    """A stored tensor: its name, its type in the word of `TensorProto`, its sizes, and whether only some are stored."""

    name: str
    kind: str
    dims: tuple[int, ...]
    sparse: bool


class _Stored:
    """The stored tensors of a graph, and what of them nodes read as weights."""

    def __init__(self, graph: Any, constants: Mapping[str, Any]) -> None:
        dense = (_Tensor(each.name, _kind(each), tuple(each.dims), False) for each in graph.initializer)
        sparse = [(each.values.name, each) for each in graph.sparse_initializer]
        sparse += [
            (name, each.sparse_tensor)
            for name, node in constants.items()
            for each in node.attribute
            if each.name == "sparse_value"
        ]
        some = (_Tensor(name, _kind(each.values), tuple(each.dims), True) for name, each in sparse)
        self._tensors = {each.name: each for each in (*dense, *some)}
        self._constants = constants

    def size(self, name: str) -> int:
        """Return the number of elements of a tensor."""
        return math.prod(self._tensors[name].dims)

    def is_row(self, name: str) -> bool:
        """Return whether a tensor extends along one dimension at most."""
        return sum(size != 1 for size in self._tensors[name].dims) <= 1

    def weights(self, node: Any, place: int, name: str) -> dict[str, str | None]:
        """Return the weights that a node reads at a place, and for each why it cannot be trained, or None."""
        kind, ours = node.op_type, node.domain not in _STANDARD
        if not ours and kind in _TABLES and place not in _TABLES[kind]:
            return {}
        if not ours and (kind not in {*_WEIGHTS, *_ARITHMETIC, *_TABLES} or place in _FIXED.get(kind, ())):
            return {}
        behind = [*self._behind(name, False)]
        found = {
            tensor.name: _reason(tensor, dequantised)
            for tensor, dequantised in behind
            if _is_weight(tensor, dequantised, matrix=ours or kind in _TABLES, number=kind in _ARITHMETIC)
        }
        worst = next((reason for reason in found.values() if reason), None)  # a scale of what cannot be trained
        return dict.fromkeys(found, worst) if worst else found

    def _behind(self, name: str, dequantised: bool) -> Iterator[tuple[_Tensor, bool]]:
        """Yield the tensors whose elements a constant value is made of, and whether it was made larger on the way."""
        if name in self._tensors:
            yield self._tensors[name], dequantised
        node = self._constants.get(name)
        if node is None or node.op_type in _NO_DATA:
            return
        read = node.input[:1] if node.op_type in _ARRANGED else node.input
        for each in read:
            yield from self._behind(each, dequantised or node.op_type == "DequantizeLinear")


def _is_weight(tensor: _Tensor, dequantised: bool, *, matrix: bool, number: bool) -> bool:
    """Return whether a stored tensor is a weight, and no number that a formula is made of.

    Args:
        tensor: The tensor.
        dequantised: Whether it is read through DequantizeLinear.
        matrix: Whether only what has two dimensions is one.
        number: Whether one number is none.
    """
    if not (tensor.kind.startswith(("float", "bfloat", "double")) or tensor.kind in _SMALL or dequantised):
        return False
    if matrix and len(tensor.dims) < 2:
        return False
    return math.prod(tensor.dims) > 1 or (not number and len(tensor.dims) > 0)


def _reason(tensor: _Tensor, dequantised: bool) -> str | None:
    if dequantised or tensor.kind in _SMALL:
        return f"are quantised ({tensor.kind}); train the model as it was before it was quantised"
    if tensor.sparse:
        return "are stored as a sparse tensor; store them whole"
    return None if tensor.kind == "float" else f"are of type {tensor.kind}, not float32; export the model in float32"


def _kind(tensor: Any) -> str:
    from onnx import TensorProto

    return str(TensorProto.DataType.Name(tensor.data_type)).lower()

"""Keeps small what a model stores small: weights that onnxruntime folded into larger ones are made when they are used.

onnxruntime computes every constant expression when it optimises a graph. Half precision, integers with a scale, a
repeated row or a table of cosines become plain float32 weights, several times as large, and what was read in two
orders becomes two weights. Here the optimised graph keeps its fusions and its layout, and each such weight becomes
what the model stored again, and nodes that make it: *makers*. A stage runs them in every inference, until a session
that onnxruntime optimises takes over and keeps what they make in memory, as a stock session does.

Every weight is compared bit by bit before it is replaced.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.graphs.observe import plain_options
from splitload.graphs.proto import (
    attributes,
    captured,
    is_external,
    node_inputs,
    split_constants,
    tensor_bytes,
    with_constants,
)
from splitload.graphs.rewrite import Rewriter, raw_bytes
from splitload.graphs.shared import Found, WeightIndex, as_array, has_numpy_type, read_external
from splitload.graphs.turns import applied, back
from splitload.runtime.stock import stock_session

MIN_GAIN_BYTES = 4 << 10  # less is not worth the nodes, which take about one themselves
MAX_CHAIN_BYTES = 1 << 30  # what a chain may read or make to be tried
_FED_BYTES = 1 << 20  # a leaf from here on is fed to what makes a constant, not written into it
MAKER = "made/"  # how names of makers begin
_MOVES = {"Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Gather", "Concat"}
_ELEMENTWISE = {"Cast", "DequantizeLinear", "Mul", "Div", "Add", "Sub", "Neg", "Identity"}
_FLOAT, _HALF, _INT64 = 1, 10, 7  # as onnx numbers types


def is_maker(node: Any) -> bool:
    """Return whether a node makes a weight out of what the model stores smaller."""
    return str(node.name).startswith(MAKER)


def unfold(path: Path, original: Path, block: int | None, *, native: bool) -> int:
    """Undo what folding constants cost in size.

    Args:
        path: The optimised .onnx file; it and its weights are replaced.
        original: The file it was made of.
        block: Channels that its blocked layout holds together; None without one.
        native: Whether onnxruntime's own operators may be used.

    Returns:
        How many weights were replaced.

    Raises:
        OSError: If the files cannot be read or written.
    """
    import onnx

    source = onnx.load_model(str(original), format="protobuf", load_external_data=False)
    body, constants = split_constants(source.graph)
    chains = list(_chains(source.graph, body, constants, original.parent))
    if not chains:
        return 0
    rewriter = Rewriter(path)
    versions = {entry.domain: entry.version for entry in source.opset_import}
    index = WeightIndex(rewriter.model.graph, path.parent, block)
    kept: dict[str, str] = {}
    uses = Counter(name for chain in chains for name in chain.leaves)
    replaced = 0
    for chain in chains:
        value = chain.value(source)
        found = None if value is None or value.nbytes < MIN_GAIN_BYTES else index.find(value)
        if found is None or found.padded or not rewriter.adopt_opsets(versions):
            continue
        there = {name: kept.get(name) or _same(index, found, chain.array(name)) for name in chain.leaves}
        cost = sum(tensor_bytes(tensor) for name, tensor in chain.leaves.items() if there[name] is None)
        if tensor_bytes(found.tensor) - cost < MIN_GAIN_BYTES:
            continue
        turned = {}  # a leaf in the order of this weight, which is of no use to others
        if found.turns and (whole := chain.elementwise_leaf) and uses[whole] == 1 and there[whole] is None:
            turned[whole] = rewriter.add(whole, *chain.turned_leaf(whole, found))
            found = dataclasses.replace(found, turns=())
        kept |= {name: known or chain.copy_leaf(name, rewriter) for name, known in there.items() if name not in turned}
        leaf = kept[next(iter(chain.leaves))] if chain.leaves and not turned else ""
        if not (chain.is_transposed and not found.turns and _read_transposed(rewriter, found, leaf, native)):
            rewriter.make(found.tensor, _makers(rewriter, chain, kept | turned, found))
        else:
            rewriter.model.graph.initializer.remove(found.tensor)
        index.drop(found)
        replaced += 1
    if replaced:
        rewriter.save()
    return replaced


def narrow(path: Path, original: Path) -> int:
    """Store float32 weights in half precision where that changes no bit, if the model has weights in half precision.

    Args:
        path: The optimised .onnx file; it and its weights are replaced.
        original: The file it was made of.

    Returns:
        How many weights were replaced.

    Raises:
        OSError: If the files cannot be read or written.
    """
    import onnx

    source = onnx.load_model(str(original), format="protobuf", load_external_data=False)
    _, constants = split_constants(source.graph)
    stored = [*source.graph.initializer, *(each for node in constants.values() if (each := _constant(node)))]
    if not any(tensor.data_type == _HALF and tensor_bytes(tensor) >= MIN_GAIN_BYTES for tensor in stored):
        return 0
    rewriter = Rewriter(path)
    replaced = 0
    for tensor in list(rewriter.model.graph.initializer):
        if not is_external(tensor) or tensor.data_type != _FLOAT or tensor_bytes(tensor) < 2 * MIN_GAIN_BYTES:
            continue
        weights = read_external(tensor, path.parent)
        with np.errstate(over="ignore"):
            half = weights.astype(np.float16)
        if not np.array_equal(half.astype(np.float32).view(np.uint32), weights.view(np.uint32)):
            continue
        name = str(tensor.name)
        small = rewriter.add(f"{name}/half", _HALF, tuple(tensor.dims), half.tobytes())
        rewriter.make(tensor, [onnx.helper.make_node("Cast", [small], [name], f"{MAKER}{name}", to=_FLOAT)])
        replaced += 1
    if replaced:
        rewriter.save()
    return replaced


def made_weights(graph: Any) -> dict[str, Any]:
    """Return the declarations of weights that makers make, by name, as tensors without data.

    Args:
        graph: The onnx.GraphProto.
    """
    import onnx

    made = {name for node in graph.node if is_maker(node) for name in node.output}
    return {
        value.name: onnx.TensorProto(
            name=value.name,
            data_type=value.type.tensor_type.elem_type,
            dims=[size.dim_value for size in value.type.tensor_type.shape.dim],
        )
        for value in graph.value_info
        if value.name in made
    }


class Chain:
    """The nodes that make one constant of a model, in order, and what they read.

    Args:
        name: Of the constant.
        nodes: What makes it, in topological order, constants themselves left out.
        leaves: Stored tensors that they read, by name.
        folder: Where external data of the model lies.
    """

    def __init__(self, name: str, nodes: list[Any], leaves: Mapping[str, Any], folder: Path) -> None:
        self.name, self.nodes, self.leaves, self._folder = name, nodes, leaves, folder

    @property
    def is_transposed(self) -> bool:
        """Whether it is a stored matrix the other way round, and nothing else."""
        [tensor, *others] = [*self.leaves.values(), None]
        return (
            len(self.nodes) == 1
            and self.nodes[0].op_type == "Transpose"
            and others == [None]
            and len(tensor.dims) == 2
            and attributes(self.nodes[0]).get("perm", [1, 0]) == [1, 0]
        )

    @property
    def elementwise_leaf(self) -> str | None:
        """The leaf of which each element becomes an element of the constant by itself, where that is all; or None."""
        large = [name for name, tensor in self.leaves.items() if len(tensor.dims) > 1 or math.prod(tensor.dims) != 1]
        alone = len(large) == 1 and has_numpy_type(self.leaves[large[0]])
        return large[0] if alone and all(node.op_type in _ELEMENTWISE for node in self.nodes) else None

    def turned_leaf(self, name: str, found: Found) -> tuple[int, tuple[int, ...], bytes]:
        """Return a leaf in the order in which a tensor holds the constant, as type, sizes and bytes."""
        array = applied(self.array(name), back(found.turns))
        return self.leaves[name].data_type, tuple(found.tensor.dims), array.tobytes()

    def array(self, name: str) -> Any:
        """Return a leaf as an array, mapped where it lies in a file; its bytes where numpy lacks the type."""
        tensor = self.leaves[name]
        if is_external(tensor) and tensor_bytes(tensor):
            return read_external(tensor, self._folder)
        return as_array(raw_bytes(tensor, self._folder), tensor)

    def copy_leaf(self, name: str, rewriter: Rewriter) -> str:
        """Add a leaf to another graph, and return its name there."""
        tensor = self.leaves[name]
        return rewriter.add(name, tensor.data_type, tuple(tensor.dims), raw_bytes(tensor, self._folder))

    def value(self, model: Any) -> Any:
        """Return the constant as an array, or None if it cannot be computed."""
        import onnx

        try:
            feeds = {name: self.array(name) for name, stored in self.leaves.items() if _is_fed(stored)}
        except (OSError, ValueError):  # cut short: onnxruntime says so of the whole model
            return None
        inputs, leaves = [], []
        for name, stored in self.leaves.items():
            if name in feeds:  # in the model it would be copied some five times
                inputs.append(onnx.helper.make_tensor_value_info(name, stored.data_type, list(stored.dims)))
                continue
            tensor = onnx.TensorProto(name=name, data_type=stored.data_type, dims=stored.dims)
            tensor.raw_data = raw_bytes(stored, self._folder)
            leaves.append(tensor)
        graph = onnx.helper.make_graph(self.nodes, "made", inputs, [onnx.ValueInfoProto(name=self.name)], leaves)
        made = onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=max(model.ir_version, 4))
        try:
            session = stock_session(made.SerializeToString(), plain_options())
            (value,) = session.run([self.name], feeds)
        except Exception:  # onnxruntime has no common root for its errors, and what fails stays as it is
            return None
        return value if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" else None


def _is_fed(tensor: Any) -> bool:
    """Return whether a tensor is large, and of a type that numpy has."""
    return tensor_bytes(tensor) >= _FED_BYTES and has_numpy_type(tensor)


def _chains(graph: Any, body: list[Any], constants: Mapping[str, Any], folder: Path) -> Iterator[Chain]:
    """Yield what makes the constants that are computed, and are used by what depends on inputs."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    direct = set(itertools.chain.from_iterable(node_inputs(node) for node in body))
    direct.update(value.name for value in graph.output)
    needs = {name: set(with_constants([name], constants)) for name in constants if name in direct}
    uses = Counter(itertools.chain.from_iterable(needs.values()))
    for name, needed in needs.items():
        nodes: list[Any] = []
        leaves, known = {each: stored[each] for each in needed if each in stored}, True
        for maker in {id(maker): maker for made, maker in constants.items() if made in needed}.values():
            if maker.op_type != "Constant":
                nodes.append(maker)
            elif (tensor := _constant(maker)) is not None:
                leaves[maker.output[0]] = tensor
            else:
                known = False
        large = sum(tensor_bytes(tensor) for tensor in leaves.values())
        moves = all(node.op_type in _MOVES for node in nodes)
        # what only moves grows nothing, unless what it reads is read elsewhere as well
        shared = any(each in direct or uses[each] > 1 for each in leaves)
        if nodes and known and large <= MAX_CHAIN_BYTES and (shared or not moves):
            yield Chain(name, nodes, leaves, folder)


def _same(index: WeightIndex, found: Found, array: Any) -> str | None:
    """Return the name of the weight of the optimised graph that holds an array as it is, but for the one found."""
    same = index.find(array)
    return None if same is None or same.turns or same.tensor is found.tensor else str(same.tensor.name)


def _constant(node: Any) -> Any:
    """Return what a Constant node holds as a tensor, or None if it holds something else."""
    from onnx import numpy_helper

    if node.op_type != "Constant":
        return None
    for name, value in attributes(node).items():
        if name == "value":
            return value
        kind = {"value_int": np.int64, "value_ints": np.int64, "value_float": np.float32, "value_floats": np.float32}
        if name in kind:
            return numpy_helper.from_array(np.array(value, kind[name]))
    return None


def _makers(rewriter: Rewriter, chain: Chain, kept: Mapping[str, str], found: Found) -> list[Any]:
    """Return nodes that make the weight that was found in the optimised graph."""
    names = dict(kept)
    nodes: list[Any] = []
    target = str(found.tensor.name)
    for node in chain.nodes:
        copy = type(node)()
        copy.CopyFrom(node)
        copy.ClearField("doc_string")
        copy.ClearField("metadata_props")
        copy.name = f"{MAKER}{target}/{len(nodes)}"
        copy.input[:] = [names.get(name, name) for name in node.input]
        names |= {name: rewriter.free_name(f"{MAKER}{name}") for name in node.output if name}
        copy.output[:] = [names.get(name, "") for name in node.output]
        nodes.append(copy)
    made = names[chain.name]
    if not found.turns:
        last = next(node for node in nodes if made in node.output)
        last.output[list(last.output).index(made)] = target
        for node in nodes:
            node.input[:] = [target if name == made else name for name in node.input]
        return nodes
    return [*nodes, *turn(rewriter, found, tuple(found.tensor.dims), made, target)]


def turn(rewriter: Rewriter, found: Found, dims: tuple[int, ...], source: str, result: str) -> list[Any]:
    """Return nodes that bring a weight into the order in which the optimised graph has it.

    Args:
        rewriter: Of that graph.
        found: What restores the weight from it.
        dims: Shape that the graph has it with.
        source: Name of the weight.
        result: Name of what is made.
    """
    from onnx import helper

    def shape(sizes: Sequence[int]) -> str:
        values = np.array(sizes, np.int64)
        return rewriter.add(f"{MAKER}{result}/sizes", _INT64, (len(sizes),), values.tobytes())

    nodes = []
    for number, (sizes, axes) in enumerate(back(found.turns)):
        split, turned = (rewriter.free_name(f"{MAKER}{result}/{word}") for word in ("split", "turned"))
        nodes.append(helper.make_node("Reshape", [source, shape(sizes)], [split], f"{MAKER}{result}/split-{number}"))
        nodes.append(helper.make_node("Transpose", [split], [turned], f"{MAKER}{result}/turn-{number}", perm=axes))
        source = turned
    return [*nodes, helper.make_node("Reshape", [source, shape(dims)], [result], f"{MAKER}{result}/join")]


def _read_transposed(rewriter: Rewriter, found: Found, leaf: str, native: bool) -> bool:
    """Let products read the matrix as it is stored, the other way round; return whether all that read it can."""
    name = found.tensor.name
    graph = rewriter.model.graph
    readers = [node for node in graph.node if name in node_inputs(node)]
    if any(value.name == name for value in graph.output) or found.tensor.data_type != _FLOAT:
        return False
    for node in readers:
        operators = {("", "Gemm"), ("com.microsoft", "FusedGemm")}
        if native:
            operators |= {("", "MatMul"), ("com.microsoft", "FusedMatMul")}
        if (node.domain, node.op_type) not in operators or name in captured(node):
            return False
        if [place for place, each in enumerate(node.input) if each == name] != [1]:
            return False
        if attributes(node).get("transBatchB"):
            return False
    if any(node.op_type == "MatMul" for node in readers) and not rewriter.adopt_opsets({"com.microsoft": 1}):
        return False
    for node in readers:
        turned = 1 - attributes(node).get("transB", 0)
        if node.op_type == "MatMul":
            node.op_type, node.domain = "FusedMatMul", "com.microsoft"
        for attribute in [each for each in node.attribute if each.name == "transB"]:
            node.attribute.remove(attribute)
        node.attribute.add(name="transB", type=2, i=turned)  # AttributeProto.INT
        node.input[1] = leaf
    return True

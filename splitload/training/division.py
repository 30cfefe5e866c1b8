"""Which layers of a model are trained, and the model divided there: a frozen body, and the tail that depends on them.

The body may be optimised as it likes; the tail keeps its operators and weights as they were exported, as its gradients
are of these. What the tail reads of the body are the features: they depend on no trained weight.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitload.base.errors import UsageError
from splitload.graphs.proto import attributes, needed_nodes, node_inputs, split_constants, with_constants
from splitload.training.layers import Layer, layers_of


@dataclass(frozen=True, slots=True)
class Division:
    """A model in two.

    Attributes:
        features: Names of the values that the tail reads of the body, and of model inputs it reads.
        weights: Names of the trained weights, in the order of their use.
        tail: Names of the tail's outputs by node: the nodes are told apart by them.
        layers: The trained layers, in the order of their use.
    """

    features: tuple[str, ...]
    weights: tuple[str, ...]
    tail: frozenset[str]
    layers: tuple[Layer, ...]

    def __str__(self) -> str:
        """Return a line for people: what is trained."""
        layers = ", ".join(f"{layer.name} ({layer.num_weights:,})" for layer in self.layers)
        return f"{sum(layer.num_weights for layer in self.layers):,} weights in {layers}"


def chosen(spec: str, layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers that a `--trainable` word means: so many last ones, or those whose name a pattern is part of.

    A pattern is a regular expression for whole words of a name: `layer4.2` is in `layer4.2.conv1`, not in `layer4.20`.

    Raises:
        UsageError: If it means none, or is no regular expression.
    """
    if not spec:
        raise UsageError("--trainable needs a count of last layers or a pattern of their names, and is empty")
    if not layers:
        raise UsageError(f"--trainable {spec}: no layer of the model has weights to train")
    if spec.isdecimal():
        if not 1 <= int(spec) <= len(layers):
            raise UsageError(f"--trainable {spec}: give 1 to {len(layers)}, so many layers of the model have weights")
        return sorted(layers, key=lambda layer: layer.first)[-int(spec) :]
    try:
        pattern = re.compile(rf"(?<!\w)(?:{spec})(?!\w)")
    except re.error as error:
        raise UsageError(f"--trainable '{spec}' is no regular expression: {error}") from error
    found = [layer for layer in layers if pattern.search(layer.name)]
    if not found:
        names = ", ".join(layer.name for layer in layers[-5:])
        raise UsageError(f"--trainable '{spec}' matches no layer with weights; the last ones are: {names}")
    return found


def divide(graph: Any, trainable: str | Collection[str]) -> Division:
    """Divide a graph before the first value that depends on a trained weight.

    Args:
        graph: A `GraphProto`.
        trainable: A `--trainable` word, or the names of the trained weights themselves.

    Raises:
        UsageError: If that means no layer, all of them, one that cannot be trained, or one that a frozen layer depends
            on.
    """
    layers = layers_of(graph)
    if isinstance(trainable, str):
        trained = chosen(trainable, layers)
        weights = {name for layer in trained for name in layer.weights}
    else:
        weights = set(trainable)
        trained = [layer for layer in layers if not weights.isdisjoint(layer.weights)]
        if missing := weights - {name for layer in trained for name in layer.weights}:
            raise UsageError(f"the model has no weight '{min(missing)}' to train")
    for layer in trained:
        if layer.reason is not None:
            raise UsageError(
                f"--trainable: the weights of '{layer.name}' {layer.reason}, or choose other layers with --trainable"
            )
    body, constants = split_constants(graph)
    depends: set[str] = set()
    tail = []
    for node in body:
        read = with_constants(node_inputs(node), constants)
        if not depends.isdisjoint(read) or not weights.isdisjoint(read):
            tail.append(node)
            depends.update(name for name in node.output if name)
    _refuse_frozen(layers, trained, weights, tail, constants)
    if len(tail) == len(body):
        raise UsageError(f"--trainable: nothing before '{trained[0].name}' is left to stay frozen; choose fewer layers")
    tail = _with_turned(graph, body, tail)
    made = {name for node in tail for name in node.output if name}
    fixed = set(constants) | {tensor.name for tensor in graph.initializer}
    fixed |= {sparse.values.name for sparse in graph.sparse_initializer}
    names = dict.fromkeys(name for node in tail for name in node_inputs(node))
    features = tuple(name for name in names if name not in made and name not in fixed)
    ordered = dict.fromkeys(name for node in tail for name in with_constants(node_inputs(node), constants))
    used = sorted(trained, key=lambda layer: layer.first)
    return Division(features, tuple(name for name in ordered if name in weights), frozenset(made), tuple(used))


def _with_turned(graph: Any, body: Sequence[Any], tail: Sequence[Any]) -> list[Any]:
    """Return the tail with each Transpose before it that moves the samples away from the first axis.

    Only one that the tail alone reads: recurrent layers take time first, and features are kept by samples.
    """
    ids = {id(node) for node in tail}
    given = {value.name for value in graph.output}
    for node in reversed(body):
        turns = node.op_type == "Transpose" and list(attributes(node).get("perm", [1]))[:1] != [0]
        readers = [each for each in body if node.output[0] in node_inputs(each)] if turns else []
        if readers and node.output[0] not in given and all(id(each) in ids for each in readers):
            ids.add(id(node))
    return [node for node in body if id(node) in ids]


def _refuse_frozen(
    layers: Iterable[Layer],
    trained: Sequence[Layer],
    weights: set[str],
    tail: Sequence[Any],
    constants: Mapping[str, Any],
) -> None:
    """Raise if the tail reads weights that are not trained."""
    owners = {name: layer.name for layer in layers for name in layer.weights}
    for node in tail:
        for name in with_constants(node_inputs(node), constants):
            if name in owners and name not in weights:
                raise UsageError(
                    f"--trainable: '{trained[0].name}' is trainable, but '{owners[name]}' after it is not; "
                    "trainable layers must be the last ones"
                )


def parts(
    model: Any, division: Division, types: Mapping[str, tuple[int, Sequence[int | str | None]]]
) -> tuple[Any, Any]:
    """Return the body and the tail as models of their own, with the weights each reads.

    Args:
        model: The whole model.
        division: Where it is divided.
        types: For each feature that the body makes its type, as `TensorProto` counts, and its shape.
    """
    from onnx import helper

    graph = model.graph
    nodes, constants = split_constants(graph)
    tail = [node for node in nodes if not division.tail.isdisjoint(node.output)]
    given = {value.name: value for value in graph.input}
    crossing = [name for name in division.features if name not in given]
    early = [value for value in graph.output if value.name not in division.tail]
    declared = {name: helper.make_tensor_value_info(name, *types[name]) for name in crossing}
    wanted = dict.fromkeys([*crossing, *(value.name for value in early)])
    front = needed_nodes([node for node in nodes if division.tail.isdisjoint(node.output)], wanted)
    given_early = [*early, *(declared[name] for name in crossing if name not in {value.name for value in early})]
    features = [declared.get(name) or given[name] for name in division.features]
    late = [value for value in graph.output if value.name in division.tail]
    return (
        _model(model, front, constants, list(given.values()), given_early, "body"),
        _model(model, tail, constants, features, late, "tail"),
    )


def _model(
    model: Any,
    nodes: Sequence[Any],
    constants: Mapping[str, Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    name: str,
) -> Any:
    """Return a model of some nodes of another, with the constants and weights that they read."""
    import onnx

    made = onnx.ModelProto(ir_version=model.ir_version, producer_name="splitload")
    made.opset_import.extend(model.opset_import)
    made.functions.extend(model.functions)
    made.graph.name = name
    read = with_constants((each for node in nodes for each in node_inputs(node)), constants)
    makers = {id(maker): maker for each, maker in constants.items() if each in read}
    made.graph.node.extend([*makers.values(), *nodes])
    made.graph.input.extend(inputs)
    made.graph.output.extend(outputs)
    declared = {value.name for value in inputs}
    made.graph.initializer.extend(
        tensor for tensor in model.graph.initializer if tensor.name in read and tensor.name not in declared
    )
    made.graph.sparse_initializer.extend(
        sparse for sparse in model.graph.sparse_initializer if sparse.values.name in read
    )
    return made

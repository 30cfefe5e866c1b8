"""A model of one sample made into one of many: exporters write the single sample of an example into shapes."""

from __future__ import annotations

from typing import Any

import numpy as np

from splitload.base.errors import ModelError
from splitload.graphs.observe import one_line, plain_options
from splitload.graphs.proto import attributes, fresh_name, needed_nodes, split_constants
from splitload.runtime.stock import stock_session
from splitload.training.losses import SAMPLES
from splitload.training.training_step import constants_of, shapes_of

_TOLERANCE = 1e-4  # of the largest output, for what several samples at once may differ from one by one


def open_samples(model: Any, examples: dict[str, list[np.ndarray[Any, Any]]]) -> Any:
    """Return a model that takes any number of samples, of one that may have been exported for a single one.

    The first size of every input and output becomes `SAMPLES`; where a Reshape names a first size of 1, it keeps that
    of its input instead. Two ways in which torch's exporter writes simple things become simple again: a mean over an
    image with a Reshape to one axis and a Gather that gives all of it another shape, and the keys of attention, whose
    last two axes change places with all others folded into one. That this computes the same is checked with several
    samples.

    Args:
        model: Its inputs have a first size for samples.
        examples: Inputs of one sample each, several of them.

    Raises:
        ModelError: If several samples at once give something else than one by one.
    """
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = SAMPLES
    stored = constants_of(graph)
    makers = {node.output[0]: node for node in graph.node}
    shapes = shapes_of(model)
    varying, _ = split_constants(graph)  # what depends on an input, and so on the number of samples
    for node in varying:
        turned = _turned(node, makers, shapes)
        if turned is not None:
            rank = len(shapes[turned])
            node.CopyFrom(
                helper.make_node(
                    "Transpose", [turned], node.output, node.name, perm=[*range(rank - 2), rank - 1, rank - 2]
                )
            )
            continue
        reshaped = _reshaped(node, makers, stored)
        if reshaped is None:
            continue
        node.op_type = "Reshape"
        node.input[:] = [reshaped[0], fresh_name(graph, f"{node.output[0]}/size")]
        del node.attribute[:]  # there is none but allowzero or axis: 0 is to mean the size of the input
        graph.initializer.append(numpy_helper.from_array(np.array([0, *reshaped[1]], dtype=np.int64), node.input[1]))
    kept = needed_nodes(graph.node, [value.name for value in graph.output])
    del graph.node[:]
    graph.node.extend(kept)
    _check_as_one_by_one(model, made, examples)
    return made


def _check_as_one_by_one(model: Any, made: Any, examples: dict[str, list[np.ndarray[Any, Any]]]) -> None:
    """Raise `ModelError` if the opened model gives something else for several samples than the model one by one."""
    count = len(next(iter(examples.values())))
    try:
        one_by_one = [_run(model, {name: each[number] for name, each in examples.items()}) for number in range(count)]
    except Exception as error:  # onnxruntime has no common root for its errors
        raise ModelError(f"what is trained does not run on made-up features: {one_line(error)}") from error
    expected = np.concatenate(one_by_one)
    try:
        found = _run(made, {name: np.concatenate(each) for name, each in examples.items()})
    except Exception as error:  # onnxruntime has no common root for its errors
        raise ModelError(
            f"what is trained takes one sample at a time ({one_line(error)}); export the model with an open first size"
        ) from error
    largest = np.abs(expected).max(initial=0.0)
    if found.shape != expected.shape or not np.abs(found - expected).max(initial=0.0) <= _TOLERANCE * largest:
        raise ModelError(
            "what is trained computes something else for several samples at once than for one by one; export the model "
            "with an open first size"
        )


def _reshaped(
    node: Any, makers: dict[str, Any], stored: dict[str, np.ndarray[Any, Any]]
) -> tuple[str, tuple[int, ...]] | None:
    """Return what a node gives a shape whose first size is 1, and the other sizes; None if it does no such thing."""
    if node.op_type not in ("Reshape", "Gather") or len(node.input) < 2 or node.input[1] not in stored:
        return None
    second = stored[node.input[1]]
    if node.op_type == "Reshape":
        zeros_count = bool(attributes(node).get("allowzero", 0)) and bool((second == 0).any())
        fits = second.size > 0 and second[0] == 1 and not zeros_count
        return (node.input[0], tuple(second[1:].tolist())) if fits else None
    source = makers.get(node.input[0])
    if source is None or source.op_type != "Reshape" or attributes(node).get("axis", 0) != 0:
        return None
    flat = stored.get(source.input[-1], np.zeros(0)).tolist() == [-1]
    whole = second.shape[:1] == (1,) and np.array_equal(second.ravel(), np.arange(second.size))
    return (source.input[0], second.shape[1:]) if flat and whole else None


def _turned(node: Any, makers: dict[str, Any], shapes: dict[str, tuple[int | str, ...]]) -> str | None:
    """Return the value whose last two axes a node has change places, at the end of Reshape, Transpose and Reshape."""
    found = []
    name = node.output[0]
    for kind in ("Reshape", "Transpose", "Reshape"):
        node = makers.get(name)
        if node is None or node.op_type != kind:
            return None
        found.append(node)
        name = node.input[0]
    last, turn, _ = found
    before, after, folded = (shapes.get(each, ()) for each in (name, last.output[0], turn.input[0]))
    perm = attributes(turn).get("perm", [2, 1, 0])
    fits = len(before) > 2 and len(folded) == 3 and before[-2:] == folded[1:] and list(perm) == [0, 2, 1]
    return name if fits and after == (*before[:-2], before[-1], before[-2]) else None


def _run(model: Any, feeds: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:

    session = stock_session(model.SerializeToString(), plain_options())
    output: np.ndarray[Any, Any] = session.run(None, feeds)[0]
    return output

"""Small graphs with operators that look at rows in different ways, and what computes them whole and by pieces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, parser

from splitload.graphs.proto import split_constants
from splitload.graphs.row_graph import RowGraph, small_constants
from splitload.graphs.row_models import PieceWriter
from splitload.graphs.row_pieces import Range, plan_piece
from splitload.runtime.stock import stock_session

Arrays = Mapping[str, Any]


class Whole:
    """A model of which every value is known.

    Args:
        text: The model as onnx.parser reads it; of its inputs those that begin with "w" are weights.
        seed: Of the numbers.
    """

    def __init__(self, text: str, seed: int = 0) -> None:
        self.model = parser.parse_model(text)
        graph, chance = self.model.graph, np.random.default_rng(seed)
        for value in [each for each in graph.input if each.name.startswith("w")]:
            array = _numbers(value, chance)
            graph.initializer.append(numpy_helper.from_array(array, value.name))
            graph.input.remove(value)
        self.feeds = {value.name: _numbers(value, chance) for value in graph.input}
        body, self.constants = split_constants(graph)
        names = [name for node in body for name in node.output if name]
        self.values: dict[str, Any] = {**self.feeds, **run(_giving(self.model, names), self.feeds, names)}
        weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        prepared = list(self.constants)
        weights.update(run(_giving(self.model, prepared), self.feeds, prepared) if prepared else {})
        shapes = {name: tuple(value.shape) for name, value in (self.values | weights).items()}
        opsets = {entry.domain: entry.version for entry in self.model.opset_import}
        known = small_constants(graph) | {name: weights[name] for name in prepared}
        self.graph = RowGraph.of(body, list(self.feeds), shapes, known, opsets)
        self.outputs = [value.name for value in graph.output]

    def joined(self, bounds: Mapping[str, Sequence[int]], nodes: Sequence[int]) -> dict[str, Any]:
        """Compute outputs of a run of nodes by pieces of rows between some bounds, and return them joined.

        Args:
            bounds: Of the rows of each output, from 0 to its size; all have as many.
            nodes: Positions of the run.
        """
        writer = PieceWriter(self.model, self.graph, self.constants, self._type)
        parts: dict[str, list[Any]] = {name: [] for name in bounds}
        for at in range(len(next(iter(bounds.values()))) - 1):
            wanted = {name: Range(each[at], each[at + 1]) for name, each in bounds.items()}
            piece = plan_piece(self.graph, nodes, wanted)
            given = {name: self._rows(name, rows) for name, rows in piece.needed.items()}
            model = writer.model(piece, wanted)
            found = run(model, given, [value.name for value in model.graph.output])
            for name, value in zip(wanted, found.values(), strict=True):
                parts[name].append(value)
        return {name: np.concatenate(each, axis=self.graph.axes[name]) for name, each in parts.items()}

    def _rows(self, name: str, rows: Range | None) -> Any:
        if rows is None:
            return self.values[name]
        index = [slice(None)] * self.values[name].ndim
        index[self.graph.axes[name]] = slice(*rows)
        return np.ascontiguousarray(self.values[name][tuple(index)])

    def _type(self, name: str) -> int:
        return int(helper.np_dtype_to_tensor_dtype(self.values[name].dtype))


def run(model: Any, feeds: Arrays, names: Sequence[str]) -> dict[str, Any]:
    """Return outputs of a model, which is taken as it is."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = stock_session(model.SerializeToString(), options)
    return dict(zip(names, session.run(list(names), dict(feeds)), strict=True))


def _giving(model: Any, names: Sequence[str]) -> Any:
    found = onnx.ModelProto()
    found.CopyFrom(model)
    del found.graph.output[:]
    found.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return found


def _numbers(value: Any, chance: np.random.Generator) -> Any:
    kind = value.type.tensor_type
    shape = [each.dim_value for each in kind.shape.dim]
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    if dtype.kind == "i":
        return chance.integers(0, 4, shape).astype(dtype)
    if dtype.kind == "b":
        return chance.random(shape) < 0.5
    return chance.standard_normal(shape).astype(dtype)

"""Graphs that compute pieces: the operators of a run with explicit padding and slices, on the weights of the whole.

Joined, the rows that such graphs compute are those of the whole graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from splitload.graphs.proto import node_inputs
from splitload.graphs.row_graph import RowGraph, RowNode
from splitload.graphs.row_image_rules import kernel_of
from splitload.graphs.row_pieces import Piece, Range, Ranges, clipped
from splitload.graphs.row_windows import SAME, Need

_INT64 = 7
_LISTS_AS_INPUTS = {"Slice": 10, "Pad": 11}  # from which version of ONNX on
_KERNELS = {"AveragePool", "Conv", "FusedConv", "LpPool", "MaxPool"}
_SCALED = {"DepthToSpace", "Resize", "Upsample"}
_RESHAPES = {"Flatten", "Reshape", "Squeeze", "Unsqueeze"}


class PieceWriter:
    """Writes pieces of one graph as graphs of their own.

    Args:
        source: The onnx.ModelProto of the whole.
        graph: The same as operators on rows.
        constants: Nodes that prepare constants, by what they give; see `split_constants`.
        types: Returns the onnx.TensorProto type of a tensor.
        block: Channels in a block of the blocked layout; None without one.
    """

    def __init__(
        self,
        source: Any,
        graph: RowGraph,
        constants: Mapping[str, Any],
        types: Callable[[str], int],
        block: int | None = None,
    ) -> None:
        self._source, self._graph, self._constants = source, graph, constants
        self._types, self._block = types, block
        self._initializers = {tensor.name: tensor for tensor in source.graph.initializer}
        opsets = {entry.domain.replace("ai.onnx", ""): entry.version for entry in source.opset_import}
        self._opset = opsets.get("", 1)

    def model(self, piece: Piece, wanted: Ranges, name: str = "piece") -> Any:
        """Return a piece as an onnx.ModelProto, whose weights are entries of the whole model's file or outside it.

        Args:
            piece: It.
            wanted: What it gives, as `plan_piece` was told.
            name: Of the graph.
        """
        import onnx

        made = _Nodes(self._graph, piece, self._opset, self._block)
        for at, rows in piece.rows.items():
            made.add(self._graph.nodes[at], rows)
        for output, rows in wanted.items():
            made.give(output, rows)
        model = onnx.ModelProto(ir_version=self._source.ir_version, producer_name="splitload")
        model.opset_import.extend(self._source.opset_import)
        model.functions.extend(self._source.functions)
        graph = model.graph
        graph.name = name
        read = dict.fromkeys(each for node in made.nodes for each in node_inputs(node))
        makers = self._makers(read)
        graph.node.extend([*makers, *made.nodes])
        graph.input.extend(self._value(each, rows) for each, rows in piece.needed.items())
        graph.output.extend(self._value(each, rows, made.outputs[each]) for each, rows in wanted.items())
        read.update(dict.fromkeys(each for node in makers for each in node_inputs(node)))
        graph.initializer.extend(self._initializers[each] for each in read if each in self._initializers)
        graph.initializer.extend(made.constants)
        return model

    def _makers(self, read: Iterable[str]) -> list[Any]:
        """Return the nodes that prepare constants, in order."""
        needed, queue = dict[str, None](), list(read)
        while queue:
            name = queue.pop()
            if name in self._constants and name not in needed:
                needed[name] = None
                queue.extend(node_inputs(self._constants[name]))
        chosen = {id(self._constants[name]) for name in needed}
        every = {id(node): node for node in self._constants.values()}
        return [node for key, node in every.items() if key in chosen]

    def _value(self, name: str, rows: Range | None, called: str | None = None) -> Any:
        import onnx

        shape: list[int] | None = list(self._graph.shapes[name])
        if name in self._graph.blocked:
            shape = None  # which the layout has none of that the format could tell
        elif rows is not None and shape is not None:
            shape[self._graph.axes[name]] = rows.size
        return onnx.helper.make_tensor_value_info(called or name, self._types(name), shape)


class _Nodes:
    """The nodes of a piece, one after the other.

    Args:
        graph: The whole.
        piece: What is written.
        opset: Version of ONNX's operators.
        block: Channels in a block.

    Attributes:
        nodes: So far.
        constants: Of type onnx.TensorProto, that they read and the whole has not.
        outputs: What the tensors that are given are called.
    """

    def __init__(self, graph: RowGraph, piece: Piece, opset: int, block: int | None) -> None:
        self._graph, self._opset, self._block = graph, opset, block
        self._there: dict[str, Range | None] = {**piece.needed, **piece.made}
        self._sliced: dict[tuple[str, Range], str] = {}
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.outputs: dict[str, str] = {}

    def give(self, name: str, rows: Range | None) -> None:
        """Have some rows of a tensor that is made be an output."""
        axis = self._graph.axes.get(name)
        self.outputs[name] = name if rows is None or axis is None else self._rows(name, axis, rows)

    def add(self, node: RowNode, rows: Range | None) -> None:
        """Have an operator compute some rows, or everything."""
        import onnx

        proto = onnx.NodeProto()
        proto.CopyFrom(node.proto)
        if rows is None or node.rows is None:
            self.nodes.append(proto)
            return
        found = {place: self._read(proto, place, need, rows) for place, need in node.rows.needs.items()}
        if self._is_whole(node, rows, found):
            self.nodes.append(proto)
            return
        first = min(found)
        self._adapt(proto, node, rows, *found[first], node.rows.needs[first])

    def _is_whole(self, node: RowNode, rows: Range, found: Mapping[int, tuple[Range, int, int]]) -> bool:
        """Return whether an operator gives and reads all that it does in the whole graph."""
        assert node.rows is not None  # noqa: S101
        outputs = [shape for shape in node.operation.outputs if shape is not None]
        inputs = [(range_, node.operation.inputs[at], node.rows.needs[at]) for at, (range_, _, _) in found.items()]
        return all(rows == (0, shape[node.rows.axis]) for shape in outputs) and all(
            range_ == (0, (shape or ())[need.axis]) for range_, shape, need in inputs
        )

    def _read(self, proto: Any, place: int, need: Need, rows: Range) -> tuple[Range, int, int]:
        """Have an input be the rows that rows of the output need; return them, and what they lack at both ends."""
        name = proto.input[place]
        shape = self._graph.shapes[name]
        found = clipped(need.window, rows, shape[need.axis])
        proto.input[place] = self._rows(name, need.axis, found[0])
        return found

    def _adapt(self, proto: Any, node: RowNode, rows: Range, read: Range, before: int, behind: int, need: Need) -> None:
        """Have an operator give just some rows of those that it reads."""
        kind, axis, window = proto.op_type, node.rows.axis if node.rows else 0, need.window
        shape = list(node.operation.outputs[0] or ())
        made = rows  # what the operator then gives
        if kind in _KERNELS and need.axis > 1:
            self._set_pads(proto, node, need.axis, before, behind)
        elif kind == "ConvTranspose" and need.axis > 1:
            size, stride, dilation, pad = kernel_of(node.operation, need.axis)
            self._set_pads(proto, node, need.axis, 0, 0)
            extra = (node.operation.attributes.get("output_padding") or [0] * len(shape))[need.axis - 2]
            start = read.start * stride - pad
            made = Range(start, start + (read.size - 1) * stride + dilation * (size - 1) + 1 + extra)
        elif kind in _SCALED:
            made = rows if window == SAME else self._scaled(node, need, read)
            if kind == "Resize" and len(proto.input) > 3 and proto.input[3]:
                shape[axis] = made.size
                proto.input[3] = self._constant(shape)
        elif kind in _RESHAPES:
            made = rows if window.per == 1 else Range(read.start * window.per, read.stop * window.per)
            shape[axis] = made.size
            proto.op_type = "Reshape"
            del proto.attribute[:]
            proto.input[:] = [proto.input[0], self._constant(shape)]
        elif kind == "Expand":
            shape[axis] = rows.size
            proto.input[1] = self._constant(shape)
        elif kind == "Slice":
            self._slice_other_axes(proto, node, need.axis)
        elif kind == "Pad":
            self._set_padding(proto, node, need.axis, before, behind)
        if made == rows:
            self.nodes.append(proto)
            return
        for place, name in enumerate(proto.output):
            if name:
                proto.output[place] = f"{name} {made.start}:{made.stop}"
        self.nodes.append(proto)
        cut = Range(rows.start - made.start, rows.stop - made.start)
        for name, whole in zip(node.proto.output, proto.output, strict=True):
            if name:
                self._slice(whole, name, axis, cut, shape, made.size, is_blocked=name in self._graph.blocked)

    def _scaled(self, node: RowNode, need: Need, read: Range) -> Range:
        """Return which rows come of the rows that are read of an image that becomes larger or smaller."""
        shape, out = node.operation.inputs[0] or (), node.operation.outputs[0] or ()
        size, made = shape[need.axis], out[node.rows.axis if node.rows else 0]
        return Range(read.start * made // size, read.stop * made // size)

    def _set_pads(self, proto: Any, node: RowNode, axis: int, before: int, behind: int) -> None:
        """Set how many rows of padding come before and behind an image."""
        shape, out = node.operation.inputs[0] or (), node.operation.outputs[0] or ()
        count, values = len(shape) - 2, node.operation.attributes
        pads = list(values.get("pads") or [0] * 2 * count)
        if values.get("auto_pad", b"NOTSET") not in (b"NOTSET", b""):
            for at in range(count):
                size, stride, dilation, first = kernel_of(node.operation, at + 2)
                needed = (out[at + 2] - 1) * stride + dilation * (size - 1) + 1 - shape[at + 2]
                pads[at], pads[at + count] = first, max(needed - first, 0)
        pads[axis - 2], pads[axis - 2 + count] = before, behind
        _set(proto, "auto_pad", None)
        _set(proto, "pads", pads)

    def _set_padding(self, proto: Any, node: RowNode, axis: int, before: int, behind: int) -> None:
        """Set how many rows a Pad puts before and behind."""
        pads = node.operation.integers("pads", 1)
        assert pads is not None  # noqa: S101 - the rule asks for them
        pads[axis], pads[axis + len(pads) // 2] = before, behind
        if self._opset >= _LISTS_AS_INPUTS["Pad"]:
            proto.input[1] = self._constant(pads)
        else:
            _set(proto, "pads", pads)

    def _slice_other_axes(self, proto: Any, node: RowNode, axis: int) -> None:
        """Have a Slice leave the rows alone, which are those that it takes."""
        operation = node.operation
        starts, ends = operation.integers("starts", 1), operation.integers("ends", 2)
        assert starts is not None and ends is not None  # noqa: S101 - the rule asks for them
        axes = operation.integers("axes", 3) or list(range(len(starts)))
        steps = operation.integers("", 4) or [1] * len(starts)
        rank = len(operation.inputs[0] or ())
        kept = [each for each in zip(starts, ends, axes, steps, strict=True) if each[2] % rank != axis]
        lists = [list(each) for each in zip(*kept, strict=True)]
        del proto.attribute[:]
        proto.input[:] = proto.input[:1]
        if not kept:
            proto.op_type = "Identity"
        elif self._opset >= _LISTS_AS_INPUTS["Slice"]:
            proto.input.extend(map(self._constant, lists))
        else:
            for name, values in zip(("starts", "ends", "axes"), lists, strict=False):
                _set(proto, name, values)

    def _rows(self, name: str, axis: int, wanted: Range) -> str:
        """Return what some rows of a tensor are called, which are cut out unless it is just those."""
        shape = self._graph.shapes[name]
        there = self._there.get(name) or Range(0, shape[axis])
        if there == wanted:
            return name
        if (name, wanted) not in self._sliced:
            called = f"{name} {wanted.start}:{wanted.stop}"
            rows = Range(wanted.start - there.start, wanted.stop - there.start)
            is_blocked = name in self._graph.blocked
            self._slice(name, called, axis, rows, list(shape), there.size, is_blocked=is_blocked)
            self._sliced[name, wanted] = called
        return self._sliced[name, wanted]

    def _slice(
        self, source: str, target: str, axis: int, rows: Range, shape: list[int], size: int, *, is_blocked: bool
    ) -> None:
        """Cut rows out of a tensor.

        Args:
            source: It.
            target: What they are called.
            axis: Along which they lie.
            rows: Which, counted from the tensor's first one.
            shape: Of the tensor; the size of its axis does not count.
            size: How many rows it has.
            is_blocked: Whether it is in blocks of channels: then its shape says nothing of the order of its elements.
        """
        if axis == 0 or not is_blocked:
            self._cut(source, target, axis, rows)
            return
        assert self._block is not None  # noqa: S101 - there is no such tensor without
        lines = [shape[0] * shape[1] // self._block * math.prod(shape[2:axis]), size]
        flat, cut = f"{target} flat", f"{target} cut"
        rest = math.prod(shape[axis + 1 :]) * self._block
        self._node("Reshape", [source, self._constant([*lines, rest])], flat)
        self._cut(flat, cut, 1, rows)
        self._node("Reshape", [cut, self._constant([*shape[:axis], rows.size, *shape[axis + 1 :]])], target)

    def _cut(self, source: str, target: str, axis: int, rows: Range) -> None:
        lists = [rows.start], [rows.stop], [axis]
        if self._opset >= _LISTS_AS_INPUTS["Slice"]:
            self._node("Slice", [source, *map(self._constant, lists)], target)
        else:
            starts, ends, axes = lists
            self._node("Slice", [source], target, starts=starts, ends=ends, axes=axes)

    def _node(self, kind: str, inputs: list[str], output: str, **values: Any) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **values))

    def _constant(self, values: list[int]) -> str:
        """Return the name of a list of integers."""
        from onnx import helper

        name = "ints " + ",".join(map(str, values))
        if not any(each.name == name for each in self.constants):
            self.constants.append(helper.make_tensor(name, _INT64, [len(values)], values))
        return name


def _set(proto: Any, name: str, value: Any) -> None:
    """Set an attribute of a node; None takes it away."""
    from onnx import helper

    for at, each in enumerate(proto.attribute):
        if each.name == name:
            del proto.attribute[at]
            break
    if value is not None:
        proto.attribute.append(helper.make_attribute(name, value))

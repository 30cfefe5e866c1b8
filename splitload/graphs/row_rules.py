"""Which rows of what an operator reads the rows of what it gives need: a rule for each kind of operator.

An operator without a rule needs all that it reads.

Source: the operators' definitions at https://onnx.ai/onnx/operators/, and onnxruntime's `nchwc_transformer.cc` for the
operators on blocks of channels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from splitload.graphs import row_image_rules as images
from splitload.graphs.row_windows import Need, Operation, Rows, Rule, Window, first_input
from splitload.graphs.tidy import DOMAIN as BLOCKED


def rows_of(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Return how the rows of an operator's outputs depend on those of its inputs; None where each needs everything.

    Args:
        operation: It.
        axes: The split axis of each input that has one, by position.
    """
    rule = _RULES.get((operation.domain.replace("ai.onnx", ""), operation.kind))
    if rule is None or not axes or any(shape is None for shape in operation.outputs[:1]):
        return None
    found = rule(operation, axes)
    if found is None or not any(position in found.needs for position in axes):
        return None
    return found


def _elementwise(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows of the output need the same ones of each input that has more than one there."""
    out = operation.outputs[0]
    assert out is not None  # noqa: S101
    found = set()
    for position, axis in axes.items():
        shape = operation.inputs[position]
        assert shape is not None  # noqa: S101
        found.add(axis + len(out) - len(shape))
    if len(found) != 1 or (target := found.pop()) < 0:
        return None
    needs = {}
    for position, shape in enumerate(operation.inputs):
        if shape is None or (axis := target - len(out) + len(shape)) < 0 or shape[axis] == 1:
            continue
        if shape[axis] != out[target]:
            return None
        needs[position] = Need(axis)
    return Rows(target, needs)


def _matmul(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows of a product need those of its left side, columns those of the right one, matrices of a batch themselves."""
    left, right, out = operation.inputs[0], operation.inputs[1], operation.outputs[0]
    if left is None or right is None or out is None or min(len(left), len(right)) < 2:
        return None
    rank = len(out)
    found = {position: axis + rank - len(operation.inputs[position] or ()) for position, axis in axes.items()}
    batches = {axis for axis in found.values() if axis < rank - 2}
    if batches:
        (target, *others) = batches
        if others or any(axis >= rank - 2 for axis in found.values()):
            return None
        needs = {}
        for position, shape in enumerate((left, right)):
            axis = target - rank + len(shape)
            if axis >= 0 and shape[axis] != 1:
                needs[position] = Need(axis)
        return Rows(target, needs)
    if found.get(0) == rank - 2:
        return Rows(rank - 2, {0: Need(len(left) - 2)})
    if 0 not in found and found.get(1) == rank - 1:
        return Rows(rank - 1, {1: Need(len(right) - 1)})
    return None


def _fused_matmul(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    values = operation.attributes
    turned = ("transA", "transB", "transBatchA", "transBatchB")
    if values.get("transB") and not any(values.get(name) for name in turned if name != "transB"):
        if axes.get(0) is None or axes[0] != len(operation.inputs[0] or ()) - 2:
            return None
        return _matmul(operation, {0: axes[0]})
    return None if any(values.get(name) for name in turned) else _matmul(operation, axes)


def _gemm(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows of the output need those of the left side, and of what is added."""
    axis = 1 if operation.attributes.get("transA") else 0
    if axes.get(0) != axis or 1 in axes or axes.get(2, 0) != 0:
        return None
    needs = {0: Need(axis)}
    added = operation.inputs[2] if operation.is_given(2) else None
    if added is not None and len(added) == 2 and added[0] != 1:
        needs[2] = Need(0)
    return Rows(0, needs)


def _normalised(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows before the axes that are normalised over need themselves, and those of what is added before."""
    rank = len(operation.inputs[0] or ())
    first = int(operation.attributes.get("axis", -1)) % rank
    found = set(axes.values())
    if len(found) != 1 or (axis := found.pop()) >= first:
        return None
    added = 2 if operation.kind == "SkipLayerNormalization" else 1  # inputs that must have all axes
    if any(len(operation.inputs[at] or ()) != rank for at in {*range(added), *axes}):
        return None
    needs = {
        at: Need(axis)
        for at, shape in enumerate(operation.inputs)
        if shape is not None and len(shape) == rank and shape[axis] != 1
    }
    return Rows(axis, needs)


def _softmax(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows need themselves unless they are what is summed over; before version 13 all axes from that one on are."""
    rank, is_new = len(operation.inputs[0] or ()), operation.opset >= 13
    axis = int(operation.attributes.get("axis", -1 if is_new else 1)) % rank
    split = axes.get(0, axis)
    return first_input(operation, axes, split != axis if is_new else split < axis)


def _along(default: int) -> Rule:
    """Return the rule of operators that look along the axis in their attribute `axis`, and give the same shape."""

    def rule(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
        axis = int(operation.attributes.get("axis", default)) % len(operation.inputs[0] or (1,))
        return first_input(operation, axes, axes.get(0) != axis)

    return rule


def _cumulative(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    along = operation.integers("", 1)
    rank = len(operation.inputs[0] or ())
    return first_input(operation, axes, bool(along) and axes.get(0) not in [each % rank for each in along or ()])


def _reduced(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows need themselves unless they are what is reduced over."""
    shape = operation.inputs[0]
    if shape is None or set(axes) != {0}:
        return None
    if operation.is_given(1) and 1 not in operation.constants:
        return None
    if operation.kind in ("ArgMax", "ArgMin"):
        along: list[int] | None = [int(operation.attributes.get("axis", 0))]
    else:
        along = operation.integers("axes", 1)
    if not along:
        return Rows(axes[0], {0: Need(axes[0])}) if operation.attributes.get("noop_with_empty_axes") else None
    gone = {each % len(shape) for each in along}
    if axes[0] in gone:
        return None
    keeps = operation.attributes.get("keepdims", 1)
    return Rows(axes[0] - (0 if keeps else sum(each < axes[0] for each in gone)), {0: Need(axes[0])})


def _concat(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows need themselves where what is joined lies side by side."""
    found, rank = set(axes.values()), len(operation.outputs[0] or ())
    if len(found) != 1 or (axis := found.pop()) == int(operation.attributes["axis"]) % rank:
        return None
    return Rows(axis, {at: Need(axis) for at, shape in enumerate(operation.inputs) if shape is not None})


def _sliced(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows need themselves, or those as many further on as the slice begins at, if it takes one after the other."""
    shape = operation.inputs[0]
    starts, ends = operation.integers("starts", 1), operation.integers("ends", 2)
    if shape is None or starts is None or ends is None or set(axes) != {0}:
        return None
    if (operation.is_given(3) and 3 not in operation.constants) or (
        operation.is_given(4) and 4 not in operation.constants
    ):
        return None
    along = operation.integers("axes", 3) or list(range(len(starts)))
    steps = operation.integers("", 4) or [1] * len(starts)
    for axis, start, step in zip(along, starts, steps, strict=True):
        if axis % len(shape) == axes[0]:
            if step != 1:
                return None
            begin = min(start, shape[axes[0]]) if start >= 0 else max(start + shape[axes[0]], 0)
            return Rows(axes[0], {0: Need(axes[0], Window(first=begin, last=begin))})
    return Rows(axes[0], {0: Need(axes[0])})


def _padded(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows need themselves, as many before as are put there; only padding of a constant can be put at either end."""
    shape, pads = operation.inputs[0], operation.integers("pads", 1)
    if shape is None or pads is None or set(axes) != {0} or operation.is_given(3):
        return None
    before, behind = pads[axes[0]], pads[axes[0] + len(shape)]
    if (before, behind) != (0, 0) and (
        operation.attributes.get("mode", b"constant") != b"constant" or min(before, behind) < 0
    ):
        return None
    return Rows(axes[0], {0: Need(axes[0], Window(first=-before, last=-before))})


def _gathered(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows need themselves where whole rows are picked apart; rows of indices need themselves in any table."""
    table, indices = operation.inputs[0], operation.inputs[1]
    if table is None or indices is None:
        return None
    along = int(operation.attributes.get("axis", 0)) % len(table)
    if set(axes) == {1}:
        return Rows(along + axes[1], {1: Need(axes[1])})
    if set(axes) == {0} and axes[0] != along:
        return Rows(axes[0] + (len(indices) - 1 if axes[0] > along else 0), {0: Need(axes[0])})
    return None


def _transpose(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    rank = len(operation.inputs[0] or ())
    order = [int(each) for each in operation.attributes.get("perm") or reversed(range(rank))]
    return Rows(order.index(axes[0]), {0: Need(axes[0])})


def _reshaped(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    """Rows stay together where as many elements lie before the axis as before one of the output, and they divide."""
    shape, out = operation.inputs[0], operation.outputs[0]
    if shape is None or out is None or set(axes) != {0} or 0 in shape:
        return None
    before, size = math.prod(shape[: axes[0]]), shape[axes[0]]
    for axis in range(len(out)):
        if out[axis] == 1 or math.prod(out[:axis]) != before:
            continue
        if size % out[axis] == 0:
            rows = size // out[axis]
            return Rows(axis, {0: Need(axes[0], Window(rows, last=rows - 1))})
        if out[axis] % size == 0:
            return Rows(axis, {0: Need(axes[0], Window(1, out[axis] // size))})
    return None


def _expanded(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    if set(axes) != {0}:
        return None
    return _elementwise(Operation("Expand", "", 0, {}, operation.inputs[:1], operation.outputs), axes)


def _tiled(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    repeats = operation.integers("", 1)
    return first_input(operation, axes, repeats is not None and repeats[axes.get(0, 0)] == 1)


def _split(operation: Operation, axes: Mapping[int, int]) -> Rows | None:
    axis = int(operation.attributes.get("axis", 0)) % len(operation.inputs[0] or (1,))
    return first_input(operation, axes, axes.get(0) != axis)


_ELEMENTWISE = (
    "Abs", "Acos", "Acosh", "Add", "And", "Asin", "Asinh", "Atan", "Atanh", "BitShift", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "Cast", "Ceil", "Celu", "Clip", "Cos", "Cosh", "Div", "Dropout", "Elu", "Equal", "Erf",
    "Exp", "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "IsInf", "IsNaN",
    "LeakyRelu", "Less", "LessOrEqual", "Log", "Max", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "Not", "Or", "PRelu",
    "Pow", "Reciprocal", "Relu", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign",
    "Sqrt", "Sub", "Sum", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Where", "Xor",
)  # fmt: skip
_REDUCTIONS = (
    "ArgMax", "ArgMin", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean",
    "ReduceMin", "ReduceProd", "ReduceSum", "ReduceSumSquare",
)  # fmt: skip
_MICROSOFT = "com.microsoft"

_RULES: Mapping[tuple[str, str], Rule] = {
    **{("", kind): _elementwise for kind in _ELEMENTWISE},
    **{(_MICROSOFT, kind): _elementwise for kind in ("BiasGelu", "FastGelu", "Gelu", "QuickGelu")},
    **{("", kind): _reduced for kind in _REDUCTIONS},
    **{("", kind): images.windowed for kind in ("AveragePool", "Conv", "LpPool", "MaxPool")},
    **{(BLOCKED, kind): images.windowed for kind in ("AveragePool", "Conv", "MaxPool")},
    **{("", kind): images.over_images for kind in ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool")},
    **{("", kind): images.batch_alone for kind in ("GroupNormalization", "InstanceNormalization")},
    **{("", kind): _normalised for kind in ("LayerNormalization", "RMSNormalization")},
    **{("", kind): _softmax for kind in ("Hardmax", "LogSoftmax", "Softmax")},
    **{("", kind): _reshaped for kind in ("Flatten", "Reshape", "Squeeze", "Unsqueeze")},
    ("", "BatchNormalization"): images.batch_norm,
    ("", "Concat"): _concat,
    ("", "ConvTranspose"): images.transposed,
    ("", "CumSum"): _cumulative,
    ("", "DepthToSpace"): images.depth_to_space,
    ("", "Expand"): _expanded,
    ("", "Gather"): _gathered,
    ("", "Gemm"): _gemm,
    ("", "LRN"): images.batch_norm,
    ("", "LpNormalization"): _along(-1),
    ("", "MatMul"): _matmul,
    ("", "Pad"): _padded,
    ("", "Resize"): images.resize,
    ("", "Slice"): _sliced,
    ("", "SpaceToDepth"): images.space_to_depth,
    ("", "Split"): _split,
    ("", "Tile"): _tiled,
    ("", "TopK"): _along(-1),
    ("", "Transpose"): _transpose,
    (_MICROSOFT, "FusedConv"): images.windowed,
    (_MICROSOFT, "FusedGemm"): _gemm,
    (_MICROSOFT, "FusedMatMul"): _fused_matmul,
    (_MICROSOFT, "LayerNormalization"): _normalised,
    (_MICROSOFT, "SkipLayerNormalization"): _normalised,
    (BLOCKED, "GlobalAveragePool"): images.over_images,
    (BLOCKED, "GlobalMaxPool"): images.over_images,
    (BLOCKED, "ReorderInput"): images.into_blocks,
    (BLOCKED, "ReorderOutput"): images.out_of_blocks,
    (BLOCKED, "Upsample"): images.upsample_blocks,
}

"""ONNX operators as torch computes them. Imports torch, and is imported only where a graph is run in it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import helper, numpy_helper
from torch.nn import functional

from splitload.base.errors import ModelError

Run = Callable[..., Any]


def _numbers(tensor: Any) -> list[int]:
    return [int(value) for value in np.atleast_1d(np.asarray(tensor))]


def _constant(settings: dict[str, Any]) -> Any:
    value = settings.get("value")
    return torch.from_numpy(
        np.array(numpy_helper.to_array(value) if value is not None else next(iter(settings.values())))
    )


def _reduce(kind: Callable[..., Any]) -> Run:
    def run(settings: dict[str, Any], x: Any, axes: Any = None) -> Any:
        wanted = _numbers(axes) if axes is not None else list(settings.get("axes", range(x.ndim)))
        return kind(x, dim=wanted, keepdim=bool(settings.get("keepdims", 1)))

    return run


def _reshape(settings: dict[str, Any], x: Any, shape: Any) -> Any:
    sizes = _numbers(shape) if shape.numel() else []
    if not settings.get("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return x.reshape(sizes)


def _slices(_: dict[str, Any], x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    first, last = _numbers(starts), _numbers(ends)
    along = _numbers(axes) if axes is not None else range(len(first))
    strides = _numbers(steps) if steps is not None else [1] * len(first)
    for start, end, axis, step in zip(first, last, along, strides, strict=True):
        # an end before the first element is one below minus the size, as Python counts too
        picked = range(x.shape[axis])[start:end:step]
        x = x.index_select(axis, torch.tensor(picked, dtype=torch.int64))
    return x


def _split(settings: dict[str, Any], x: Any, sizes: Any = None) -> Any:
    axis = settings.get("axis", 0)
    return x.split(_numbers(sizes), axis) if sizes is not None else x.chunk(settings["num_outputs"], axis)


def _padded(x: Any, settings: dict[str, Any], kernel: Any, value: float) -> Any:
    """Pad before and behind; windows that slide in torch pad the same on both sides."""
    rank = x.ndim - 2
    pads = settings.get("pads", [0] * (2 * rank))
    automatic = settings.get("auto_pad", b"NOTSET")
    if automatic in (b"SAME_UPPER", b"SAME_LOWER"):
        pads = [0] * (2 * rank)
        for axis in range(rank):
            stride = settings.get("strides", [1] * rank)[axis]
            wide = (kernel[axis] - 1) * settings.get("dilations", [1] * rank)[axis] + 1
            total = max(0, (-(-x.shape[axis + 2] // stride) - 1) * stride + wide - x.shape[axis + 2])
            less, more = total // 2, total - total // 2
            pads[axis], pads[axis + rank] = (less, more) if automatic == b"SAME_UPPER" else (more, less)
    order = [pads[axis + side * rank] for axis in reversed(range(rank)) for side in (0, 1)]
    return functional.pad(x, order, value=value) if any(order) else x


def _conv(settings: dict[str, Any], x: Any, kernel: Any, bias: Any = None) -> Any:
    rank = x.ndim - 2
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    strides, dilations = settings.get("strides", 1), settings.get("dilations", 1)
    wide = _padded(x, settings, kernel.shape[2:], 0.0)
    return run(wide, kernel, bias, strides, 0, dilations, settings.get("group", 1))


def _conv_transpose(settings: dict[str, Any], x: Any, kernel: Any, bias: Any = None) -> Any:
    rank = x.ndim - 2
    run = (functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d)[rank - 1]
    if settings.get("output_shape") or settings.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise ModelError("the operator ConvTranspose cannot be run in torch with the sizes of its output given")
    group, dilations = settings.get("group", 1), settings.get("dilations", 1)
    wide = run(x, kernel, None, settings.get("strides", 1), 0, 0, group, dilations)
    pads, more = settings.get("pads", [0] * (2 * rank)), settings.get("output_padding", [0] * rank)
    wide = functional.pad(wide, [size for axis in reversed(range(rank)) for size in (0, more[axis])])
    if bias is not None:
        wide = wide + bias.reshape(-1, *[1] * rank)
    inner = [slice(pads[axis], wide.shape[axis + 2] - pads[axis + rank]) for axis in range(rank)]
    place = (slice(None), slice(None), *inner)
    return wide[place]


def _max_pool(settings: dict[str, Any], x: Any) -> Any:
    """With where the largest elements stood in the whole value, as ONNX counts them."""
    kernel, rank = settings["kernel_shape"], x.ndim - 2
    run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
    settings_ = (kernel, settings.get("strides", [1] * rank), 0, settings.get("dilations", 1))
    wide = _padded(x, settings, kernel, float("-inf"))
    ceil = bool(settings.get("ceil_mode", 0))
    largest, where = run(wide, *settings_, ceil, return_indices=True)
    numbers = torch.arange(x.numel(), dtype=torch.float64).reshape(x.shape)
    flat = _padded(numbers, settings, kernel, -1.0).flatten(2).gather(2, where.flatten(2))
    return largest, flat.reshape(where.shape).long()


def _pad(settings: dict[str, Any], x: Any, pads: Any, value: Any = None, axes: Any = None) -> Any:
    if settings.get("mode", b"constant") != b"constant" or axes is not None:
        raise ModelError("the operator Pad can be run in torch only with a constant, on all axes")
    sizes = _numbers(pads)
    order = [sizes[axis + side * x.ndim] for axis in reversed(range(x.ndim)) for side in (0, 1)]
    return functional.pad(x, order, value=0.0 if value is None else float(value))


def _one_hot(settings: dict[str, Any], places: Any, depth: Any, values: Any) -> Any:
    made = functional.one_hot(places, int(depth.reshape(-1)[0])).movedim(-1, settings.get("axis", -1))
    return torch.where(made.bool(), values[1], values[0])


def _scatter(settings: dict[str, Any], x: Any, places: Any, parts: Any) -> Any:
    axis = settings.get("axis", 0)
    places = torch.where(places < 0, places + x.shape[axis], places)
    if settings.get("reduction", b"none") == b"add":
        return x.scatter_add(axis, places, parts)
    return x.scatter(axis, places, parts)


def _average_pool(settings: dict[str, Any], x: Any) -> Any:
    """Sums over windows, divided by what counts: the value, and the padding where that is asked for.

    In ceil mode the last window may overhang, if it begins before the padding; what lies behind that never counts.
    """
    kernel, rank = settings["kernel_shape"], x.ndim - 2
    run = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    strides = settings.get("strides", [1] * rank)
    if any(each != 1 for each in settings.get("dilations", [1])):
        raise ModelError("the operator AveragePool cannot be run in torch with dilations")
    wide = _padded(x, settings, kernel, 0.0)
    counted = _padded(torch.ones_like(x), settings, kernel, float(bool(settings.get("count_include_pad", 0))))
    pads, over = settings.get("pads", [0] * (2 * rank)), []
    for axis in reversed(range(rank)):
        size, step = wide.shape[axis + 2], strides[axis]
        begin = ((size - kernel[axis]) // step + 1) * step  # of a window behind the last whole one
        overhangs = settings.get("ceil_mode", 0) and begin < size - pads[axis + rank]
        over += [0, begin + kernel[axis] - size if overhangs else 0]
    return run(functional.pad(wide, over), kernel, strides) / run(functional.pad(counted, over), kernel, strides)


def _batch_norm(settings: dict[str, Any], x: Any, scale: Any, offset: Any, mean: Any, variance: Any) -> Any:
    return functional.batch_norm(x, mean, variance, scale, offset, False, 0.0, settings.get("epsilon", 1e-5))


def _layer_norm(settings: dict[str, Any], x: Any, scale: Any, offset: Any = None) -> Any:
    axis = settings.get("axis", -1) % x.ndim
    normal = functional.layer_norm(x, x.shape[axis:], None, None, settings.get("epsilon", 1e-5))
    return normal * scale + (0 if offset is None else offset)


def _gemm(settings: dict[str, Any], a: Any, b: Any, c: Any = None) -> Any:
    left, right = a.T if settings.get("transA") else a, b.T if settings.get("transB") else b
    made = settings.get("alpha", 1.0) * (left @ right)
    return made if c is None else made + settings.get("beta", 1.0) * c


def _gather(settings: dict[str, Any], x: Any, places: Any) -> Any:
    axis = settings.get("axis", 0) % x.ndim
    places = places.long()
    flat = torch.where(places < 0, places + x.shape[axis], places).reshape(-1)
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


def _cast(settings: dict[str, Any], x: Any) -> Any:
    kind = helper.tensor_dtype_to_np_dtype(settings["to"])
    return x.to(torch.from_numpy(np.empty(0, dtype=kind)).dtype)


def _unsqueeze(_: dict[str, Any], x: Any, axes: Any) -> Any:
    wanted = _numbers(axes)
    rank = x.ndim + len(wanted)
    for axis in sorted(each % rank for each in wanted):
        x = x.unsqueeze(axis)
    return x


def _clip(settings: dict[str, Any], x: Any, low: Any = None, high: Any = None) -> Any:
    low, high = (settings.get("min") if low is None else low), (settings.get("max") if high is None else high)
    return x.clamp(low, high) if low is not None or high is not None else x


def _gelu(settings: dict[str, Any], x: Any) -> Any:
    return functional.gelu(x, approximate=settings.get("approximate", b"none").decode())


def _pixels(settings: dict[str, Any], x: Any) -> Any:
    size = settings["blocksize"]
    if settings.get("mode", b"DCR") == b"CRD":
        return functional.pixel_shuffle(x, size)
    samples, channels, height, width = x.shape
    parts = x.reshape(samples, size, size, channels // size**2, height, width)
    return parts.permute(0, 3, 4, 1, 5, 2).reshape(samples, channels // size**2, height * size, width * size)


def _instance_norm(settings: dict[str, Any], x: Any, scale: Any, offset: Any) -> Any:
    return functional.instance_norm(x, weight=scale, bias=offset, eps=settings.get("epsilon", 1e-5))


def _element(kind: Callable[..., Any]) -> Run:
    return lambda _, *inputs: kind(*inputs)


def _recurrent(kind: str, gates: list[int]) -> Run:
    """Return what runs an LSTM or a GRU.

    Args:
        kind: "LSTM" or "GRU".
        gates: For each gate in torch's order, its place in that of ONNX.
    """

    def run(
        settings: dict[str, Any], x: Any, weights: Any, recurrence: Any, bias: Any = None,
        lengths: Any = None, first: Any = None, cell: Any = None, peepholes: Any = None,
    ) -> Any:  # fmt: skip
        size, wide = settings["hidden_size"], len(gates) * settings["hidden_size"]
        directions = {b"forward": 1, b"bidirectional": 2}.get(settings.get("direction", b"forward"))
        others = {name for name, value in settings.items() if value} - {"direction", "hidden_size"}
        if (kind == "GRU") != ("linear_before_reset" in others) or others - {"linear_before_reset"}:
            raise ModelError(f"the operator {kind} cannot be run in torch with its attributes {sorted(settings)}")
        if lengths is not None or peepholes is not None or directions is None:
            raise ModelError(f"the operator {kind} cannot be run in torch backwards, with lengths or with peepholes")
        zeros = x.new_zeros(directions, x.shape[1], size)
        start, memory = (zeros if each is None else each for each in (first, cell))
        expected = [(directions, wide, x.shape[2]), (directions, wide, size), (directions, 2 * wide)]
        found = [weights.shape, recurrence.shape, expected[2] if bias is None else bias.shape]
        if found != expected or start.shape != zeros.shape or memory.shape != zeros.shape:
            # torch's own operator looks at no sizes, and reads past the end
            raise ModelError(f"the sizes of what the operator {kind} reads do not fit together")
        parts = []
        for number in range(directions):
            parts += [weights[number], recurrence[number], *(() if bias is None else bias[number].chunk(2))]
        flat = [torch.cat([part.split(size)[gate] for gate in gates]) for part in parts]
        others_ = (bias is not None, 1, 0.0, False, directions == 2, False)
        if kind == "LSTM":
            made, *last = torch.lstm(x, (start, memory), flat, *others_)
        else:
            made, *last = torch.gru(x, start, flat, *others_)
        return [made.reshape(*made.shape[:2], directions, size).transpose(1, 2), *last]

    return run


_PLAIN: dict[str, Callable[..., Any]] = {
    "Abs": torch.abs, "Add": torch.add, "And": torch.logical_and, "Div": torch.div, "Equal": torch.eq,
    "Erf": torch.erf, "Exp": torch.exp, "Greater": torch.gt, "GreaterOrEqual": torch.ge,
    "HardSwish": functional.hardswish, "Identity": lambda x: x, "IsNaN": torch.isnan,
    "Less": torch.lt, "LessOrEqual": torch.le,
    "Log": torch.log, "MatMul": torch.matmul, "Mul": torch.mul, "Neg": torch.neg, "Not": torch.logical_not,
    "Or": torch.logical_or, "PRelu": lambda x, slope: torch.where(x > 0, x, slope * x), "Pow": torch.pow,
    "Reciprocal": torch.reciprocal, "Relu": torch.relu, "Sigmoid": torch.sigmoid, "Sign": torch.sign,
    "Softplus": functional.softplus, "Sqrt": torch.sqrt, "Sub": torch.sub, "Sum": lambda *all_: sum(all_),
    "CastLike": lambda x, like: x.to(like.dtype),
    "Tanh": torch.tanh, "Where": torch.where, "Expand": lambda x, size: x + x.new_zeros(_numbers(size)),
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "Cos": torch.cos, "Max": lambda *all_: functools.reduce(torch.maximum, all_), "Mish": functional.mish,
    "Min": lambda *all_: functools.reduce(torch.minimum, all_), "Selu": torch.selu, "Sin": torch.sin,
    "Softsign": functional.softsign,
    "Tile": lambda x, times: x.repeat(_numbers(times)),
    "Shape": lambda x: torch.tensor(x.shape), "Size": lambda x: torch.tensor(x.numel()),
}  # fmt: skip
# What computes each operator: called with its attributes and its inputs, None where one is left out.
OPERATORS: dict[str, Run] = {name: _element(kind) for name, kind in _PLAIN.items()} | {
    "ArgMax": lambda settings, x: x.argmax(settings.get("axis", 0), bool(settings.get("keepdims", 1))),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": lambda settings, *parts: torch.cat(parts, settings["axis"]),
    "Constant": _constant,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": lambda _, x, *__: x,
    "DepthToSpace": _pixels,
    "Einsum": lambda settings, *parts: torch.einsum(settings["equation"].decode(), *parts),
    "GRU": _recurrent("GRU", [1, 0, 2]),
    "InstanceNormalization": _instance_norm,
    "LSTM": _recurrent("LSTM", [0, 2, 3, 1]),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMin": _reduce(torch.amin),
    "Elu": lambda settings, x: functional.elu(x, settings.get("alpha", 1.0)),
    "Flatten": lambda settings, x: x.reshape(int(np.prod(x.shape[: settings.get("axis", 1)])), -1),
    "Gather": _gather,
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": lambda settings, x: (settings.get("alpha", 0.2) * x + settings.get("beta", 0.5)).clamp(0, 1),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda settings, x: functional.leaky_relu(x, settings.get("alpha", 0.01)),
    "LogSoftmax": lambda settings, x: torch.log_softmax(x, settings.get("axis", -1)),
    "MaxPool": _max_pool,
    "OneHot": _one_hot,
    "Pad": _pad,
    "ReduceMean": _reduce(torch.mean),
    "ReduceSum": _reduce(torch.sum),
    "Reshape": _reshape,
    "ScatterElements": _scatter,
    "Slice": _slices,
    "Softmax": lambda settings, x: torch.softmax(x, settings.get("axis", -1)),
    "Split": _split,
    "Squeeze": lambda _, x, axes=None: x.squeeze() if axes is None else x.squeeze(tuple(_numbers(axes))),
    "Transpose": lambda settings, x: x.permute(settings.get("perm", [*reversed(range(x.ndim))])),
    "Unsqueeze": _unsqueeze,
}

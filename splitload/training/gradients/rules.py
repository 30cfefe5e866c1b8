"""Rules for operators that work on each element, or on matrices."""

from __future__ import annotations

import math
from typing import Any

from splitload.base.errors import ModelError
from splitload.graphs.proto import attributes
from splitload.training.gradients.tape import Gradients, rule


@rule("Identity")
def _identity(_: Gradients, node: Any, dy: str) -> list[str | None]:
    return [dy]


@rule("Dropout")
def _dropout(_: Gradients, node: Any, dy: str) -> list[str | None]:
    return [dy]  # nothing is dropped: the graph is that of inference


@rule("Cast")
def _cast(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.op("CastLike", dy, node.input[0])]


@rule("Add", "Sum")
def _add(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.like(dy, name, node.output[0]) if g.needs(name) else None for name in node.input]


@rule("Sub")
def _sub(g: Gradients, node: Any, dy: str) -> list[str | None]:
    first, second = node.input
    return [
        g.like(dy, first, node.output[0]) if g.needs(first) else None,
        g.like(g.op("Neg", dy), second, node.output[0]) if g.needs(second) else None,
    ]


@rule("Mul")
def _mul(g: Gradients, node: Any, dy: str) -> list[str | None]:
    first, second = node.input
    return [
        g.like(g.op("Mul", dy, second), first, node.output[0]) if g.needs(first) else None,
        g.like(g.op("Mul", dy, first), second, node.output[0]) if g.needs(second) else None,
    ]


@rule("Div")
def _div(g: Gradients, node: Any, dy: str) -> list[str | None]:
    first, second = node.input
    share = g.op("Div", dy, second)
    parts: list[str | None] = [g.like(share, first, node.output[0]) if g.needs(first) else None, None]
    if g.needs(second):
        parts[1] = g.like(g.op("Neg", g.op("Mul", share, node.output[0])), second, node.output[0])
    return parts


@rule("Pow")
def _pow(g: Gradients, node: Any, dy: str) -> list[str | None]:
    base, exponent = node.input
    if g.needs(exponent):
        raise ModelError(f"the exponent of '{node.name or node.output[0]}' cannot be trained")
    power = g.op("CastLike", exponent, base)
    slope = g.op("Mul", power, g.op("Pow", base, g.op("Sub", power, g.number(1.0))))
    return [g.like(g.op("Mul", dy, slope), base, node.output[0])]


@rule("Neg")
def _neg(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.op("Neg", dy)]


@rule("Sqrt")
def _sqrt(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.op("Div", g.op("Mul", dy, g.number(0.5)), node.output[0])]


@rule("Reciprocal")
def _reciprocal(g: Gradients, node: Any, dy: str) -> list[str | None]:
    y = node.output[0]
    return [g.op("Neg", g.op("Mul", dy, g.op("Mul", y, y)))]


@rule("Exp")
def _exp(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.op("Mul", dy, node.output[0])]


@rule("Log")
def _log(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.op("Div", dy, node.input[0])]


@rule("Abs")
def _abs(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.op("Mul", dy, g.op("Sign", node.input[0]))]


@rule("Erf")
def _erf(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x = node.input[0]
    bell = g.op("Exp", g.op("Neg", g.op("Mul", x, x)))
    return [g.op("Mul", dy, g.op("Mul", g.number(2 / math.sqrt(math.pi)), bell))]


@rule("Tanh")
def _tanh(g: Gradients, node: Any, dy: str) -> list[str | None]:
    y = node.output[0]
    return [g.op("Mul", dy, g.op("Sub", g.number(1.0), g.op("Mul", y, y)))]


@rule("Sigmoid")
def _sigmoid(g: Gradients, node: Any, dy: str) -> list[str | None]:
    y = node.output[0]
    return [g.op("Mul", dy, g.op("Mul", y, g.op("Sub", g.number(1.0), y)))]


@rule("Softplus")
def _softplus(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.op("Mul", dy, g.op("Sigmoid", node.input[0]))]


def _where_positive(g: Gradients, name: str) -> str:
    return g.op("Greater", name, g.number(0.0))


@rule("Relu")
def _relu(g: Gradients, node: Any, dy: str) -> list[str | None]:
    return [g.op("Where", _where_positive(g, node.input[0]), dy, g.number(0.0))]


@rule("LeakyRelu")
def _leaky_relu(g: Gradients, node: Any, dy: str) -> list[str | None]:
    alpha = attributes(node).get("alpha", 0.01)
    return [g.op("Where", _where_positive(g, node.input[0]), dy, g.op("Mul", dy, g.number(alpha)))]


@rule("Elu")
def _elu(g: Gradients, node: Any, dy: str) -> list[str | None]:
    alpha = g.number(attributes(node).get("alpha", 1.0))
    falling = g.op("Mul", dy, g.op("Add", node.output[0], alpha))
    return [g.op("Where", _where_positive(g, node.input[0]), dy, falling)]


@rule("PRelu")
def _prelu(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x, slope = node.input
    positive = _where_positive(g, x)
    parts: list[str | None] = [g.op("Where", positive, dy, g.op("Mul", dy, slope)), None]
    if g.needs(slope):
        falling = g.op("Where", positive, g.number(0.0), g.op("Mul", dy, x))
        parts[1] = g.like(falling, slope, node.output[0])
    return parts


def _inside(g: Gradients, name: str, low: float, high: float) -> str:
    return g.op("And", g.op("Greater", name, g.number(low)), g.op("Less", name, g.number(high)))


@rule("HardSigmoid")
def _hard_sigmoid(g: Gradients, node: Any, dy: str) -> list[str | None]:
    settings = attributes(node)
    slope = settings.get("alpha", 0.2)
    rising = g.op("Mul", dy, g.number(slope))
    return [g.op("Where", _inside(g, node.output[0], 0.0, 1.0), rising, g.number(0.0))]


@rule("HardSwish")
def _hard_swish(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x = node.input[0]
    middle = g.op("Add", g.op("Div", x, g.number(3.0)), g.number(0.5))
    high = g.op("Where", g.op("GreaterOrEqual", x, g.number(3.0)), g.number(1.0), g.number(0.0))
    return [g.op("Mul", dy, g.op("Where", _inside(g, x, -3.0, 3.0), middle, high))]


@rule("Clip")
def _clip(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x, *limits = node.input
    for kind, limit in zip(("GreaterOrEqual", "LessOrEqual"), limits, strict=False):
        if limit:
            dy = g.op("Where", g.op(kind, x, limit), dy, g.number(0.0))
    return [dy]


@rule("Gelu")
def _gelu(g: Gradients, node: Any, dy: str) -> list[str | None]:
    x = node.input[0]
    if attributes(node).get("approximate", b"none") == b"tanh":
        root = math.sqrt(2 / math.pi)
        square = g.op("Mul", x, x)
        inner = g.op("Mul", g.op("Mul", x, g.number(root)), _one_plus(g, g.op("Mul", square, g.number(0.044715))))
        tanh = g.op("Tanh", inner)
        steep = g.op("Mul", g.number(root), _one_plus(g, g.op("Mul", square, g.number(3 * 0.044715))))
        bell = g.op("Mul", g.op("Sub", g.number(1.0), g.op("Mul", tanh, tanh)), steep)
        slope = g.op("Mul", g.number(0.5), g.op("Add", _one_plus(g, tanh), g.op("Mul", x, bell)))
    else:
        share = g.op("Mul", g.number(0.5), _one_plus(g, g.op("Erf", g.op("Mul", x, g.number(math.sqrt(0.5))))))
        bell = g.op("Exp", g.op("Mul", g.number(-0.5), g.op("Mul", x, x)))
        slope = g.op("Add", share, g.op("Mul", x, g.op("Mul", g.number(1 / math.sqrt(2 * math.pi)), bell)))
    return [g.op("Mul", dy, slope)]


def _one_plus(g: Gradients, name: str) -> str:
    return g.op("Add", g.number(1.0), name)


@rule("Where")
def _where(g: Gradients, node: Any, dy: str) -> list[str | None]:
    condition, first, second = node.input
    return [
        None,
        g.like(g.op("Where", condition, dy, g.number(0.0)), first, node.output[0]) if g.needs(first) else None,
        g.like(g.op("Where", condition, g.number(0.0), dy), second, node.output[0]) if g.needs(second) else None,
    ]


@rule("Softmax")
def _softmax(g: Gradients, node: Any, dy: str) -> list[str | None]:
    y, axis = node.output[0], attributes(node).get("axis", -1)
    mean = g.op("ReduceSum", g.op("Mul", dy, y), g.sizes(axis), keepdims=1)
    return [g.op("Mul", y, g.op("Sub", dy, mean))]


@rule("LogSoftmax")
def _log_softmax(g: Gradients, node: Any, dy: str) -> list[str | None]:
    axis = attributes(node).get("axis", -1)
    total = g.op("ReduceSum", dy, g.sizes(axis), keepdims=1)
    return [g.op("Sub", dy, g.op("Mul", g.op("Exp", node.output[0]), total))]


@rule("MatMul")
def _matmul(g: Gradients, node: Any, dy: str) -> list[str | None]:
    left, right = node.input
    ranks = len(g.shape(left)), len(g.shape(right))
    if min(ranks) < 2:
        raise ModelError(f"MatMul (node '{node.name or node.output[0]}') by a vector has no gradient here")
    parts: list[str | None] = [None, None]
    if g.needs(left):
        parts[0] = g.like(g.op("MatMul", dy, g.transposed(right, ranks[1])), left, node.output[0])
    if g.needs(right) and ranks[1] == 2:  # one product over all rows, instead of one each and their sum
        rows, columns = g.static(right, first=0)
        parts[1] = g.op("Gemm", g.reshaped(left, -1, rows), g.reshaped(dy, -1, columns), transA=1)
    elif g.needs(right):
        parts[1] = g.like(g.op("MatMul", g.transposed(left, ranks[0]), dy), right, node.output[0])
    return parts


@rule("Gemm")
def _gemm(g: Gradients, node: Any, dy: str) -> list[str | None]:
    settings = attributes(node)
    alpha, beta = settings.get("alpha", 1.0), settings.get("beta", 1.0)
    across_a, across_b = settings.get("transA", 0), settings.get("transB", 0)
    a, b, *bias = node.input
    parts: list[str | None] = [None, None]
    if g.needs(a):
        parts[0] = (
            g.op("Gemm", b, dy, alpha=alpha, transA=across_b, transB=1)
            if across_a
            else g.op("Gemm", dy, b, alpha=alpha, transB=1 - across_b)
        )
    if g.needs(b):
        parts[1] = (
            g.op("Gemm", dy, a, alpha=alpha, transA=1, transB=across_a)
            if across_b
            else g.op("Gemm", a, dy, alpha=alpha, transA=1 - across_a)
        )
    if bias and g.needs(bias[0]):
        parts.append(g.like(g.op("Mul", dy, g.number(beta)), bias[0], node.output[0]))
    return parts


@rule("BatchNormalization")
def _batch_norm(g: Gradients, node: Any, dy: str) -> list[str | None]:
    """With frozen statistics: a scale and an offset for each channel."""
    settings = attributes(node)
    if settings.get("training_mode", 0):
        raise ModelError(f"'{node.name or node.output[0]}' is exported in training mode; export in evaluation mode")
    x, scale, offset, mean, variance = node.input
    rank = len(g.shape(x))
    deviation = g.op("Sqrt", g.op("Add", variance, g.number(settings.get("epsilon", 1e-5))))
    over = g.sizes(0, *range(2, rank))

    def channel(name: str) -> str:
        return g.reshaped(name, 1, -1, *[1] * (rank - 2))

    parts: list[str | None] = [None, None, None]
    if g.needs(x):
        parts[0] = g.op("Mul", dy, channel(g.op("Div", scale, deviation)))
    if g.needs(scale):
        normal = g.op("Div", g.op("Sub", x, channel(mean)), channel(deviation))
        parts[1] = g.op("ReduceSum", g.op("Mul", dy, normal), over, keepdims=0)
    if g.needs(offset):
        parts[2] = g.op("ReduceSum", dy, over, keepdims=0)
    return parts


@rule("LayerNormalization")
def _layer_norm(g: Gradients, node: Any, dy: str) -> list[str | None]:
    settings = attributes(node)
    x, scale, *offset = node.input
    rank = len(g.shape(x))
    axes = g.sizes(*range(settings.get("axis", -1) % rank, rank))

    def mean(name: str) -> str:
        return g.op("ReduceMean", name, axes, keepdims=1)

    centred = g.op("Sub", x, mean(x))
    variance = mean(g.op("Mul", centred, centred))
    deviation = g.op("Sqrt", g.op("Add", variance, g.number(settings.get("epsilon", 1e-5))))
    normal = g.op("Div", centred, deviation)
    parts: list[str | None] = [None, None]
    if g.needs(x):
        inner = g.op("Mul", dy, scale)
        along = g.op("Mul", normal, mean(g.op("Mul", inner, normal)))
        parts[0] = g.op("Div", g.op("Sub", g.op("Sub", inner, mean(inner)), along), deviation)
    if g.needs(scale):
        parts[1] = g.like(g.op("Mul", dy, normal), scale, node.output[0])
    if offset and offset[0] and g.needs(offset[0]):
        parts.append(g.like(dy, offset[0], node.output[0]))
    return parts

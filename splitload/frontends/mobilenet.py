"""MobileNet-V1 as an ONNX graph, built with numpy and onnx alone: the zoo's model that needs no torch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

_Array = npt.NDArray[np.float32]

_OPSET = 17
_IR_VERSION = 8  # the one that came with opset 17, so that every onnx release writes the same file
_BN_EPSILON = 1e-3

# Output channels and stride of the 13 depthwise-separable blocks.
_BLOCKS = (
    [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
)  # fmt: skip


def build(seed: int = 0) -> onnx.ModelProto:
    """Return MobileNet-V1 1.0 224 with random weights.

    Input "x": float32 (batch, 3, 224, 224), batch free, values expected around mean 0 and variance 1.
    Output "logits": float32 (batch, 1000).

    Weights are He-normal. Each batch normalization carries the mean and variance its input has on average, from the
    moments of a rectified normal variable, so activations neither vanish nor explode.

    Source: Howard et al. 2017, "MobileNets", table 1. Differs: no softmax at the end; stride 1 in the last depthwise
    convolution, where the table prints 2 beside an unchanged size; one row of zeros on every side as padding.

    Args:
        seed: Seed of the weights; the same seed gives the same bytes.
    """
    graph = _Graph(seed)
    channels = graph.conv_bn_relu("conv1", channels_in=3, channels_out=32, kernel=3, stride=2)
    for number, (channels_out, stride) in enumerate(_BLOCKS, start=1):
        graph.conv_bn_relu(f"block{number}/depthwise", channels, channels, kernel=3, stride=stride, groups=channels)
        channels = graph.conv_bn_relu(f"block{number}/pointwise", channels, channels_out, kernel=1)
    return graph.classify(channels, classes=1000)


class _Graph:
    """A chain of nodes that grows at its end, and what is known of the values there."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.end = "x"
        self.mean = np.zeros(3)  # per channel, of the tensor at the end
        self.variance = np.ones(3)

    def conv_bn_relu(
        self, name: str, channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> int:
        """Append convolution, batch normalization and ReLU; return the number of channels they give."""
        fan_in = channels_in // groups * kernel * kernel
        weight = self.normal(0, math.sqrt(2 / fan_in), (channels_out, channels_in // groups, kernel, kernel))
        scale, bias = self.normal(1, 0.1, channels_out), self.normal(0, 0.1, channels_out)
        # One input channel per group: either all of them (one group) or one each (depthwise).
        mean = _through(weight.sum((2, 3), dtype=np.float64), self.mean, groups)
        variance = _through(np.square(weight, dtype=np.float64).sum((2, 3)), self.variance, groups)
        pad = kernel // 2
        self.node("Conv", f"{name}/conv", {"weight": weight}, kernel_shape=[kernel] * 2, strides=[stride] * 2,
                  pads=[pad] * 4, group=groups)  # fmt: skip
        statistics: dict[str, npt.NDArray[Any]] = {"scale": scale, "bias": bias, "mean": mean, "variance": variance}
        self.node("BatchNormalization", f"{name}/bn", statistics, epsilon=_BN_EPSILON)
        self.node("Relu", f"{name}/relu", {})
        self.mean, self.variance = _rectified(bias, scale)
        return channels_out

    def classify(self, channels: int, classes: int) -> onnx.ModelProto:
        """Append average pooling and the fully connected layer; return the checked model."""
        import onnx
        from onnx import TensorProto, helper

        self.node("GlobalAveragePool", "pool", {})
        self.node("Flatten", "flatten", {})
        weight = self.normal(0, math.sqrt(2 / channels), (classes, channels))
        self.node("Gemm", "fc", {"weight": weight, "bias": self.normal(0, 0.1, classes)}, transB=1)
        self.nodes[-1].output[0] = "logits"
        graph = helper.make_graph(
            self.nodes,
            "mobilenet_v1",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3, 224, 224])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
            self.weights,
        )
        opsets = [helper.make_opsetid("", _OPSET)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="splitload")
        onnx.checker.check_model(model, full_check=True)
        return model

    def node(self, op: str, name: str, weights: dict[str, npt.NDArray[Any]], **attributes: Any) -> None:
        """Append one node that reads the end of the chain and then its weights."""
        from onnx import helper, numpy_helper

        names = [f"{name}/{key}" for key in weights]
        arrays = zip(weights.values(), names, strict=True)
        self.weights += [numpy_helper.from_array(value.astype(np.float32), key) for value, key in arrays]
        self.nodes.append(helper.make_node(op, [self.end, *names], [f"{name}/y"], name=name, **attributes))
        self.end = f"{name}/y"

    def normal(self, mean: float, deviation: float, shape: int | tuple[int, ...]) -> _Array:
        """Return float32 normal random numbers."""
        return self.rng.normal(mean, deviation, shape).astype(np.float32)


def _through(kernel: npt.NDArray[np.float64], moment: npt.NDArray[np.float64], groups: int) -> npt.NDArray[np.float64]:
    """Return one moment per output channel from `kernel`, (out, in per group), and one per input channel."""
    return kernel @ moment if groups == 1 else kernel[:, 0] * moment


def _rectified(mean: _Array, deviation: _Array) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return mean and variance of max(0, z), where z is normal with this mean and standard deviation."""
    m, s = mean.astype(np.float64), np.abs(deviation.astype(np.float64))
    density = np.exp(-np.square(m / s) / 2) / math.sqrt(2 * math.pi)
    above = np.array([(1 + math.erf(ratio / math.sqrt(2))) / 2 for ratio in m / s])
    first = m * above + s * density
    second = (m**2 + s**2) * above + m * s * density
    return first, second - first**2

"""Small instances of onnxruntime's operators on blocked layouts, and what the standard operators say of them.

In a blocked layout the elements of a tensor `[N, C, H, W]` lie as `[N, C / block, H, W, block]`, and filters as
`[O / block, I / block, H, W, block of I, block of O]`; where a group has one input channel, or an image has fewer than
a block, as `[O / block, I, H, W, block of O]`. Source: onnxruntime's `nchwc_transformer.cc`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from splitload.runtime.stock import stock_session

Array = np.ndarray[Any, Any]
_POOLS = {"MaxPool", "AveragePool"}
_WHOLE = {"GlobalAveragePool", "GlobalMaxPool"}
_PIXELS = 3  # height and width of what has no kernel


@dataclass(frozen=True)
class Instance:
    """One operator with small inputs.

    Attributes:
        op_type: Its name, in the domain of blocked layouts.
        attributes: Its attributes.
        inputs: Shape and layout of each input: "blocked", "filter", "plain" or "last" (channels last); None where an
            optional input is left out.
        output: Layout of the output.
    """

    op_type: str
    attributes: Mapping[str, Any]
    inputs: tuple[tuple[tuple[int, ...], str] | None, ...]
    output: str = field(default="blocked")


def instance(node: Any, attributes: Mapping[str, Any], filters: Sequence[int] | None, block: int) -> Instance | None:
    """Return a small instance of a node, of one block of channels where that will do.

    Nodes that run the same code give equal instances, whatever their sizes. Of an operator or an activation that is not
    known there is None.

    Args:
        node: The node.
        attributes: Its attributes.
        filters: Shape of its filters, for a convolution.
        block: Channels in a block.
    """
    kind = node.op_type
    if kind == "Conv":
        known = attributes.get("activation", b"").decode() in ("", "Clip", *_ACTIVATIONS)
        return _convolution(node, attributes, filters, block) if filters is not None and known else None
    if kind in _POOLS:
        return Instance(kind, dict(attributes), (((1, block, *_size(attributes)), "blocked"),))
    if kind in _WHOLE or kind == "Upsample":
        return Instance(kind, dict(attributes), (((1, block, _PIXELS, _PIXELS), "blocked"),))
    two = (1, 2 * block, _PIXELS, _PIXELS)  # so that it shows which block comes first
    if kind == "ReorderInput":
        last = bool(attributes.get("channels_last"))
        shape = (1, _PIXELS, _PIXELS, 2 * block) if last else two
        return Instance(kind, dict(attributes), ((shape, "last" if last else "plain"),))
    if kind == "ReorderOutput":
        channels = block + (attributes["channels"] % block or block)
        last = bool(attributes.get("channels_last"))
        made = {**attributes, "channels": channels}
        return Instance(kind, made, ((two, "blocked"),), "last" if last else "plain")
    return None


def _convolution(node: Any, attributes: Mapping[str, Any], filters: Sequence[int], block: int) -> Instance:
    """Return a convolution with one block of output channels for each group, or of one channel a group."""
    _, channels, *kernel = filters
    groups = int(attributes.get("group", 1))
    layout = "blocked"
    if groups > 1 and channels == 1:
        groups, rows, channels = block, block, 1
    elif channels < block:
        groups, rows, layout = 1, block, "plain"  # the image a model is given
    else:
        groups = min(groups, 2)
        rows, channels = groups * block, block
    made = {**attributes, "group": groups, "kernel_shape": list(kernel)}
    size = _size(made)
    inputs: list[tuple[tuple[int, ...], str] | None] = [
        ((1, groups * channels, *size), layout),
        ((rows, channels, *kernel), "filter"),
    ]
    given = [bool(name) for name in node.input[2:4]]
    if any(given):
        inputs.append(((rows,), "plain") if given[0] else None)
    if given[1:] == [True]:
        inputs.append(((1, rows, *_output_size(made, size)), "blocked"))
    return Instance("Conv", made, tuple(inputs))


def _steps(attributes: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """Return reach of the kernel, strides and the sum of both pads, for each of the two axes."""
    kernel = list(attributes["kernel_shape"])
    dilations = attributes.get("dilations") or [1] * len(kernel)
    reach = [dilation * (size - 1) + 1 for size, dilation in zip(kernel, dilations, strict=True)]
    strides = list(attributes.get("strides") or [1] * len(kernel))
    pads = list(attributes.get("pads") or [0] * 2 * len(kernel))
    return reach, strides, [pads[axis] + pads[axis + len(kernel)] for axis in range(len(kernel))]


def _size(attributes: Mapping[str, Any]) -> tuple[int, ...]:
    """Return a height and width that give two outputs along each axis, or more with pads."""
    reach, strides, _ = _steps(attributes)
    return tuple(size + stride for size, stride in zip(reach, strides, strict=True))


def _output_size(attributes: Mapping[str, Any], size: Sequence[int]) -> tuple[int, ...]:
    reach, strides, pads = _steps(attributes)
    how = attributes.get("auto_pad", b"NOTSET").decode()
    if how.startswith("SAME"):
        return tuple(math.ceil(each / stride) for each, stride in zip(size, strides, strict=True))
    if how == "VALID":
        pads = [0] * len(pads)
    return tuple(
        (each + pad - needed) // stride + 1
        for each, pad, needed, stride in zip(size, pads, reach, strides, strict=True)
    )


def to_layout(value: Array, layout: str, block: int) -> Array:
    """Return an array with its elements in the order of a layout; its shape says nothing of that.

    Args:
        value: The elements in their plain order.
        layout: As in `Instance.inputs`.
        block: Channels in a block.
    """
    if layout == "filter":
        rows, channels, *kernel = value.shape
        inner = block if channels % block == 0 else 1
        parts: Array = value.reshape(rows // block, block, channels // inner, inner, *kernel)
        parts = np.transpose(parts, (0, 2, 4, 5, 3, 1))
    elif layout == "blocked":
        images, channels, *size = value.shape
        parts = value.reshape(images, channels // block, block, *size)
        parts = np.transpose(parts, (0, 1, 3, 4, 2))
    else:
        return value
    result: Array = np.ascontiguousarray(parts).reshape(value.shape)
    return result


def reference(made: Instance, values: Sequence[Array | None], block: int, opset: int) -> Array:
    """Return what the standard operators compute from the same values, in the layout of the instance's output.

    Args:
        made: The instance.
        values: Its inputs, each in its plain order.
        block: Channels in a block.
        opset: Version of the standard operators.
    """
    first = made.inputs[0]
    x = values[0]
    assert first is not None and x is not None  # noqa: S101
    result: Array
    if made.op_type == "ReorderOutput":
        result = x[:, : made.attributes["channels"]]
        return np.transpose(result, (0, 2, 3, 1)) if made.output == "last" else result
    if made.op_type == "ReorderInput":
        result = np.transpose(x, (0, 3, 1, 2)) if first[1] == "last" else x
    else:
        result = _run_standard(made, values, opset)
    return to_layout(result, "blocked", block)


def _run_standard(made: Instance, values: Sequence[Array | None], opset: int) -> Array:
    """Run the standard operator of the same name, what is fused with it apart."""
    import onnxruntime as ort
    from onnx import helper, numpy_helper

    given = {f"v{place}": value for place, value in enumerate(values) if value is not None}
    names = [f"v{place}" if value is not None else "" for place, value in enumerate(values)]
    kept = dict(made.attributes)
    activation, parameters = kept.pop("activation", b"").decode(), kept.pop("activation_params", [])
    if made.op_type == "Upsample":
        nodes = [helper.make_node("Resize", ["v0", "", "scales"], ["y"], **_resize(kept))]
        given["scales"] = np.array(kept["scales"], np.float32)
    else:
        nodes = [helper.make_node(made.op_type, names[:3], ["y"], **kept)]
    if len(names) > 3:
        nodes.append(helper.make_node("Add", ["y", names[3]], ["sum"]))
    if activation == "Clip":
        given |= {name: np.array(bound, np.float32) for name, bound in zip(("least", "most"), parameters, strict=True)}
        nodes.append(helper.make_node("Clip", [nodes[-1].output[0], "least", "most"], ["a"]))
    elif activation:
        settings = dict(zip(_ACTIVATIONS[activation], parameters, strict=True))
        nodes.append(helper.make_node(activation, [nodes[-1].output[0]], ["a"], **settings))
    result = helper.make_tensor_value_info(nodes[-1].output[0], 1, None)
    constants = [numpy_helper.from_array(np.asarray(value), name) for name, value in given.items()]
    graph = helper.make_graph(nodes, "reference", [], [result], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = stock_session(model.SerializeToString(), options)
    found: Array = session.run(None, {})[0]
    return found


_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "Relu": (), "Sigmoid": (), "Tanh": (), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta"),
    "HardSwish": (),
}  # fmt: skip


def _resize(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes of a standard Resize that does what an Upsample in blocks does."""
    names = ("mode", "coordinate_transformation_mode", "nearest_mode")
    return {name: attributes[name] for name in names if name in attributes}

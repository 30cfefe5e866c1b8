"""Filters that onnxruntime filled up with channels of zeros, stored without them again where that saves enough.

The blocked layout wants a multiple of 8 or 16 channels. With 200 of them the zeros are 8 %, with 20 they are half the
model. Then the stage fills blocks itself, by makers (folding.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from splitload.graphs.folding import MAKER, turn
from splitload.graphs.proto import is_external, tensor_bytes
from splitload.graphs.rewrite import Rewriter
from splitload.graphs.shared import Found, WeightIndex

TOLERATED = 0.09  # share of a model's weights that may be zeros of ours
MIN_GAIN_BYTES = 4 << 10
_MIN_OPSET = 11  # from which on Pad has inputs
_FLOATS = {1, 10}
_INT64 = 7


def unpad(path: Path, portable: Path, block: int | None) -> int:
    """Store filters without the channels that fill blocks, if those take too much of the file.

    Args:
        path: The native .onnx file; it and its weights are replaced.
        portable: The same model in layouts of the standard.
        block: Channels that the native file's blocked layout holds together; None without one.

    Returns:
        How many filters were replaced.

    Raises:
        OSError: If the files cannot be read or written.
    """
    import onnx

    plain = onnx.load_model(str(portable), format="protobuf", load_external_data=False)
    rewriter = Rewriter(path)
    opset = max((each.version for each in rewriter.model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    filters = [
        tensor
        for tensor in plain.graph.initializer
        if is_external(tensor) and tensor.data_type in _FLOATS and len(tensor.dims) == 4
    ]
    if opset < _MIN_OPSET or not filters:
        return 0
    index, whole = (
        WeightIndex(model.graph, place.parent, block) for model, place in ((rewriter.model, path), (plain, portable))
    )
    found: dict[str, tuple[Found, Any]] = {}
    for tensor in filters:
        weights = whole.read(tensor)
        place = index.find(weights)
        if place is not None and place.padded is not None:
            found.setdefault(str(place.tensor.name), (place, weights))
    gains = {name: tensor_bytes(place.tensor) - weights.nbytes for name, (place, weights) in found.items()}
    total = sum(tensor_bytes(tensor) for tensor in rewriter.model.graph.initializer)
    if sum(gains.values()) <= TOLERATED * total:
        return 0
    chosen = [each for name, each in found.items() if gains[name] >= MIN_GAIN_BYTES]
    for place, weights in chosen:
        rewriter.make(place.tensor, _filling(rewriter, place, weights))
    if chosen:
        rewriter.save()
    return len(chosen)


def _filling(rewriter: Rewriter, found: Found, weights: Any) -> list[Any]:
    """Store a filter without channels of zeros, and return the nodes that fill it up and bring it into blocks."""
    from onnx import helper

    name, kind = str(found.tensor.name), int(found.tensor.data_type)
    sizes = np.array([[0] * 4, [full - size for full, size in zip(found.padded or (), weights.shape, strict=True)]])
    pads = rewriter.add(f"{name}/pads", _INT64, (8,), sizes.astype(np.int64).tobytes())
    stored = rewriter.add(f"{name}/unpadded", kind, weights.shape, weights.tobytes())
    filled = rewriter.free_name(f"{name}/filled")
    pad = helper.make_node("Pad", [stored, pads], [filled], f"{MAKER}{name}/pad")
    return [pad, *turn(rewriter, found, tuple(found.tensor.dims), filled, name)]

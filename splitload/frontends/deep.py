"""A synthetic graph of any depth, for what loading costs by the node. Imports onnx lazily."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from splitload.base.entries import is_whole, making
from splitload.base.errors import UsageError

if TYPE_CHECKING:
    import onnx

WIDTH = 16
MAX_NODES = 1_000_000
_VERSION = 1  # raise it when a change here changes a file


def path(num_nodes: int, cache: Path) -> Path:
    """Return the .onnx file of `build(num_nodes)`, made unless the cache holds it.

    Raises:
        UsageError: If there are more nodes than `MAX_NODES`.
        OutputError: If it cannot be written.
    """
    if num_nodes > MAX_NODES:
        raise UsageError(f"--deep takes at most {MAX_NODES} nodes, not {num_nodes}")
    folder, name = cache / "deep" / f"{num_nodes}-v{_VERSION}", f"deep-{num_nodes}.onnx"
    if not is_whole(folder):
        with making(folder, "the model") as made:
            (made / name).write_bytes(build(num_nodes).SerializeToString(deterministic=True))
    return folder / name


def build(num_nodes: int, seed: int = 0) -> onnx.ModelProto:
    """Return a chain of `num_nodes` nodes, MatMul and Add in turns.

    Input "x" and output "y": float32 (1, 16). The matrices are orthogonal, so that every layer counts as much as the
    last and values grow no faster than the square root of the depth; the rows that are added are normal, a tenth wide.

    Args:
        num_nodes: At least 1.
        seed: Seed of the weights; the same seed gives the same bytes.
    """
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(seed)
    matrices = np.linalg.qr(rng.standard_normal(((num_nodes + 1) // 2, WIDTH, WIDTH)))[0].astype(np.float32)
    rows = (rng.standard_normal((num_nodes // 2, WIDTH)) / 10).astype(np.float32)
    nodes, weights = [], []
    for number in range(num_nodes):
        weights.append(numpy_helper.from_array((rows if number % 2 else matrices)[number // 2], f"w{number}"))
        before, after = f"t{number}" if number else "x", f"t{number + 1}" if number + 1 < num_nodes else "y"
        kind = "Add" if number % 2 else "MatMul"
        nodes.append(helper.make_node(kind, [before, f"w{number}"], [after], name=f"{kind.lower()}{number}"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, f"deep-{num_nodes}", ends[:1], ends[1:], weights)
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="splitload")

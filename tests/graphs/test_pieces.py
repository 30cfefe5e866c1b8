"""Sizes that are seen piece by piece are those of one run, and never many values are in memory at once."""

from __future__ import annotations

from pathlib import Path

import control_models  # noqa: F401 - its constructs
import models
import onnx
import onnxruntime as ort
import pytest

from splitload.graphs.here import HERE
from splitload.graphs.observe import observe
from splitload.graphs.pieces import _PIECES, _pieces
from splitload.graphs.proto import split_constants
from splitload.runtime.inputs import example_inputs


def test_a_long_graph_comes_in_few_small_pieces() -> None:
    body, _ = split_constants(models.chain(200).graph)
    types = {name: onnx.TypeProto() for node in body for name in node.output}
    pieces = list(_pieces(body, types))
    assert [node for nodes, _ in pieces for node in nodes] == body
    assert len(pieces) <= _PIECES
    assert max(len(nodes) for nodes, _ in pieces) == -(-200 // _PIECES)
    assert all(len(alive) == 1 for _, alive in pieces[:-1])
    assert pieces[-1][1] == set()


def test_only_plain_tensors_are_handed_on() -> None:
    body, _ = split_constants(models.chain(64).graph)
    types = {name: onnx.TypeProto() for node in body[::2] for name in node.output}
    for nodes, alive in list(_pieces(body, types))[:-1]:
        assert alive <= types.keys(), nodes


@pytest.mark.parametrize("name", models.CONSTRUCTS)
def test_sizes_are_those_of_a_run(name: str, tmp_path: Path) -> None:
    """Every construct: its values as outputs of one session, and as they are seen."""
    model, feeds = models.CONSTRUCTS[name]()
    path = models.save(model, tmp_path)
    body, _ = split_constants(model.graph)
    seen = observe(path, model, body, feeds, HERE)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    values = session.run(None, example_inputs(session.get_inputs(), feeds))
    made = {output for node in body for output in node.output if output}
    assert made <= seen.keys()
    for info, value in zip(session.get_outputs(), values, strict=True):
        if info.name in made and hasattr(value, "shape"):
            assert seen[info.name][1] == value.shape

"""Graphs that tests of devices measure."""

from __future__ import annotations

from pathlib import Path

import models
import onnx

from splitload.frontends.onnx import Source, load_graph
from splitload.plan.graph import GraphKind, ModelGraph


def make_graph(folder: Path, kind: GraphKind, model: onnx.ModelProto | None = None, max_blocks: int = 3) -> ModelGraph:
    source = Source.open(models.save(model or models.chain(6, width=16), folder), "toy-model")
    return load_graph(source, kind, folder / "cache", max_blocks=max_blocks)

"""What studies of shared inferences begin with: a model, its graph on both machines, and a bundle of one stage."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from splitload.base.cache import user_cache
from splitload.commands.console import Console
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.graph import ModelGraph
from splitload.planner.request import TrainRequest
from splitload.planner.train import train


class Subject(NamedTuple):
    """A model that is shared.

    Attributes:
        source: It.
        graph: Its native graph.
        bundle: The folder of its bundle.
    """

    source: Source
    graph: ModelGraph
    bundle: Path


def subject(model: str, folder: Path, console: Console) -> Subject:
    """Return a model whose bundle is made in a folder.

    Raises:
        SplitloadError: If it cannot be made.
    """
    cache = user_cache()
    source = open_source(model, cache)
    graph = load_graph(source, "native", cache, feeds=source.examples)
    bundle = folder / f"{source.name}.splitload"
    train(TrainRequest(model=model, device="host", max_stages=1, output=str(bundle), cache=cache), console)
    return Subject(source, graph, bundle)

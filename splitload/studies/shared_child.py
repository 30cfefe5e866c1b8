"""What an emulated machine that shares inferences does: `python -m splitload.studies.shared_child WHAT JSON`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.bundle.read import read_manifest
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.profile import measure_costs
from splitload.deploy.share_bench import compare
from splitload.devices.host import HostDevice
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.planner.report import LogReport
from splitload.runtime.inputs import example_inputs


def costs(model: str, rounds: int, carried_s_per_byte: float) -> dict[str, Any]:
    """Return what the units of a model cost here."""
    cache = user_cache()
    source = open_source(model, cache)
    graph = load_graph(source, "native", cache, feeds=source.examples)
    found = measure_costs(
        Pieces(graph), graph, HostDevice(cache), LogReport(), rounds=rounds, carried_s_per_byte=carried_s_per_byte
    )
    return {"units_s": found.units_s, "call_s": found.call_s, "carried_s_per_byte": found.carried_s_per_byte}


def runs(bundle: str, model: str, server: str, rounds: int) -> dict[str, Any]:
    """Return the latencies of inferences by each arm of a bundle's collaboration, in turns, and how they were answered.

    Args:
        bundle: The bundle.
        model: What it was made of.
        server: Its address.
        rounds: Inferences of each.
    """
    source = open_source(model, user_cache())
    feeds = example_inputs(read_manifest(bundle).inputs, source.examples)
    found = compare(bundle, server, feeds, rounds)
    samples = {name: [each._asdict() for each in rows] for name, rows in found.samples.items()}
    return {"samples": samples, "bytes_per_s": found.bytes_per_s}


def main() -> None:
    """Do what the first argument names with what the second says; print what comes of it."""
    what, words = sys.argv[1:]
    tasks: dict[str, Callable[..., Any]] = {"costs": costs, "runs": runs}
    print(json.dumps(tasks[what](**json.loads(words))))  # noqa: T201


if __name__ == "__main__":
    sys.path[:] = [each for each in sys.path if Path(each) != Path(__file__).parent]
    main()

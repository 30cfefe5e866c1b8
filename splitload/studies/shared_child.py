"""What an emulated machine that shares inferences does: `python -m splitload.studies.shared_child WHAT JSON`."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.profile import measure_costs
from splitload.deploy.collaborator import Collaborator
from splitload.devices.host import HostDevice
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.planner.report import LogReport
from splitload.runtime.inputs import example_inputs

PATIENT_S = 30.0


def costs(model: str, rounds: int, carried_s_per_byte: float) -> dict[str, Any]:
    """Return what the units of a model cost here."""
    cache = user_cache()
    source = open_source(model, cache)
    graph = load_graph(source, "native", cache, feeds=source.examples)
    found = measure_costs(
        Pieces(graph), graph, HostDevice(cache), LogReport(), rounds=rounds, carried_s_per_byte=carried_s_per_byte
    )
    return {"units_s": found.units_s, "call_s": found.call_s, "carried_s_per_byte": found.carried_s_per_byte}


def runs(bundle: str, model: str, arms: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """Return the latencies of inferences by several collaborations of a bundle, in turns, and how they were answered.

    Args:
        bundle: The bundle.
        model: What it was made of.
        arms: Folder of the collaboration and address of its server, by name.
        rounds: Inferences of each that count; two that do not come before.
    """
    cache = user_cache()
    source = open_source(model, cache)
    samples: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    with ExitStack() as opened:
        loaders = {
            name: opened.enter_context(
                Collaborator(bundle, address or None, collaboration=folder, deadline_s=PATIENT_S)
            )
            for name, (folder, address) in arms.items()
        }
        for name, loader in loaders.items():
            loader.wait("loaded")
            if arms[name][1] and not loader.wait_for_server(PATIENT_S):
                raise TimeoutError(f"no server is there for '{name}'")
        feeds = example_inputs(next(iter(loaders.values())).manifest.inputs, source.examples)
        for number in range(-2, rounds):
            for name in list(arms)[:: 1 if number % 2 else -1]:
                start_s = time.perf_counter()
                loaders[name].run(None, feeds)
                seconds = time.perf_counter() - start_s
                last = loaders[name].last
                if number >= 0 and last is not None:
                    samples[name].append({"latency_s": seconds, "by": last.by, "why": last.why})
                time.sleep(0.05)
    return {"samples": samples, "bytes_per_s": {name: loader.bytes_per_s for name, loader in loaders.items()}}


def main() -> None:
    """Do what the first argument names with what the second says; print what comes of it."""
    what, words = sys.argv[1:]
    tasks: dict[str, Callable[..., Any]] = {"costs": costs, "runs": runs}
    print(json.dumps(tasks[what](**json.loads(words))))  # noqa: T201


if __name__ == "__main__":
    sys.path[:] = [each for each in sys.path if Path(each) != Path(__file__).parent]
    main()

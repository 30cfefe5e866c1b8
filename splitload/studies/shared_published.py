"""Shared inferences on published figures, simulated: `python -m splitload.studies.shared_published`.

Nothing is measured here. What a model takes on a Jetson Xavier NX and on an RTX 3080, what the links carry and what the
device draws are those of Intra-DP (arXiv 2507.05829); each unit of a model takes the share of that which it has of the
floating-point operations, and some rows of it the share of the rows. Calls, messages and the way of a byte take nothing
besides.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from splitload.base.cache import user_cache
from splitload.collaborative.costs import Costs, Link, MachineCosts
from splitload.collaborative.energy import Power, energy_j
from splitload.collaborative.levels import Levels
from splitload.collaborative.operators import row_graph
from splitload.collaborative.search import Saving, search
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.simulate import simulate
from splitload.commands.console import Console
from splitload.frontends import open_source
from splitload.frontends.onnx import load_graph
from splitload.plan.graph import ModelGraph
from splitload.studies.records import write_record
from splitload.studies.study import errors_in_one_line, study_parser


class Published(NamedTuple):
    """What a model takes, in milliseconds."""

    device_ms: float
    server_ms: float


_OWN = "splitload.studies.shared_networks"
MODELS = {
    f"{_OWN}:vgg19_bn": Published(88.3, 4.8),
    f"{_OWN}:convnext_large": Published(208.8, 8.9),
    "zoo:resnet152": Published(83.6, 19.5),
    f"{_OWN}:densenet121": Published(70.9, 17.5),
}
MEGABITS = (93, 73)  # what the links carry on the average, indoors and outdoors
POWER = Power(computing_w=13.35, communicating_w=4.25, standby_w=4.04)


def costs_of(graph: ModelGraph, levels: Levels, published: Published) -> Costs:
    """Return what a model's units take of two machines, by their floating-point operations."""
    whole = sum(node.flops for node in graph.nodes) or 1

    def machine(whole_ms: float) -> MachineCosts:
        units: list[tuple[float, ...]] = [()]
        for level in range(1, len(levels.levels)):
            rows = levels.levels[level].num_rows
            flops = sum(graph.nodes[at].flops for at in levels.nodes(level - 1, level))
            units.append(tuple(1e-3 * whole_ms * flops / whole * row / rows for row in range(rows + 1)))
        return MachineCosts(tuple(units))

    return Costs(machine(published.device_ms), machine(published.server_ms))


def rows(model: str, published: Published) -> list[dict[str, Any]]:
    """Return what is simulated of a model, a row for each link."""
    cache = user_cache()
    source = open_source(model, cache)
    graph = load_graph(source, "portable", cache, feeds=source.examples)
    levels = Levels.of(graph, row_graph(graph))
    costs = SegmentCosts(levels, costs_of(graph, levels, published))
    found = []
    for megabits in MEGABITS:
        link = Link(megabits * 1e6 / 8)
        best = search(costs, link)
        spared = search(costs, link, begin=[best.plan], saving=Saving(POWER, best.latency_s * 1.0001))
        alone_s = best.baselines_s["device"]
        found.append(
            {
                "model": model,
                "model_sha256": source.sha256,
                "megabits_per_s": megabits,
                "published_ms": published._asdict(),
                "simulated_s": {"shared": best.latency_s, **best.baselines_s},
                "optimum": {"latency_s": best.optimum.latency_s, "is_exact": best.optimum.is_exact},
                "alone_j": POWER.computing_w * alone_s,
                "shared_j": energy_j(simulate(levels, best.plan, costs.costs, link), POWER),
                "spared_j": spared.energy_j,
            }
        )
    return found


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Simulate the models; print what came of it, and perhaps record it."""
    words = list(sys.argv[1:] if words is None else words)
    options = study_parser("shared_published", __doc__).parse_args(words)
    console, made = Console(json=False), []
    for model, published in MODELS.items():
        for row in rows(model, published):
            made.append(row)
            console.print(line(row))
    if options.output:
        write_record(options.output, "shared_published", "splitload.studies.shared_published", words, made)
    return 0


def line(row: dict[str, Any]) -> str:
    """Return what came of a row, for people."""
    taken = row["simulated_s"]
    shown = ", ".join(f"{name} {1e3 * seconds:.1f}" for name, seconds in taken.items())
    gain = 1 - taken["shared"] / taken["layer cut"]
    return f"{row['model']} at {row['megabits_per_s']} Mbit/s, ms: {shown}; {gain:.1%} under the best layer cut"


if __name__ == "__main__":
    raise SystemExit(main())

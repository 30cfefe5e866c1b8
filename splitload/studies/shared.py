"""Inferences that an emulated device and a server share: `python -m splitload.studies.shared [MODEL …]` (Linux, root).

Both machines are measured, plans are searched for each link, and the device alone, the server alone, the best cut
between layers and the shared plan answer in turns over a link with that cap, see `shared_pair`. Plans that are not the
best run as well, so that many predictions are tried. What is predicted stands beside.
"""

from __future__ import annotations

import math
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.cache import user_cache
from splitload.base.scratch import scratch_folder
from splitload.bundle.collaboration import SHARED
from splitload.collaborative.costs import Costs, Link
from splitload.collaborative.optimum import grid_optimum
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.profile import measure_costs
from splitload.collaborative.search import decoded, search
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.store import Planned, write
from splitload.commands.console import Console
from splitload.frontends.onnx import Source
from splitload.plan.graph import ModelGraph
from splitload.studies.records import write_record
from splitload.studies.shared_pair import DEVICE, SERVER, EmulatedPair
from splitload.studies.shared_subjects import subject
from splitload.studies.study import at_least, errors_in_one_line, study_parser

_OWN = "splitload.studies.shared_networks"
MODELS = (
    f"{_OWN}:vgg19_bn", "zoo:resnet152", f"{_OWN}:densenet121", "zoo:convnext_tiny", "zoo:distilbert",
    f"{_OWN}:vit_b_16",
)  # fmt: skip
MEGABITS = (93, 73)
ALONE = ("device", "server", "layer cut")
RUNS, ROUNDS = 11, 5
LATENCY_S = 0.0003
GOODPUT = 1448 / 1514  # of a link's bytes: the others are heads of Ethernet, IP and TCP, around 1448 of content
SEED, EXCHANGING = 5, 0.55  # of plans at random; a place exchanges rows where its number is above one half


def rows(model: str, megabits: Sequence[int], runs: int, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Return what each arm takes of a model on each link."""
    source, graph, bundle = subject(model, folder, console)
    pieces = Pieces(graph)
    found: list[dict[str, Any]] = []
    costs: SegmentCosts | None = None
    for each in megabits:
        with EmulatedPair(each * 1_000_000, folder) as pair:
            if costs is None:
                machines = (pair.machine(DEVICE), pair.machine(SERVER))
                measured = [measure_costs(pieces, graph, each, console, rounds=ROUNDS) for each in machines]
                costs = SegmentCosts(pieces.levels, Costs(*measured))
            found.append(_row(model, each, runs, bundle, source, graph, pieces, costs, pair))
            console.print(_line(found[-1]))
    return found


def _row(
    model: str, megabits: int, runs: int, bundle: Path, source: Source, graph: ModelGraph,
    pieces: Pieces, costs: SegmentCosts, pair: EmulatedPair,
) -> dict[str, Any]:  # fmt: skip
    link = Link(megabits * 1e6 / 8 * GOODPUT, LATENCY_S)
    found = search(costs, link)
    others = {name: (plan, costs.latency_s(plan, link)) for name, plan in _others(costs, link).items()}
    planned = Planned(link.bytes_per_s, found.plan, found.latency_s, {**found.baselines, **others})
    write(bundle, graph, pieces, [planned])
    plans = {**found.baselines, SHARED: (found.plan, found.latency_s), **others}
    answer = pair.ask(
        DEVICE, "runs", bundle=str(bundle), model=model, server=pair.serve(bundle), rounds=runs, arms=list(plans)
    )
    return {
        "model": model,
        "model_sha256": source.sha256,
        "megabits_per_s": megabits,
        "plans": {name: _plan(plan) for name, (plan, _) in plans.items()},
        "predicted_s": {name: seconds for name, (_, seconds) in plans.items()},
        "optimum": {"latency_s": found.optimum.latency_s, "is_exact": found.optimum.is_exact},
        "samples": answer["samples"],
        "bytes_per_s": answer["bytes_per_s"],
        "moments": answer["moments"],
    }


def _others(costs: SegmentCosts, link: Link) -> dict[str, SharedPlan]:
    """Return plans that show how near predictions come: the best for other links, and some at random."""
    found = []
    for times in (0.5, 2.0):
        best = grid_optimum(costs, Link(link.bytes_per_s * times, link.latency_s), math.inf)
        assert best.plan is not None  # noqa: S101 - every plan is sooner than never
        found.append(best.plan)
    chance, count = np.random.default_rng(SEED), costs.levels.num_units
    for _ in range(2):
        exchanged = chance.random(count) * EXCHANGING
        found.append(decoded(costs.levels, np.concatenate([exchanged, chance.random(2 * count)])))
    return {f"other {number + 1}": plan for number, plan in enumerate(found)}


def _plan(plan: SharedPlan) -> dict[str, list[int]]:
    return {
        "exchanges": list(plan.exchanges), "device_rows": list(plan.device_rows), "strips": list(plan.strips),
    }  # fmt: skip


def _line(row: dict[str, Any]) -> str:
    medians = {
        name: statistics.median(each["latency_s"] for each in samples) for name, samples in row["samples"].items()
    }
    best = min(seconds for name, seconds in medians.items() if name in ALONE)
    shown = ", ".join(
        f"{name} {1e3 * seconds:.0f} ({1e3 * row['predicted_s'][name]:.0f} predicted)"
        for name, seconds in medians.items()
    )
    return (
        f"{row['model']} at {row['megabits_per_s']} Mbit/s, ms: {shown}; shared ÷ best {medians['shared'] / best:.3f}"
    )


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure the models; print what came of it, and perhaps record it."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("shared", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument("--megabits", type=at_least(1), nargs="+", default=list(MEGABITS), metavar="N")
    parser.add_argument(
        "--runs", type=at_least(1), default=RUNS, metavar="N", help="of each arm (default: %(default)s)"
    )
    options = parser.parse_args(words)
    console, made = Console(json=False), []
    with scratch_folder(user_cache(), ".shared-") as folder:
        for model in options.models or MODELS:
            made += rows(model, options.megabits, options.runs, folder, console)
    if options.output:
        write_record(options.output, "shared", "splitload.studies.shared", words, made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

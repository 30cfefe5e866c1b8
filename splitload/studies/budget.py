"""Plans found within a budget of stage loads beside those of a full profile, measured on this machine."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import UsageError
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import VariantPlan
from splitload.commands.console import Console
from splitload.devices.host import HostDevice
from splitload.devices.measuring import profile_loads
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.objectives import OBJECTIVES, OF_LOADING
from splitload.planner.measure_plans import measure_plans
from splitload.planner.refine import refine_on
from splitload.planner.search import Search
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

MODELS = ("zoo:densenet201", "zoo:inception_v3", "zoo:resnet152", "zoo:distilbert")
COUNTS = (None, 4)  # stages: as many as the search takes, then so many


def row(
    source: Source,
    objective: str,
    num_stages: int | None,
    budget: int,
    runs: int,
    console: Console,
    cache: Path,
) -> dict[str, Any]:
    """Search with the budget and without, measure both plans in turns, and return a row of the record.

    Args:
        source: The model.
        objective: Its name; both plans are compared by what decides between numbers of stages.
        num_stages: How many stages both plans have; None: as many as pays.
        budget: Most stage loads.
        runs: Samples of each plan; plans that are the same are measured once.
        console: Where to tell what is done.
        cache: The user's cache folder.

    Raises:
        SplitloadError: If the model or a plan cannot be measured.
    """
    graph = load_graph(source, "native", cache)
    with scratch_folder(cache, ".budget-") as folder:
        device = HostDevice(folder)
        profile = device.profile(graph)
        full = Search(profile, objective=objective, num_stages=num_stages).plan()
        refined, loads = refine_on(
            device, graph, budget, lambda made: Search(made, objective=objective, num_stages=num_stages), console
        )
    partitions = {"full": full, "budget": refined.found.partition}
    if num_stages is not None and refined.found.partition.num_stages != num_stages:
        raise UsageError(f"{budget} loads do not come to a plan of {num_stages} stages; give a larger --budget")
    distinct = list(dict.fromkeys(partitions.values()))
    threads = profile.contention.threads
    plans = [VariantPlan(graph, each, threads) for each in distinct]
    measured = measure_plans(device, source, plans, runs, console, cache, feeds={})
    key = OBJECTIVES[objective].deciding_key
    samples_s = {
        name: [sample[key] for sample in measured[distinct.index(partition)]] for name, partition in partitions.items()
    }
    medians_s = {name: statistics.median(values) for name, values in samples_s.items()}
    return {
        "model": source.name,
        "model_sha256": source.sha256,
        "objective": objective,
        "num_stages": num_stages,
        "compared_by": key,
        "budget_loads": budget,
        "loads": loads,
        "full_loads": profile_loads(graph),
        "plans_measured": len(refined.plans),
        "ended": "nothing better in sight" if refined.complete else "budget",
        "split_points": {name: list(partition.split_points) for name, partition in partitions.items()},
        "samples_s": samples_s,
        "ratio": medians_s["budget"] / medians_s["full"],
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Compare plans of a budget with plans of full profiles, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("budget", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"default: {' '.join(MODELS)}")
    parser.add_argument(
        "--budget", type=at_least(1), default=200, metavar="N", help="stage loads (default: %(default)s)"
    )
    parser.add_argument("--runs", type=at_least(1), default=9, metavar="N", help="samples (default: %(default)s)")
    options = parser.parse_args(words)
    console = Console(json=False)
    cache = user_cache()
    rows = []
    for model in options.models or MODELS:
        source = open_source(model, cache)
        for objective in OF_LOADING:
            for count in COUNTS:
                made = row(source, objective, count, options.budget, options.runs, console, cache)
                console.print(
                    f"{source.name:<14} {objective:<8} {'any' if count is None else count:>3} stages: {made['loads']} "
                    f"loads instead of {made['full_loads']}, budget ÷ full {made['ratio']:.3f}"
                )
                rows.append(made)
    if options.output:
        write_record(options.output, "budget", "splitload.studies.budget", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

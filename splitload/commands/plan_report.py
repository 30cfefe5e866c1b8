"""What `splitload train` prints of a plan: its stages, what others would have found, the schedule and the gain."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitload.base.phrases import count_of, milliseconds
from splitload.commands.console import Console, shortened
from splitload.plan.graph import ModelGraph
from splitload.plan.profile import Profile
from splitload.planner.gain import RUNS, Gain
from splitload.planner.make_plan import Planned
from splitload.planner.search import Found


def show_search(console: Console, planned: Planned) -> None:
    """Print what was searched besides the plan that is taken: within a budget, or with several seeds."""
    if (refined := planned.refined) is not None:
        why = "nothing better was in sight" if refined.complete else "the budget ended"
        plans = count_of(len(refined.plans), "plan")
        console.print(f"{plans} measured in {planned.measured_loads} stage loads, until {why}")
    if planned.runs:
        console.table(
            f"plans of {len(planned.runs)} seeds; seed {planned.seed} is taken",
            ("seed", "stages", "ms", "episodes", "search s"),
            [
                (
                    str(run.seed),
                    str(run.partition.num_stages),
                    f"{run.value_s * 1e3:.2f}",
                    str(run.episodes),
                    f"{run.search_s:.2f}",
                )
                for run in planned.runs
            ],
        )


def show_plan(
    console: Console,
    graph: ModelGraph,
    profile: Profile,
    stages: Profile,
    found: Found,
    gain: Gain | None,
    result: Mapping[str, Any],
) -> None:
    """Print a plan, what other agents would have found, the schedule, and what the bundle gains.

    Args:
        console: Where.
        graph: The model.
        profile: What the plan was found by.
        stages: What each stage costs.
        found: The plan, and the values beside it.
        gain: What the bundle gains; None where that could not be measured.
        result: What `--json` prints.
    """
    predicted = "simulated" if profile.source == "simulated" else "predicted"
    rows = []
    for number, (start, end) in enumerate(found.partition.stages()):
        cost = stages.cost(start, end)
        nodes = graph.node_range(start, end)
        rows.append(
            (
                str(number + 1),
                f"{start}-{end - 1}" if end - start > 1 else str(start),
                shortened(graph.segment_name(*nodes)),
                f"{graph.segment_weights_bytes(*nodes) / 1e6:.1f}",
                f"{cost.load_s * 1e3:.2f}",
                f"{cost.first_inference_s * 1e3:.2f}",
            )
        )
    count = count_of(found.partition.num_stages, "stage")
    console.table(
        f"{graph.name} on {profile.device}: {profile.num_blocks} blocks in {count}; each alone, {profile.source}",
        ("stage", "blocks", "part of the model", "MB", "load alone ms", "infer ms"),
        rows,
    )
    searched = found.partition.num_stages - (graph.tail_start is not None)  # what is trained was cut off afterwards
    what = f"slowest stage's load, {count}, each alone"
    if result["objective"] != "balance":
        what = f"time to first output, {count} loading in parallel"
    values = {name.replace("_", " "): value for name, value in found.values_s.items() if value is not None}
    if values and searched > 1:
        exact, bound = found.values_s.get("exact"), found.exact_bound_s
        if exact and bound is not None and bound < exact:
            over = f"at most {(exact / bound - 1):.1%} above the optimum" if bound > 0 else "optimum unknown"
            values = {f"best known, {over}" if name == "exact" else name: value for name, value in values.items()}
        proved = exact is None or bound is None or bound >= exact
        console.table(
            f"{what}, {predicted}",
            (
                "plan",
                "slowest load ms" if result["objective"] == "balance" else "first output ms",
                "÷ exact" if proved else "÷ best known",
            ),
            [(name, f"{value * 1e3:.2f}", f"{value / exact:.3f}" if exact else "") for name, value in values.items()],
        )
    one = "one stage" if graph.tail_start is None else "one frozen stage"
    if trial := result["trial"]:
        split, whole = (milliseconds(trial[f"{name}_ttfo_s"]) for name in ("split", "whole"))
        kind, rest = ("stage", "the whole model") if graph.tail_start is None else ("frozen stage", one)
        console.print(
            f"{count_of(trial['num_stages'], kind)} answered after {split}, {rest} after {whole} "
            f"(measured, medians of {trial['runs']} fresh processes)"
        )
        if searched == 1:
            console.print(f"{one}, as splitting did not pay")
    elif found.two_stages_s is not None:
        what = "have loaded" if result["objective"] == "balance" else "answer"
        two = milliseconds(found.two_stages_s)
        console.print(f"{one}, as splitting would not pay: the best two would {what} after {two} ({predicted})")
    console.drawing(profile.schedule(found.partition))
    measured = result["ttfo_s"]["measured"]
    line = f"time to first output: {milliseconds(result['ttfo_s']['predicted'])} {predicted}"
    if measured is not None:
        line += f", {milliseconds(measured)} measured (median of {RUNS} fresh processes, warm page cache)"
    console.print(line)
    trained = result["trained"]
    if trained is not None and trained["output_kind"] is not None:
        console.print(f"a loss of classes takes the output '{trained['output']}' as {trained['output_kind']}")
    replaced = ", in the place of the one that was there" if result["replaced"] else ""
    console.print(f"bundle: {result['bundle']}{replaced}")
    if gain is not None:
        console.print(gain.sentence())

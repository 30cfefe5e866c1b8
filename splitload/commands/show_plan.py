"""What `splitload train` prints of a plan: its stages, what others would have found, the schedule and the gain."""

from __future__ import annotations

from splitload.base.phrases import count_of, milliseconds
from splitload.base.sizes import megabytes
from splitload.commands.console import Console, shortened
from splitload.commands.gain_sentence import gain_sentence
from splitload.commands.show_crowd_plan import show_crowd
from splitload.commands.show_memory import show_needs
from splitload.plan.objectives import OBJECTIVES
from splitload.planner.agents import LEARNERS
from splitload.planner.crowd_plan import prediction
from splitload.planner.gain import GAIN_RUNS
from splitload.planner.make_plan import Planned
from splitload.planner.result import TrainResult


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


def show_plan(console: Console, result: TrainResult) -> None:
    """Print a plan, what other agents would have found, the schedule, and what the bundle gains."""
    _show_stages(console, result)
    _show_values(console, result)
    _show_trial(console, result)
    _show_memory(console, result)
    if result.planned.crowd is not None:
        show_crowd(console, prediction(result.planned.crowd, result.profile, result.found.partition))
    console.drawing(result.profile.schedule(result.found.partition))
    line = f"time to first output: {milliseconds(result.predicted_ttfo_s)} {_predicted(result)}"
    if result.measured_ttfo_s is not None:
        measured = milliseconds(result.measured_ttfo_s)
        line += f", {measured} measured (median of {GAIN_RUNS} fresh processes, {result.request.page_cache} page cache)"
    console.print(line)
    training = None if result.division is None else result.training
    if training is not None and training.output_kind is not None:
        console.print(f"a loss of classes takes the output '{training.output}' as {training.output_kind}")
    replaced = ", in the place of the one that was there" if result.replaced else ""
    console.print(f"bundle: {result.request.target}{replaced}")
    if result.gain is not None:
        console.print(gain_sentence(result.gain))


def _predicted(result: TrainResult) -> str:
    by_formula = result.planned.crowd is not None  # of a crowd; the crowd's simulator schedules every task
    return "simulated" if result.profile.source == "simulated" and not by_formula else "predicted"


def _show_stages(console: Console, result: TrainResult) -> None:
    """Print what each stage holds and costs."""
    graph, profile, partition = result.graph, result.profile, result.found.partition
    rows = []
    for number, (start, end) in enumerate(partition.stages()):
        cost = result.stages.cost(start, end)
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
    counts = f"{count_of(profile.num_blocks, 'block')} in {count_of(partition.num_stages, 'stage')}"
    console.table(
        f"{graph.name} on {profile.device}: {counts}; each alone, {profile.source}",
        ("stage", "blocks", "part of the model", "MB", "load alone ms", "infer ms"),
        rows,
    )


def _show_values(console: Console, result: TrainResult) -> None:
    """Print what the plan is worth beside those of others."""
    found, objective = result.found, OBJECTIVES[result.request.objective]
    values = {name.replace("_", " "): value for name, value in found.values_s.items() if value is not None}
    if not values or result.found.partition == result.planned.search.fewest:
        return
    exact, bound = found.values_s.get("exact"), found.exact_bound_s
    proved = exact is None or bound is None or bound >= exact
    if exact and bound is not None and bound < exact:
        over = f"at most {(exact / bound - 1):.1%} above the optimum" if bound > 0 else "optimum unknown"
        values = {f"best known, {over}" if name == "exact" else name: value for name, value in values.items()}
    count = count_of(found.partition.num_stages, "stage")
    console.table(
        f"{objective.value_phrase.format(count=count)}, {_predicted(result)}",
        ("plan", f"{objective.value_name} ms", "÷ exact" if proved else "÷ best known"),
        [(name, f"{value * 1e3:.2f}", f"{value / exact:.3f}" if exact else "") for name, value in values.items()],
    )
    console.print(_found_by(result))


def _found_by(result: TrainResult) -> str:
    """Return who found the plan, and how far what was learned is behind, for people."""
    found = result.found
    who = {"budget": "measuring within the budget"}.get(found.found_by, found.found_by.replace("_", " "))
    line, learned_s = f"plan found by {who}", found.values_s.get("learned")
    if learned_s is None or found.found_by in LEARNERS:
        return line
    value_s = result.planned.search.value_s(found.partition)
    behind = f"{learned_s / value_s - 1:.2%}" if value_s > 0 else f"{milliseconds(learned_s)}"
    return f"{line}; the plan that q-learning learned is {behind} behind"


def _show_memory(console: Console, result: TrainResult) -> None:
    """Print what the stages need of memory, where that is limited."""
    memory = result.planned.memory
    if memory is None:
        return
    show_needs(console, memory.stages, memory.arena_bytes, result.planned.residency(result.request))
    if result.streamed_bytes is not None:
        console.print(f"weights that come again in each inference: {megabytes(result.streamed_bytes)} (predicted)")


def _show_trial(console: Console, result: TrainResult) -> None:
    """Print how the plan was measured beside the whole model, or why nothing was cut."""
    frozen = result.graph.tail_start is not None
    one = "one frozen stage" if frozen else "one stage"
    if result.trial is not None:
        trial = result.trial.to_json()
        split, whole = (milliseconds(trial[f"{name}_ttfo_s"]) for name in ("split", "whole"))
        kind, rest = ("frozen stage", one) if frozen else ("stage", "the whole model")
        console.print(
            f"{count_of(trial['num_stages'], kind)} answered after {split}, {rest} after {whole} "
            f"(measured, medians of {trial['runs']} fresh processes)"
        )
        if result.found.partition == result.planned.search.fewest:
            console.print(f"{one}, as splitting did not pay")
    elif result.found.cut_s is not None:
        cut_s = result.found.cut_s
        best = "the best two would" if not frozen else "the best cut of what is frozen would"
        what = f"{best} {OBJECTIVES[result.request.objective].done_verb} after {milliseconds(cut_s)}"
        if result.planned.search.pays(cut_s):
            reason = f"{result.request.agent} found no cut that pays, though {what}"
        else:
            reason = f"splitting would not pay: {what}"
        console.print(f"{one}, as {reason} ({_predicted(result)})")

"""What `splitload inspect --why` prints: the best plan of each number of stages, what a cut costs and could save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitload.base.errors import BundleError
from splitload.base.fields import Reader
from splitload.base.phrases import count_of
from splitload.commands.console import Console
from splitload.plan.objectives import OBJECTIVES
from splitload.planner.why import MAX_PLANS

_OF_A_CROWD = " All of this is of one device alone; the plan was taken for the {} of a crowd."


def show_why(
    plan: Mapping[str, Any], num_stages: int, console: Console, *, trained: bool = False, where: str = "plan"
) -> None:
    """Show what a manifest says about how its plan was found.

    Args:
        plan: What the manifest says.
        num_stages: Stages of the bundle.
        console: Where to show it.
        trained: Whether the last stage is one of its own because it is trained.
        where: What the plan is, for errors.

    Raises:
        BundleError: If the bundle does not say why, or in another form than `splitload train` writes.
    """
    if "why" not in plan:
        raise BundleError("the bundle does not say why its plan is as it is; build it again with 'splitload train'")
    notes = Reader(plan, where)
    why = notes.child("why")
    objective, source = (
        notes.choice("objective", *OBJECTIVES),
        notes.choice("profile_source", "measured", "simulated"),
    )
    predicted = "simulated" if source == "simulated" else "predicted"
    found_by = f"; plan found by: {notes.text('found_by')}" if "found_by" in plan else ""  # older bundles do not say
    console.print(f"objective: {objective}; agent: {notes.text('agent')}{found_by}")
    rows, first_s = [], {}
    for row in why.items("plans", 1, MAX_PLANS + 2):
        count, points = row.count("num_stages", 1), row.sequence("split_points")
        first_s[count] = _seconds(row, "ttfo_s")
        loaded, answered = (f"{1e3 * _seconds(row, key):.2f}" for key in ("loaded_s", "ttfo_s"))
        taken = "taken" if count == num_stages else ""
        rows.append((str(count), loaded, answered, taken, " ".join(map(str, points))))
    heads = ("stages", "all loaded ms", "first output ms", "", "split points, in blocks")
    console.table(f"the best plan for each number of stages, {predicted}", heads, rows)
    if plan.get("trial") is not None:
        trial = notes.child("trial")
        kind = "frozen stage" if trained else "stage"
        console.print(
            f"measured when it was made: {count_of(trial.count('num_stages', 1), kind)} answered after "
            f"{1e3 * _seconds(trial, 'split_ttfo_s'):.1f} ms, one after {1e3 * _seconds(trial, 'whole_ttfo_s'):.1f} ms "
            f"(medians of {trial.count('runs', 1)} fresh processes)"
        )
    if plan.get("native_left_out") is not None:
        console.print(notes.text("native_left_out"))
    stage_s, saving_s = _seconds(why, "stage_s"), _seconds(why, "saving_s")
    console.print(
        f"Opening a stage of a cut costs {1e3 * stage_s:.2f} ms besides its share of the model. Loading in parallel "
        f"and inferring meanwhile could save at most {1e3 * saving_s:.1f} of the {1e3 * first_s.get(1, 0.0):.1f} ms "
        f"that one stage takes ({predicted})."
        + (_OF_A_CROWD.format(objective) if OBJECTIVES[objective].of_crowd else " A cut is made for a tenth or more.")
    )
    if trained:
        console.print("The last stage holds what is trained, and is cut off for that, whatever it costs.")


def _seconds(reader: Reader, key: str) -> float:
    """Return a number of seconds."""
    value = reader.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < 1e9:
        raise BundleError(f"{reader.where}.{key} must be a number of seconds, it is {value!r:.40}")
    return float(value)

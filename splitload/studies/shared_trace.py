"""Shared inferences while the link changes: `python -m splitload.studies.shared_trace [MODEL]` (Linux, root).

An emulated pair as in `shared_pair`, whose link carries what a generated trace says, anew in every half second, see
`bandwidth_traces`. The device answers one inference after the other, by the plan for what it sees of the link; then
again from the begin by one plan all the time, for each of those that a simulation of the trace likes best.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.scratch import scratch_folder
from splitload.bundle.collaboration import SHARED
from splitload.collaborative.costs import Costs, Link
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.planning import MOST_STEPS, STEP_BYTES_PER_S, plans_for
from splitload.collaborative.profile import measure_costs
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.store import Planned, write
from splitload.commands.console import Console
from splitload.deploy.share_bench import PATIENT_S
from splitload.studies.bandwidth_traces import STEP_S, SURROUNDINGS, trace
from splitload.studies.records import write_record
from splitload.studies.shared import GOODPUT, LATENCY_S, ROUNDS
from splitload.studies.shared_pair import DEVICE, SERVER, EmulatedPair
from splitload.studies.shared_subjects import subject
from splitload.studies.study import at_least, errors_in_one_line, study_parser

MODEL = "splitload.studies.shared_networks:densenet121"
SECONDS, FIXED, SEED = 300, 4, 3
_WIDE_BITS = 1_000_000_000  # of the server's link, and of the device's while it is measured


def rows(model: str, where: str, seconds: int, folder: Path, console: Console) -> list[dict[str, Any]]:
    """Return what inferences take while a trace is replayed, a row for the product's own choice and each fixed plan."""
    source, graph, bundle = subject(model, folder, console)
    pieces, steps = Pieces(graph), trace(where, seconds, SEED)
    with EmulatedPair(_WIDE_BITS, folder) as pair:
        machines = (pair.machine(DEVICE), pair.machine(SERVER))
        costs = Costs(*(measure_costs(pieces, graph, each, console, rounds=ROUNDS) for each in machines))
        speeds = [step * STEP_BYTES_PER_S for step in range(MOST_STEPS + 1)]
        plans = plans_for(pieces, costs, speeds, LATENCY_S, 0, console)
        fixed = _fixed(SegmentCosts(pieces.levels, costs), [each.plan for each in plans], steps)
        first = plans[0]
        named = {name: (plan, first.predicted_s) for name, plan in fixed.items()}
        write(bundle, graph, pieces, [Planned(0.0, first.plan, first.predicted_s, named), *plans[1:]])
        address, found = pair.serve(bundle), []
        for arm in (SHARED, *fixed):
            pair.limit(_WIDE_BITS)
            samples = _replayed(pair, folder / "begun", steps, bundle, model, address, arm, seconds)
            mean_s = statistics.fmean(each["latency_s"] for each in samples)
            console.print(f"{where}, {arm}: {len(samples)} inferences, mean {1e3 * mean_s:.0f} ms")
            found.append(
                {
                    "model": model, "model_sha256": source.sha256, "where": where, "seed": SEED, "arm": arm,
                    "plan": None if arm == SHARED else list(fixed[arm].exchanges), "megabits_per_s": steps,
                    "samples": samples,
                }
            )  # fmt: skip
    return found


def _fixed(costs: SegmentCosts, plans: Sequence[SharedPlan], steps: Sequence[float]) -> dict[str, SharedPlan]:
    """Return the plans that take least on the average of a trace, simulated as if no inference saw a change."""
    links = [Link(each * 1e6 / 8 * GOODPUT, LATENCY_S) for each in steps]
    means = {plan: statistics.fmean(costs.latency_s(plan, link) for link in links) for plan in dict.fromkeys(plans)}
    best = sorted(means, key=lambda plan: means[plan])[:FIXED]
    return {f"fixed {number + 1}": plan for number, plan in enumerate(best)}


def _replayed(
    pair: EmulatedPair, begun: Path, steps: Sequence[float], bundle: Path, model: str, address: str, arm: str,
    seconds: int,
) -> list[dict[str, Any]]:  # fmt: skip
    """Return the inferences of an arm while the link follows a trace; a fixed plan is waited for, come what may."""
    begun.unlink(missing_ok=True)
    ended, failed = threading.Event(), list[BaseException]()

    def change() -> None:
        try:
            follow()
        except BaseException as error:
            failed.append(error)

    def follow() -> None:
        while not begun.exists():
            if ended.wait(0.005):
                return
        start_s = time.monotonic()
        for number, megabits in enumerate(steps):
            pair.limit(round(megabits * 1e6))
            if ended.wait(max(start_s + (number + 1) * STEP_S - time.monotonic(), 0)):
                return

    thread = threading.Thread(target=change)
    thread.start()
    try:
        answer = pair.ask(
            DEVICE, "replay", bundle=str(bundle), model=model, server=address, arm=arm, begun=str(begun),
            deadline_s=None if arm == SHARED else PATIENT_S, seconds=seconds,
        )  # fmt: skip
    finally:
        ended.set()
        thread.join()
    if failed:
        raise failed[0]
    samples: list[dict[str, Any]] = answer
    return samples


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Replay the traces; print what came of them, and perhaps record it."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("shared_trace", __doc__)
    parser.add_argument("model", nargs="?", default=MODEL, metavar="MODEL", help="default: %(default)s")
    parser.add_argument("--seconds", type=at_least(1), default=SECONDS, metavar="S", help="default: %(default)s")
    parser.add_argument("--where", choices=list(SURROUNDINGS), nargs="+", default=list(SURROUNDINGS))
    options = parser.parse_args(words)
    console, made = Console(json=False), []
    with scratch_folder(user_cache(), ".shared-") as folder:
        for where in options.where:
            made += rows(options.model, where, options.seconds, folder, console)
    if options.output:
        write_record(options.output, "shared_trace", "splitload.studies.shared_trace", words, made)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

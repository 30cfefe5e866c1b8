"""How well the schedule of a profile predicts this machine: `python -m splitload.studies.predictions --help`."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitload.agents import baselines, exact
from splitload.base.cache import user_cache
from splitload.base.phrases import count_of
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import VariantPlan
from splitload.commands.console import Console
from splitload.devices.host import HostDevice
from splitload.envs.costs import cost_matrices
from splitload.frontends import open_source, zoo
from splitload.frontends.onnx import load_graph
from splitload.measure.sampling import Sample
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.plan.schedule import Schedule
from splitload.planner.measure_plans import measure_plans
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

RUNS = 9
BALANCED, UNIFORM, RANDOM = (2, 4), (3, 6), (4,)  # numbers of stages that each rule cuts a model into
THREADS = (1, 2)
PARTS = ("ttfo_s", "load_s", "first_inference_s")


def plans_of(graph: ModelGraph, profile: Profile) -> list[VariantPlan]:
    """Return what is predicted and measured: the whole model, and each cut at every number of loading threads.

    The cuts are those into equal loads, into equal bytes, and one drawn at random, without those that come twice. One
    stage loads in the same way on any number of threads and is taken once.
    """
    load_s = cost_matrices(profile).load_s
    blocks = [block.weights_bytes for block in profile.blocks]
    cuts = [exact.balance(load_s, count)[0] for count in BALANCED if count <= len(blocks)]
    cuts += [baselines.uniform_bytes(blocks, count) for count in UNIFORM if count <= len(blocks)]
    cuts += [baselines.random_partition(len(blocks), count) for count in RANDOM if count <= len(blocks)]
    partitions = [Partition(len(blocks), points) for points in sorted(set(cuts), key=lambda cut: (len(cut), cut))]
    whole = VariantPlan(graph, Partition(len(blocks)), 1)
    return [whole, *(VariantPlan(graph, partition, threads) for partition in partitions for threads in THREADS)]


def predict(profile: Profile, plan: VariantPlan) -> Schedule:
    """Return the schedule of a plan on its number of loading threads."""
    contention = profile.contention._replace(threads=plan.threads)
    return replace(profile, contention=contention).schedule(plan.partition)


def case(profile: Profile, again: Profile, plan: VariantPlan, samples: Sequence[Sample]) -> dict[str, Any]:
    """Return what the record says of one plan.

    Args:
        profile: What predicts.
        again: The same, measured a second time, after the samples.
        plan: The plan.
        samples: Its samples, at least two.

    Returns:
        predicted_s and its parts: the end of the last load and the sum of the first inferences; predicted_plain_s
        without what a call and a cut cost besides, and predicted_again_s from the second profile; `samples_s`, for each
        part what every process took; error, predicted ÷ median - 1; and halves_apart, by how much the median of the
        second half of the samples differs from that of the first, as a share: what a perfect prediction would still err
        by, and more, as halves are smaller than the whole.
    """
    schedule = predict(profile, plan)
    plain = profile.contention._replace(start_s=0.0, cut_infer_s=0.0)
    taken_s = [sample["ttfo_s"] for sample in samples]
    half = len(taken_s) // 2
    return {
        "split_points": list(plan.partition.split_points),
        "num_stages": plan.partition.num_stages,
        "threads": plan.threads,
        "predicted_s": schedule.ttfo_s,
        "predicted_load_s": schedule.load_makespan_s,
        "predicted_first_inference_s": sum(t.end_s - t.start_s for t in schedule.tasks if t.kind == "infer"),
        "predicted_plain_s": predict(replace(profile, contention=plain), plan).ttfo_s,
        "predicted_again_s": predict(again, plan).ttfo_s,
        "samples_s": {part: [sample[part] for sample in samples] for part in PARTS},
        "error": schedule.ttfo_s / statistics.median(taken_s) - 1,
        "halves_apart": abs(statistics.median(taken_s[-half:]) / statistics.median(taken_s[:half]) - 1),
    }


def compare(model: str, runs: int, console: Console, cache: Path) -> dict[str, Any]:
    """Profile a model, predict and measure its plans, and return its row of the record.

    Profiles go to a folder of their own: nothing that was measured at another time is used, or overwritten.

    Raises:
        SplitloadError: If the model cannot be read, built or measured.
    """
    source = open_source(model, cache)
    graph = load_graph(source, "native", cache)
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache, ".predictions-") as folder:
        device = HostDevice(folder)
        profile = device.profile(graph)
        plans = plans_of(graph, profile)
        measured = measure_plans(device, source, plans, runs, console, cache, feeds={})
        again = HostDevice(folder, refresh=True).profile(graph)
    return {
        "model": source.name,
        "model_sha256": source.sha256,
        "num_blocks": profile.num_blocks,
        "contention": profile.contention._asdict(),
        "contention_again": again.contention._asdict(),
        "runs": runs,
        "cases": [case(profile, again, plan, samples) for plan, samples in zip(plans, measured, strict=True)],
    }


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Predict and measure models, print how far apart the two are, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("predictions", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: every zoo model")
    parser.add_argument("--runs", type=at_least(2), default=RUNS, metavar="N", help="samples (default: %(default)s)")
    options = parser.parse_args(words)
    console = Console(json=False)
    rows = []
    models = options.models or [f"zoo:{name}" for name in zoo.names()]
    for model in models:
        open_source(model, user_cache())  # a name that is wrong, before anything is measured
    for model in models:
        row = compare(model, options.runs, console, user_cache())
        errors = [each["error"] for each in row["cases"]]
        apart = statistics.median(each["halves_apart"] for each in row["cases"])
        console.print(
            f"{row['model']:<14} {count_of(len(errors), 'case')}: error {min(errors):+.0%} to {max(errors):+.0%}, "
            f"median {statistics.median(errors):+.0%}; halves of the samples {apart:.0%} apart"
        )
        rows.append(row)
    if options.output:
        write_record(options.output, "predictions", "splitload.studies.predictions", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

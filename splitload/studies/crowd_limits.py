"""What a crowd could do at most, by the seconds that its workers take for each stage."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

Seconds = Sequence[Sequence[float]]  # of each worker, by stage


def seconds_of(stages: Mapping[str, Mapping[str, Mapping[str, float]]], num_stages: int) -> list[list[float]]:
    """Return the mean seconds of each worker for each stage, from what `run_batch` says of a batch.

    Where a worker did not run a stage, they are the mean of those that did.

    Args:
        stages: By device and stage, how many inputs were run and in how many seconds.
        num_stages: All of which were run by some worker.
    """
    names = [str(stage) for stage in range(num_stages)]

    def mean_s(found: Sequence[Mapping[str, float]]) -> float:
        return sum(each["run_s"] for each in found) / sum(each["count"] for each in found)

    common = {name: mean_s([device[name] for device in stages.values() if name in device]) for name in names}
    return [
        [mean_s([device[name]]) if name in device else common[name] for name in names] for device in stages.values()
    ]


def slowest_stage_rate(seconds: Seconds) -> float | None:
    """Return the inputs a second of the slowest stage, each worker at one stage, in the best such arrangement.

    Its rate is the sum over its workers of 1 / seconds; no pipeline whose workers stay where they are does more.
    None where there are fewer workers than stages, or too many of both to try all.
    """
    num_stages = len(seconds[0])
    if len(seconds) < num_stages or num_stages ** len(seconds) > 1_000_000:
        return None
    best = 0.0
    for places in itertools.product(range(num_stages), repeat=len(seconds)):
        rates = [0.0] * num_stages
        for worker, stage in zip(seconds, places, strict=True):
            rates[stage] += 1 / worker[stage]
        best = max(best, min(rates))
    return best


def shared_rate(seconds: Seconds) -> float:
    """Return the inputs a second if every worker ran all stages, without a pause and without loading any.

    Of equal workers no schedule does more; of unequal ones some may do a little more, where each is better at another
    stage.
    """
    return sum(1 / sum(worker) for worker in seconds)


def measured(sample: Mapping[str, Any], num_stages: int) -> dict[str, float | None]:
    """Return the rate of a batch, and both limits."""
    seconds = seconds_of(sample["stages"], num_stages)
    return {
        "inputs_per_s": sample["num_inputs"] / sample["batch_s"],
        "slowest_stage_per_s": slowest_stage_rate(seconds),
        "shared_per_s": shared_rate(seconds),
    }

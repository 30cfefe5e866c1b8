"""What `splitload train --crowd` prints of a plan on its crowd: who holds which stage, and how long it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from splitload.base.phrases import count_of
from splitload.commands.console import Console


def show_crowd(console: Console, predicted: Mapping[str, Any]) -> None:
    """Print what a plan comes to on a crowd.

    Args:
        console: Where to print it.
        predicted: What `splitload.planner.crowd_plan.prediction` returns.
    """
    workers = count_of(predicted["num_workers"], "worker")
    console.table(
        f"on a crowd of {workers}, predicted",
        ("stage", "MB on a worker", "workers that hold it", "input kB", "first input s", "each input ms"),
        [
            (
                str(number),
                f"{stage['worker_bytes'] / 1e6:.2f}",
                str(stage["workers"]),
                f"{stage['input_bytes'] / 1e3:.1f}",
                f"{stage['first_s']:.2f}",
                f"{stage['each_s'] * 1e3:.2f}",
            )
            for number, stage in enumerate(predicted["stages"], start=1)
        ],
    )
    console.print(
        f"a batch of {predicted['batch']}: {predicted['latency_s']:.2f} s, stages on their way included; afterwards "
        f"{predicted['throughput_per_s']:.3g} outputs a second (predicted)"
    )

"""Simulates crowds of growing size: `python -m splitload.studies.crowd_growth --help`."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from splitload.commands.console import Console
from splitload.crowd.entities import Stage, Worker
from splitload.crowd.mechanisms import Mechanisms
from splitload.crowd.pipeline import Pipeline
from splitload.crowd.simulate import SimulatedDevice, Simulation, Surroundings, simulate
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

SIZES = (10, 100, 1000, 10_000)
ITEMS_FOR_EACH = 4  # as many as may be in flight by default
# DistilBERT at 128 tokens in eight even stages, on a device that takes two seconds for the whole model.
STAGES = tuple(
    Stage(f"s{index}", 33_500_000, 40_000_000, run_s=0.25, load_s=0.1, output_bytes=128 * 768 * 4 if index < 7 else 8)
    for index in range(8)
)
SPEEDS = (0.25, 0.5, 1.0, 2.0)
LINK_BYTES_PER_S = 5e6  # 40 Mbit/s
AROUND = Surroundings(
    client_bytes_per_s=125e6, input_bytes=1024, scheduling_s=1e-3, spread=0.1, seed=1
)  # 1 Gbit/s; 1 ms a task is what Dask says of itself, the share of splitload apart

MECHANISMS = Mechanisms(hang_factor=None)  # nothing hangs here; what waits for the client's link would seem to

CASES = {
    "stages travel from the client": (False, replace(AROUND, peers=False)),
    "stages travel between devices": (False, AROUND),
    "stages are on disk": (True, AROUND),
    "on disk, and scheduling takes no time": (True, replace(AROUND, scheduling_s=0.0)),
}


def devices(count: int, cached: bool) -> list[SimulatedDevice]:
    """Return devices of mixed speeds, which the scheduler takes for equal until it has measured them."""
    speeds = random.Random(count).choices(SPEEDS, k=count)  # noqa: S311
    stages = frozenset(range(len(STAGES))) if cached else frozenset()
    return [
        SimulatedDevice(Worker(f"d{index:05}", 43 << 20, 1.0, LINK_BYTES_PER_S, stages), speed)
        for index, speed in enumerate(speeds)
    ]


def row(case: str, count: int) -> dict[str, Any]:
    """Simulate one case with so many devices and return what came of it."""
    cached, around = CASES[case]
    crowd = devices(count, cached)
    started_s = time.perf_counter()
    result = simulate(STAGES, crowd, ITEMS_FOR_EACH * count, MECHANISMS, around)
    return {
        "source": "simulated",
        "case": case,
        "num_devices": count,
        "num_items": ITEMS_FOR_EACH * count,
        **figures(result, crowd),
        "simulating_s": time.perf_counter() - started_s,
    }


def figures(result: Simulation, crowd: Sequence[SimulatedDevice]) -> dict[str, Any]:
    """Return the figures of a simulated run; shares are of its makespan, of devices on average."""
    speed = sum(device.speed or device.worker.speed for device in crowd)
    ideal_items_per_s = speed / sum(stage.run_s for stage in STAGES)
    tallies = result.tallies.values()
    whole_s = result.makespan_s
    return {
        "makespan_s": whole_s,
        "items_per_s": result.items_per_s,
        "share_of_ideal": result.items_per_s / ideal_items_per_s,
        "busy_share": sum(tally.run_s for tally in tallies) / len(crowd) / whole_s,
        "scheduler_share": result.scheduler_s / whole_s,
        "client_link_share": result.client_s / whole_s,
        "client_bytes": result.client_bytes,
        "client_stage_bytes": result.client_stage_bytes,
        "stage_bytes": sum(tally.stage_bytes for tally in tallies),
        "tensor_bytes": sum(tally.tensor_bytes for tally in tallies),
        "loads_for_each_device": sum(tally.loads for tally in tallies) / len(crowd),
        "num_assignments": result.num_assignments,
    }


def scheduling_cost(num_workers: int = 100, num_stages: int = 16, num_items: int = 10_000) -> dict[str, Any]:
    """Measure what `Pipeline` itself takes for each task, while simulated devices run them."""
    crowd = [SimulatedDevice(Worker(f"d{index:05}"), SPEEDS[index % len(SPEEDS)]) for index in range(num_workers)]
    stages = [replace(STAGES[0], name=f"s{index}") for index in range(num_stages)]
    clocked = _Clocked()
    result = simulate(stages, crowd, num_items, surroundings=Surroundings(spread=0.1, seed=1), watch=clocked.watch)
    return {
        "source": "measured",
        "case": "scheduling cost",
        "num_devices": num_workers,
        "num_stages": num_stages,
        "num_items": num_items,
        "num_assignments": result.num_assignments,
        "scheduling_s_for_each_task": clocked.seconds / result.num_assignments,
    }


class _Clocked:
    """Measures the seconds that a pipeline's methods take."""

    METHODS = ("add_worker", "add_item", "step", "finished", "delivered", "take")

    def __init__(self) -> None:
        self.seconds = 0.0

    def watch(self, pipeline: Pipeline) -> None:
        """Let every call of the pipeline's methods be measured."""
        for name in self.METHODS:
            setattr(pipeline, name, self._clocked(getattr(pipeline, name)))

    def _clocked(self, method: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started_s = time.perf_counter()
            try:
                return method(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started_s

        return call


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Simulate all cases and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("crowd_growth", __doc__)
    parser.add_argument("--devices", nargs="+", type=at_least(1), default=SIZES, metavar="N", help="sizes of the crowd")
    parser.add_argument("--items", type=at_least(1), default=10_000, metavar="N", help="inputs for the scheduling cost")
    options = parser.parse_args(words)
    console = Console(json=False)
    rows = [scheduling_cost(num_items=options.items)]
    cost_s = rows[0]["scheduling_s_for_each_task"]
    console.print(f"scheduling takes {cost_s * 1e3:.2f} ms a task (measured, 100 simulated devices, 16 stages)")
    for case, count in itertools.product(CASES, options.devices):
        rows.append(row(case, count))
        console.print(
            f"simulated  {case:<38} {count:>6} devices  {rows[-1]['items_per_s']:>8.2f} items/s, "
            f"{rows[-1]['share_of_ideal']:.0%} of what all devices could do"
        )
    if options.output:
        write_record(options.output, "crowd_growth", "splitload.studies.crowd_growth", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Where the time to the first output goes, load by load: `python -m splitload.studies.first_output --help`.

A stock session, the bundle as one stage and the bundle as several stages take turns, each time in a fresh process of
the command line. Each sample is a schedule, the same value that the loader and the simulator make.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import StageError
from splitload.base.phrases import milliseconds
from splitload.base.scratch import scratch_folder
from splitload.commands.console import Console
from splitload.measure.process import python
from splitload.plan.schedule import Schedule, Task
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser

Ask = Callable[[Sequence[str]], dict[str, Any]]


def ask(words: Sequence[str]) -> dict[str, Any]:
    """Return what a command of splitload prints with `--json`, run in a fresh process.

    Raises:
        StageError: If it fails.
    """
    done = subprocess.run(python("splitload.cli", *words, "--json"), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise StageError(f"'splitload {words[0]}' failed: {reason}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def stock_schedule(answer: dict[str, Any]) -> dict[str, Any]:
    """Return the one stock sample of `splitload bench` as a schedule: a load, and the inference behind it."""
    (sample,) = answer["samples"]["stock"]
    load_s, ttfo_s = sample["load_s"], sample["ttfo_s"]
    tasks = (Task(0, "load", 0, 0.0, load_s), Task(0, "infer", 0, load_s, ttfo_s))
    return Schedule(tasks, "measured").to_json()


def measure(model: str, split_points: Sequence[str], runs: int, folder: Path, ask: Ask) -> list[dict[str, Any]]:
    """Return a row for each arm, with the schedule of every sample.

    Args:
        model: MODEL of the command line.
        split_points: Values of `--split-points`, one for each bundle; "" is one stage.
        runs: Samples of each arm.
        folder: Where the bundles are built.
        ask: Runs a command of splitload and returns its JSON.

    Raises:
        StageError: If a command fails.
    """
    bundles = [str(folder / f"{number}.splitload") for number in range(len(split_points))]
    for bundle, points in zip(bundles, split_points, strict=True):
        ask(["train", model, "--device", "host", "--split-points", points, "-o", bundle])
    schedules: list[list[dict[str, Any]]] = [[] for _ in range(1 + len(bundles))]
    model_bytes = 0
    for turn in range(runs):
        for place in range(len(schedules)):
            arm = (turn + place) % len(schedules)
            if arm == 0:
                answer = ask(["bench", model, "--bundle", bundles[0], "--arms", "stock", "--runs", "1"])
                model_bytes = answer["model_bytes"]
                schedules[0].append(stock_schedule(answer))
            else:
                schedules[arm].append(ask(["run", bundles[arm - 1]])["timeline"])
    return [
        {
            "model": model,
            "model_bytes": model_bytes,
            "arm": "splitload" if arm else "stock",
            "num_stages": 1 + max(task["stage"] for task in samples[0]["tasks"]),
            "ttfo_s": _spread([_ttfo_s(schedule) for schedule in samples]),
            "schedules": samples,
        }
        for arm, samples in enumerate(schedules)
    ]


def _ttfo_s(schedule: dict[str, Any]) -> float:
    return Schedule(tuple(Task(**task) for task in schedule["tasks"]), schedule["source"]).ttfo_s


def _spread(samples: list[float]) -> dict[str, Any]:
    return {"median": statistics.median(samples), "min": min(samples), "max": max(samples), "samples": samples}


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure the arms in turns, and write the record."""
    words = sys.argv[1:] if words is None else words
    parser = study_parser("first_output", __doc__)
    parser.add_argument("model", metavar="MODEL")
    parser.add_argument("--split-points", required=True, metavar="P,P,...", help="the plan of several stages")
    parser.add_argument("--runs", type=at_least(1), default=9, metavar="N", help="samples of each arm (default: 9)")
    options = parser.parse_args(words)
    console = Console(json=False)
    with scratch_folder(user_cache(), "first-output-") as folder:
        rows = measure(options.model, ("", options.split_points), options.runs, folder, ask)
    for row in rows:
        name = f"{row['arm']}, {row['num_stages']} stage{'s' * (row['num_stages'] > 1)}"
        console.print(f"{name:20} {milliseconds(row['ttfo_s']['median'])}")
    if options.output is not None:
        write_record(options.output, "timeline", "splitload.studies.first_output", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

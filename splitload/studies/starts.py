"""Time to first output and of the whole process, beside those of an earlier checkout, in turns, on one bundle."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import StageError
from splitload.base.scratch import scratch_folder
from splitload.bundle.read import read_manifest
from splitload.commands.console import Console
from splitload.measure.process import python
from splitload.runtime.inputs import example_inputs, save_feeds
from splitload.studies.builds import ARMS, check_checkout, commit_of
from splitload.studies.study import at_least, errors_in_one_line, growing_record, study_parser

FIGURES = ("ttfo_s", "process_s")
# Either checkout runs it: imports first, as in every arm of the benchmark, then the load call and the first answer.
PROGRAM = """
import json, sys, time
import numpy as np, onnxruntime
from splitload import ParallelLoader
feeds = {name: np.load(file) for name, file in json.loads(sys.argv[2]).items()}
start = time.perf_counter()
with ParallelLoader(sys.argv[1], upgrade=False) as model:
    model.run(None, feeds)
    print(time.perf_counter() - start, time.monotonic(), flush=True)
"""


def row(model: str, checkout: Path, runs: int, folder: Path) -> dict[str, Any]:
    """Load a bundle in turns by the code of a checkout and by this one; return a row of the record.

    The bundle is made by this code. A first turn fills the page cache and does not count.

    Args:
        model: A MODEL word.
        checkout: A checkout with the code of before, which its virtual environment `.venv` runs.
        runs: Samples of each, every one of a fresh process.
        folder: Where the bundle is written.

    Raises:
        StageError: If a process fails.
    """
    bundle = folder / "model.splitload"
    _run([*python("splitload.cli", "train", model, "--device", "host", "-o", str(bundle), "--json")], folder)
    manifest = read_manifest(bundle)
    feeds = json.dumps(save_feeds(example_inputs(manifest.inputs), folder))
    program = folder / "start.py"
    program.write_text(PROGRAM, encoding="utf-8")
    commands = {"before": [str((checkout / ".venv" / "bin" / "python").absolute()), str(program)]}
    commands["after"] = python(program)
    samples: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    for turn in range(runs + 1):
        for arm in ARMS if turn % 2 == 0 else ARMS[::-1]:
            start_s = time.monotonic()
            said = _run([*commands[arm], str(bundle), feeds], folder)
            ttfo_s, answered_s = map(float, said.split())
            if turn:
                samples[arm].append({"ttfo_s": ttfo_s, "process_s": answered_s - start_s})
    return {
        "model": model.removeprefix("zoo:"),
        "before_commit": commit_of(checkout),
        "num_stages": len(manifest.variants[0].stages),
        "ratio": {key: _median(samples["after"], key) / _median(samples["before"], key) for key in FIGURES},
        "samples": samples,
    }


def _median(samples: Sequence[Mapping[str, float]], key: str) -> float:
    return statistics.median(sample[key] for sample in samples)


def _run(command: list[str], folder: Path) -> str:
    """Return what a process prints."""
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False)
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise StageError(f"a process failed: {lines[-1][:300]}")
    return done.stdout


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Load bundles by both checkouts, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("starts", __doc__)
    models = ["zoo:resnet152", "zoo:squeezenet1_1"]
    parser.add_argument("models", nargs="*", metavar="MODEL", default=models, help=f"default: {' '.join(models)}")
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER", help="a checkout with a .venv")
    parser.add_argument("--runs", type=at_least(1), default=15, metavar="N", help="samples (default: %(default)s)")
    options = parser.parse_args(words)
    check_checkout(options.before)
    console, cache = Console(json=False), user_cache()
    shown = ["FOLDER" if word == str(options.before) else word for word in words]  # a place on this machine
    with growing_record(options.output, "starts", "splitload.studies.starts", shown) as keep:
        for model in options.models:
            cache.mkdir(parents=True, exist_ok=True)
            with scratch_folder(cache, ".starts-") as folder:
                made = row(model, options.before, options.runs, folder)
            ratios = ", ".join(f"{key} {made['ratio'][key]:.3f}" for key in FIGURES)
            console.print(f"{made['model']}: after ÷ before {ratios}")
            keep([made])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

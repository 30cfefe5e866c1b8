"""How long `splitload train` takes with a warm cache, beside the same command of an earlier checkout, in turns."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import StageError, UsageError
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import MANIFEST
from splitload.commands.console import Console
from splitload.measure.process import python
from splitload.studies.study import at_least, errors_in_one_line, growing_record, study_parser

ARMS = ("before", "after")


def row(model: str, checkout: Path, runs: int, folder: Path, options: Sequence[str] = ()) -> dict[str, Any]:
    """Train a model in turns by the code of a checkout and by this one; return a row of the record.

    Both use the user's cache, which a run of each fills first. Whether they wrote the same files is told by the names,
    which hold hashes. The manifest does not count, as it holds what was measured, nor do canaries: onnxruntime writes
    their few operators in another order from process to process.

    Args:
        model: A MODEL word.
        checkout: A checkout with the code of before, which its virtual environment `.venv` runs.
        runs: Samples of each.
        folder: Where the bundles are written.
        options: Further options of `splitload train`.

    Raises:
        StageError: If one of the two fails.
    """
    programs = {"before": [str(checkout / ".venv" / "bin" / "python"), "-m", "splitload"]}
    programs["after"] = python("splitload.cli")
    samples: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
    files: dict[str, list[str]] = {}
    points: dict[str, Any] = {}
    for turn in range(runs + 1):
        for arm in ARMS if turn % 2 == 0 else ARMS[::-1]:
            bundle = folder / f"{arm}.splitload"
            words = ["train", model, "--device", "host", *options, "-o", str(bundle), "--json"]
            sample, result = _timed(arm, [*programs[arm], *words], folder)
            if turn:
                samples[arm].append(sample)
            points[arm] = result["plan"]["split_points"]
            files[arm] = sorted(
                file.name for file in bundle.iterdir() if file.name != MANIFEST and not file.name.startswith("canary-")
            )
    wall_s = {arm: statistics.median(sample["wall_s"] for sample in samples[arm]) for arm in ARMS}
    return {
        "model": model.removeprefix("zoo:"),
        "options": list(options),
        "before_commit": commit_of(checkout),
        "split_points": points,
        "same_files": files["before"] == files["after"],
        "wall_s": wall_s,
        "ratio": wall_s["after"] / wall_s["before"],
        "samples": samples,
    }


def _timed(arm: str, command: list[str], folder: Path) -> tuple[dict[str, float], dict[str, Any]]:
    """Run a command; return its seconds, with those that it and its processes computed, and what it printed."""
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False)
    wall_s, after = time.perf_counter() - start, os.times()
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise StageError(f"arm '{arm}' failed: {lines[-1][:300]}")
    cpu_s = sum(getattr(after, key) - getattr(before, key) for key in ("children_user", "children_system"))
    result: dict[str, Any] = json.loads(done.stdout)
    return {"wall_s": wall_s, "cpu_s": cpu_s}, result


def check_checkout(folder: Path) -> None:
    """Make sure that a checkout has an environment that runs it.

    Raises:
        UsageError: If it has none.
    """
    if not (folder / ".venv" / "bin" / "python").exists():
        raise UsageError(f"'{folder}' has no .venv/bin/python with that checkout installed in it")


def commit_of(checkout: Path) -> str:
    """Return the commit that a checkout stands at."""
    command = ["git", "-C", str(checkout), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Train models by both checkouts, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("builds", __doc__)
    parser.add_argument("models", nargs="*", metavar="MODEL", default=["zoo:resnet152"], help="default: zoo:resnet152")
    parser.add_argument("--before", type=Path, required=True, metavar="FOLDER", help="a checkout with a .venv")
    parser.add_argument("--split-points", metavar="I,J,…", help="cut there, in place of a search")
    parser.add_argument("--runs", type=at_least(1), default=5, metavar="N", help="samples (default: %(default)s)")
    options = parser.parse_args(words)
    check_checkout(options.before)
    console, cache = Console(json=False), user_cache()
    given = [] if options.split_points is None else ["--split-points", options.split_points]
    shown = ["FOLDER" if word == str(options.before) else word for word in words]  # a place on this machine
    with growing_record(options.output, "builds", "splitload.studies.builds", shown) as keep:
        for model in options.models:
            cache.mkdir(parents=True, exist_ok=True)
            with scratch_folder(cache, ".builds-") as folder:
                made = row(model, options.before.absolute(), options.runs, folder, given)
            before_s, after_s = (made["wall_s"][arm] for arm in ARMS)
            console.print(f"{made['model']}: {after_s:.1f} s, before {before_s:.1f} s ({made['ratio']:.2f})")
            keep([made])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

"""Benchmarks: fresh processes, arms interleaved, every sample kept.

`run_arms` starts one process for each sample; `python -m splitload.bench` is that process: it reads a job as JSON,
loads and runs the model once in one arm's way, and answers with seconds and bytes. Times start at the load call, after
onnxruntime is imported, in every arm.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.bundle import TensorSpec
from splitload.errors import StageError
from splitload.inputs import InputSpec, example_inputs, load_feeds, save_feeds

FIGURES = ("ttfo_s", "load_s", "first_inference_s", "steady_inference_s", "peak_memory_bytes")
STEADY_RUNS = 5


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to load and run a model.

    Attributes:
        name: "stock" (a plain session on the original file), "tuned" (one session on the whole optimised file,
            mapped, taken as it is) or "splitload" (`ParallelLoader` on a bundle).
        path: The file or bundle it opens.
        threads: Loading threads of the splitload arm; None for the bundle's own.
    """

    name: str
    path: Path
    threads: int | None = None


def run_arms(
    arms: Sequence[Arm],
    inputs: Iterable[InputSpec],
    feeds: Mapping[str, Any],
    runs: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, list[dict[str, float]]]:
    """Measure every arm `runs` times, in turns, each time in a fresh process.

    Args:
        arms: What to compare.
        inputs: The model's inputs.
        feeds: Values of inputs; made up, the same in every arm, where they are missing.
        runs: Samples for each arm, at least 1.
        on_progress: Called as `on_progress(done, total)`.

    Returns:
        The samples of each arm, in order; each has the keys in `FIGURES`.

    Raises:
        StageError: If an arm fails.
    """
    samples: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms}
    with tempfile.TemporaryDirectory(prefix="splitload-bench-") as made:
        job = {
            "inputs": [{"name": each.name, "type": each.type, "shape": each.shape} for each in inputs],
            "feeds": save_feeds(feeds, Path(made)),
        }
        for turn in range(runs):
            for place in range(len(arms)):
                arm = arms[(turn + place) % len(arms)]
                samples[arm.name].append(_sample(arm, job))
                if on_progress is not None:
                    on_progress(turn * len(arms) + place + 1, runs * len(arms))
    return samples


def summarize(samples: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return median, minimum and maximum of each figure."""
    return {
        key: {
            "median": statistics.median(sample[key] for sample in samples),
            "min": min(sample[key] for sample in samples),
            "max": max(sample[key] for sample in samples),
        }
        for key in FIGURES
    }


def _sample(arm: Arm, job: Mapping[str, Any]) -> dict[str, float]:
    """Measure one arm in a fresh process."""
    job = {"arm": arm.name, "path": str(arm.path.resolve()), "threads": arm.threads, **job}
    done = subprocess.run(
        [sys.executable, "-m", "splitload.bench"], input=json.dumps(job), capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise StageError(f"benchmark arm '{arm.name}' failed: {lines[-1][:300]}")
    answer: dict[str, float] = json.loads(done.stdout)
    return answer


def _measure(job: Mapping[str, Any]) -> dict[str, float]:
    """Load and run the model of `job`; the body of the fresh process."""
    import onnxruntime as ort

    from splitload.loader import ParallelLoader

    specs = [TensorSpec(row["name"], row["type"], row["shape"]) for row in job["inputs"]]
    feeds = example_inputs(specs, load_feeds(job["feeds"]))
    if job["arm"] == "tuned":
        ort.set_global_thread_pool_sizes(0, 1)
    start = time.perf_counter()
    model = ParallelLoader(job["path"], threads=job["threads"]) if job["arm"] == "splitload" else _session(ort, job)
    opened = time.perf_counter()
    model.run(None, feeds)
    first = time.perf_counter()
    load_s, first_s = opened - start, first - opened
    if job["arm"] == "splitload":
        tasks = model.timeline
        load_s = tasks.load_makespan_s
        first_s = sum(task.end_s - task.start_s for task in tasks.tasks if task.kind == "infer")
        model.wait("upgraded")
    steady = []
    for _ in range(STEADY_RUNS):
        before = time.perf_counter()
        model.run(None, feeds)
        steady.append(time.perf_counter() - before)
    return {
        "ttfo_s": first - start,
        "load_s": load_s,
        "first_inference_s": first_s,
        "steady_inference_s": statistics.median(steady),
        "peak_memory_bytes": _peak_memory_bytes(),
    }


def _session(ort: Any, job: Mapping[str, Any]) -> Any:
    """Return one session on the whole model, in the way of the job's arm."""
    options = ort.SessionOptions()
    if job["arm"] == "tuned":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.use_per_session_threads = False
        options.add_session_config_entry("session.disable_prepacking", "1")
    return ort.InferenceSession(job["path"], options, providers=["CPUExecutionProvider"])


def _peak_memory_bytes() -> int:
    """Return the largest resident size of this process so far."""
    if sys.platform.startswith("linux"):  # where ru_maxrss starts at the size of the process that started this one
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    json.dump(_measure(json.load(sys.stdin)), sys.stdout)

"""Samples: a fresh process each, arms in turns, files evicted first where they are to be read cold."""

from __future__ import annotations

import json
import py_compile
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from splitload.base.errors import StageError
from splitload.measure import pagecache
from splitload.measure.process import python
from splitload.runtime.inputs import InputSpec, example_inputs, save_feeds

FIGURES = (
    "ttfo_s",
    "load_s",
    "first_inference_s",
    "steady_inference_s",
    "process_s",
    "import_s",
    "peak_memory_bytes",
    "settled_memory_bytes",
    "major_faults",
)
PAUSE_S = 0.2  # for the system to clear away the process before, which would run beside the next one
CHILD = Path(__file__).with_name("__main__.py")
_TOLERANCE = 1e-3  # of the largest magnitude in an output; arms that compute in float32 stay far below
_HALF_TOLERANCE = 5e-3  # where stock's is of half precision, and rounds what others may keep
_ENGINE_TOLERANCE = {"openvino": 5e-2, "ncnn": 5e-2}  # which may take half precision on their own account
Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to load and run a model.

    Attributes:
        name: One of `splitload.measure.arms.ARMS`.
        path: The file or bundle it opens.
        threads: Threads it is told to use: loading threads of the splitload arm, inference threads of ncnn; None for
            the engine's own rule.
        files: Files and folders it reads, everything in them included; empty for `path` alone.
        job: What else the fresh process must know.
    """

    name: str
    path: Path
    threads: int | None = None
    files: tuple[Path, ...] = ()
    job: Mapping[str, Any] = field(default_factory=dict)

    def all_files(self) -> list[Path]:
        """Return every file it may read, as they are now."""
        files = [file for each in self.files or (self.path,) for file in (each, *each.rglob("*"))]
        return sorted({file.resolve() for file in files if file.is_file()})


def run_arms(
    arms: Sequence[Arm],
    inputs: Iterable[InputSpec],
    feeds: Mapping[str, Any],
    runs: int,
    on_progress: Callable[[int, int], None] | None = None,
    *,
    cold: bool = False,
    storage_s: Callable[[int], float] | None = None,
) -> dict[str, list[Sample]]:
    """Measure every arm `runs` times, in turns, each time in a fresh process.

    Args:
        arms: What to compare.
        inputs: The model's inputs.
        feeds: Values of inputs; made up, the same in every arm, where they are missing.
        runs: Samples for each arm, at least 1.
        on_progress: Called as `on_progress(done, total)`.
        cold: Whether an arm's files are evicted from the page cache before each of its samples, and the eviction
            verified. Programs and libraries stay cached.
        storage_s: Tells how long it takes to read so many bytes from storage; asked after each sample.

    Returns:
        The samples of each arm, in order. Each has the keys in `FIGURES`:

        - ttfo_s: from the load call to the first output, imports done; load_s and first_inference_s are its parts,
          except in the splitload arm, where they overlap.
        - steady_inference_s: median of later inferences, after the upgrade in the splitload arm.
        - process_s: from the start of the interpreter to the first output.
        - import_s: what importing splitload takes once numpy and onnxruntime are imported; of the splitload arm only.
        - peak_memory_bytes, settled_memory_bytes: resident memory, the most and after the steady inferences; left
          out where the system does not tell.
        - major_faults: how often a page was waited for between load call and first output.

        Cold ones also have touched_bytes, what of the arm's files the page cache holds right after the first output
        (with what the kernel reads ahead, so at least what was touched), and where `storage_s` is given that time for
        so many bytes, and limit_s, what a load is compared with: the longer of it and of a steady inference.

    Raises:
        StageError: If an arm fails, or its files cannot be evicted.
    """
    samples: dict[str, list[Sample]] = {arm.name: [] for arm in arms}
    with saved_feeds(inputs, feeds) as rows:
        for turn in range(runs):
            for place in range(len(arms)):
                arm = arms[(turn + place) % len(arms)]
                time.sleep(PAUSE_S)
                samples[arm.name].append(_sample(arm, rows, cold, storage_s))
                if on_progress is not None:
                    on_progress(turn * len(arms) + place + 1, runs * len(arms))
    return samples


def first_outputs(arm: Arm, inputs: Iterable[InputSpec], feeds: Mapping[str, Any]) -> list[Any]:
    """Run an arm once without measuring, which compiles bytecode and fills caches; return its first outputs.

    Returns:
        One numpy array for each output of the model, None for one that is no array.

    Raises:
        StageError: If the arm fails.
    """
    import numpy as np

    with saved_feeds(inputs, feeds) as rows, tempfile.TemporaryDirectory(prefix="splitload-bench-") as made:
        files = _process(arm, rows, outputs=str(Path(made) / "output"))["outputs"]
        return [None if file is None else np.load(file, allow_pickle=False) for file in files]


def compare(name: str, expected: Sequence[Any], outputs: Sequence[Any]) -> float:
    """Return the largest absolute difference between an arm's outputs and those of the stock arm.

    Dimensions of size 1 do not count, as some engines drop them.

    Raises:
        StageError: If the arm computes something else: other shapes, floats that differ by more than 1e-3 of the
            largest magnitude (5e-3 where they are of half precision, which keeps 5e-4; 5e-2 for the engines that may
            compute in it), or anything else that differs.
    """
    import numpy as np

    if len(outputs) != len(expected):
        raise StageError(f"arm '{name}' gives {len(outputs)} outputs, stock gives {len(expected)}")
    largest = 0.0
    for number, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
        if output is None or wanted is None:
            continue
        output, wanted = np.squeeze(output), np.squeeze(wanted)
        if output.shape != wanted.shape:
            raise StageError(f"arm '{name}' gives output {number} of shape {output.shape}, stock {wanted.shape}")
        if wanted.dtype.kind != "f":
            if not np.array_equal(output, wanted):
                raise StageError(f"arm '{name}' computes something else: output {number} is not that of stock")
            continue
        tolerance = max(_ENGINE_TOLERANCE.get(name, _TOLERANCE), _HALF_TOLERANCE if wanted.dtype == np.float16 else 0.0)
        output, wanted = output.astype(np.float64), wanted.astype(np.float64)
        same = (output == wanted) | (np.isnan(output) & np.isnan(wanted))
        with np.errstate(invalid="ignore"):
            distance = np.nan_to_num(np.where(same, 0.0, np.abs(output - wanted)), nan=np.inf).max(initial=0.0)
        magnitude = np.abs(wanted[np.isfinite(wanted)]).max(initial=1e-6)
        if distance > tolerance * magnitude:
            raise StageError(
                f"arm '{name}' computes something else: output {number} differs by {distance:.2g} from stock's, "
                f"whose largest magnitude is {magnitude:.2g}"
            )
        largest = max(largest, float(distance))
    return largest


def summarize(samples: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Return median, minimum and maximum of each figure."""
    return {
        key: {
            "median": statistics.median(sample[key] for sample in samples),
            "min": min(sample[key] for sample in samples),
            "max": max(sample[key] for sample in samples),
        }
        for key in samples[0]
    }


@contextmanager
def saved_feeds(inputs: Iterable[InputSpec], feeds: Mapping[str, Any]) -> Iterator[list[dict[str, Any]]]:
    """Yield one row for each input, for another process: its name, and the .npy file that holds its value.

    `file` is None where numpy has no such type; the other process makes that value up, by `type` and `shape`.
    """
    import numpy as np

    specs = list(inputs)
    values = example_inputs(specs, feeds)
    with tempfile.TemporaryDirectory(prefix="splitload-bench-") as made:
        files = save_feeds({name: value for name, value in values.items() if isinstance(value, np.ndarray)}, Path(made))
        yield [
            {"name": spec.name, "type": spec.type, "shape": spec.shape, "file": files.get(spec.name)}
            for spec in specs
            if spec.name in values
        ]


def _sample(
    arm: Arm, rows: Sequence[Mapping[str, Any]], cold: bool, storage_s: Callable[[int], float] | None
) -> Sample:
    """Measure one arm in a fresh process."""
    files = arm.all_files() if cold else []
    pagecache.evict(files)
    answer = _process(arm, rows, at_first=lambda: pagecache.resident_bytes(files))
    sample: Sample = {key: answer[key] for key in FIGURES if answer.get(key) is not None}
    if cold:
        sample["touched_bytes"] = answer["touched_bytes"]
        if storage_s is not None:
            sample["storage_s"] = storage_s(answer["touched_bytes"])
            sample["limit_s"] = max(sample["storage_s"], sample["steady_inference_s"])
    return sample


def _process(
    arm: Arm,
    rows: Sequence[Mapping[str, Any]],
    *,
    outputs: str | None = None,
    at_first: Callable[[], int] = lambda: 0,
) -> dict[str, Any]:
    """Run the fresh process; return its figures and what `at_first` returned when the first output was there."""
    job = {"arm": arm.name, "path": str(arm.path.resolve()), "threads": arm.threads, "feeds": rows, "outputs": outputs}
    figures = fresh_process(CHILD, {**arm.job, **job}, at_first=at_first)
    figures["steady_inference_s"] = statistics.median(figures.pop("steady_runs_s"))
    return figures


def fresh_process(script: Path, job: Mapping[str, Any], *, at_first: Callable[[], int] = lambda: 0) -> dict[str, Any]:
    """Have a script answer a job in a process of its own.

    Args:
        script: What to run; it is given the file of the job, prints a line when what is measured is done, waits for
            one, and prints its figures as a line of JSON.
        job: JSON values, the name of the "arm" among them.
        at_first: Called when it is done.

    Returns:
        The figures; `first_at_s` among them, a moment, becomes `process_s`, the time since the interpreter was
        started, and `touched_bytes` is what `at_first` returned.

    Raises:
        StageError: If it fails.
    """
    with (
        tempfile.TemporaryDirectory(prefix="splitload-bench-") as made,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
    ):
        file = Path(made) / "job.json"
        file.write_text(json.dumps(job), encoding="utf-8")
        compiled = py_compile.compile(str(script), str(Path(made) / "child.pyc"))  # no sample is to pay for it
        command = python(Path(str(compiled)), str(file))
        start = time.monotonic()
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", errors="replace"
        ) as child:
            try:
                assert child.stdout is not None  # noqa: S101
                touched_bytes = at_first() if child.stdout.readline() else 0
                answer, _ = child.communicate("\n")
            except BaseException:
                child.kill()
                raise
        if child.returncode != 0:
            errors.seek(0)
            lines = errors.read().strip().splitlines() or [f"the process ended with {child.returncode}"]
            raise StageError(f"benchmark arm '{job['arm']}' failed: {lines[-1][:300]}")
    figures: dict[str, Any] = json.loads(answer)
    figures["process_s"] = figures.pop("first_at_s") - start
    figures["touched_bytes"] = touched_bytes
    return figures

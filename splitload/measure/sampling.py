"""Samples: a fresh process each, arms in turns, files evicted first where they are to be read cold."""

from __future__ import annotations

import hashlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from splitload.base.errors import StageError
from splitload.base.scratch import scratch_folder
from splitload.measure.arm_names import PORTABLE_ARMS
from splitload.measure.fresh import Runner, run_job, save_inputs
from splitload.measure.job import Input, LoadModel
from splitload.runtime.inputs import InputSpec

FIGURES = (
    "ttfo_s",
    "load_s",
    "first_inference_s",
    "steady_inference_s",
    "process_s",
    "exit_s",
    "process_peak_memory_bytes",
    "import_s",
    "idle_memory_bytes",
    "peak_memory_bytes",
    "settled_memory_bytes",
    "major_faults",
)
PAUSE_S = 0.2  # for the system to clear away the process before, which would run beside the next one
_TOLERANCE = 1e-3  # of the largest magnitude in an output; arms that compute in float32 stay far below
_HALF_TOLERANCE = 5e-3  # where stock's is of half precision, and rounds what others may keep
_ENGINE_TOLERANCE = {"openvino": 5e-2, "ncnn": 5e-2}  # which may take half precision on their own account
_LINKED = "arm"  # beside the inputs, whose names end in .npy
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
        job: What else the fresh process must know, by the names that `LoadModel` has for it.
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
    run: Runner = run_job,
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
        run: Runs the fresh processes.

    Returns:
        The samples of each arm, in order. Each has the keys in `FIGURES`:

        - ttfo_s: from the load call to the first output, imports done; load_s and first_inference_s are its parts,
          except in the splitload arm, where they overlap.
        - steady_inference_s: median of later inferences, after the upgrade in the splitload arm.
        - process_s: from the start of the interpreter to the first output, in another process that reads the inputs as
          late as can be; exit_s until that has ended, process_peak_memory_bytes its most resident memory.
        - import_s: what importing `ParallelLoader` takes once numpy is imported; of the splitload arms only.
        - idle_memory_bytes, peak_memory_bytes, settled_memory_bytes: resident memory before the load call, the most,
          and after the steady inferences; left out where the system does not tell.
        - major_faults: how often a page was waited for between load call and first output.

        Cold ones also have touched_bytes, what of the arm's files the page cache holds right after the first output
        (with what the kernel reads ahead, so at least what was touched), and where `storage_s` is given that time for
        so many bytes, and limit_s, what a load is compared with: the longer of it and of a steady inference.

    Raises:
        StageError: If an arm fails, or its files cannot be evicted.
    """
    samples: dict[str, list[Sample]] = {arm.name: [] for arm in arms}
    with saved_inputs(inputs, feeds) as (folder, given):
        for turn in range(runs):
            for place in range(len(arms)):
                arm = arms[(turn + place) % len(arms)]
                time.sleep(PAUSE_S)
                samples[arm.name].append(_sample(arm, folder, given, cold, storage_s, run))
                if on_progress is not None:
                    on_progress(turn * len(arms) + place + 1, runs * len(arms))
    return samples


def first_output(arm: Arm, inputs: Iterable[InputSpec], feeds: Mapping[str, Any], run: Runner) -> Sample:
    """Take one sample of an arm, with the page cache as it is, and end with its first output.

    Args:
        arm: What is loaded.
        inputs: The model's inputs.
        feeds: Values of inputs; made up where they are missing.
        run: Runs the fresh process.

    Returns:
        A sample as `run_arms` has it, without what is known only later.

    Raises:
        StageError: If the arm fails.
    """
    with saved_inputs(inputs, feeds) as (folder, given):
        time.sleep(PAUSE_S)
        answer = run(load_job(arm, folder, given, steady=False), folder, _failed(arm))
    return {key: answer[key] for key in FIGURES if answer.get(key) is not None}


def outputs_of(arm: Arm, inputs: Iterable[InputSpec], feeds: Mapping[str, Any], run: Runner = run_job) -> list[Any]:
    """Run an arm once without measuring, which compiles bytecode and fills caches; return its first outputs.

    Returns:
        One numpy array for each output of the model, None for one that is no array.

    Raises:
        StageError: If the arm fails.
    """
    return answered(arm, inputs, feeds, run, steady=True)[0]


def answered(
    arm: Arm, inputs: Iterable[InputSpec], feeds: Mapping[str, Any], run: Runner, *, steady: bool = False
) -> tuple[list[Any], dict[str, Any]]:
    """Run an arm once; return its first outputs, as `outputs_of` does, and what the process answered.

    Raises:
        StageError: If the arm fails.
    """
    import numpy as np

    with saved_inputs(inputs, feeds) as (folder, given):
        answer = run(load_job(arm, folder, given, steady=steady, outputs=True), folder, _failed(arm))
        files = answer.pop("outputs")
        outputs = [None if file is None else np.load(folder / file, allow_pickle=False) for file in files]
    return outputs, answer


def load_job(
    arm: Arm, folder: Path, inputs: tuple[Input, ...], *, steady: bool = True, outputs: bool = False
) -> LoadModel:
    """Return the job that loads and runs an arm; see `LoadModel`.

    What onnxruntime loads, a bundle or a file with the weights beside it, is linked into the job's folder, and goes
    with it to any machine. Other engines keep caches by its path, and stay on this machine.
    """
    place = arm.path.resolve()
    if arm.name not in PORTABLE_ARMS:
        return LoadModel(arm.name, str(place), inputs, arm.threads, steady=steady, outputs=outputs, **arm.job)
    linked, inside = (place, "") if place.is_dir() else (place.parent, f"/{place.name}")
    link = folder / f"{_LINKED}-{hashlib.sha256(os.fsencode(linked)).hexdigest()[:12]}"
    if not link.exists():
        link.symlink_to(linked, target_is_directory=True)
    return LoadModel(arm.name, f"{link.name}{inside}", inputs, arm.threads, steady=steady, outputs=outputs, **arm.job)


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
def saved_inputs(inputs: Iterable[InputSpec], feeds: Mapping[str, Any]) -> Iterator[tuple[Path, tuple[Input, ...]]]:
    """Yield a folder for jobs, and the inputs whose values lie there; see `save_inputs`."""
    with scratch_folder(Path(tempfile.gettempdir()), "splitload-bench-") as made:
        yield made, save_inputs(inputs, feeds, made)


def _sample(
    arm: Arm,
    folder: Path,
    inputs: tuple[Input, ...],
    cold: bool,
    storage_s: Callable[[int], float] | None,
    run: Runner,
) -> Sample:
    """Measure one arm in a fresh process."""
    files = arm.all_files() if cold else []
    job = load_job(arm, folder, inputs)
    answer = run(job, folder, _failed(arm), cold=files)
    time.sleep(PAUSE_S)
    whole = run(replace(job, whole=True, steady=False), folder, _failed(arm), cold=files)
    answer.update((name, whole[name]) for name in ("process_s", "exit_s", "process_peak_memory_bytes"))
    answer["steady_inference_s"] = statistics.median(answer.pop("steady_runs_s"))
    sample: Sample = {key: answer[key] for key in FIGURES if answer.get(key) is not None}
    if cold:
        sample["touched_bytes"] = answer["touched_bytes"]
        if storage_s is not None:
            sample["storage_s"] = storage_s(answer["touched_bytes"])
            sample["limit_s"] = max(sample["storage_s"], sample["steady_inference_s"])
    return sample


def _failed(arm: Arm) -> Callable[[str], StageError]:
    """Return what makes an error of the last line of a process."""
    return lambda line: StageError(f"benchmark arm '{arm.name}' failed: {line}")

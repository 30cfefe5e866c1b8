"""Personalization beside PyTorch on the full model: `python -m splitload.studies.personalization --help`.

Each sample is a fresh process that trains the last layers of a zoo model for one epoch of two batches: `splitload
finetune` on a bundle, or PyTorch with the whole model loaded and the other layers frozen, in the usual way ("torch") or
with its weights mapped from a file ("torch-mmap"). All take the same samples in the same order, as many threads, and
Adam; that the losses agree is checked.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base.cache import user_cache
from splitload.base.errors import StageError
from splitload.base.machine import available_threads
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import VariantPlan
from splitload.commands.console import Console
from splitload.devices.host import HostDevice
from splitload.frontends import open_source
from splitload.measure.arms import Subject, make_arm
from splitload.measure.fresh import run_job
from splitload.measure.job import TrainEpoch
from splitload.measure.sampling import PAUSE_S, Arm
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.planner.write_bundle import write_bundle
from splitload.runtime.inputs import DTYPES
from splitload.studies.records import write_record
from splitload.studies.study import at_least, errors_in_one_line, study_parser
from splitload.training.opened import load_opened

ARMS = ("splitload", "torch", "torch-mmap")
BATCH_SIZE, BATCHES = 16, 2
LEARNING_RATE = 1e-3
UNMEASURED_RUNS = 1  # compile bytecode, and fill the page cache
FIGURES = ("process_s", "first_step_s", "first_step_peak_bytes", "epoch_peak_bytes")
_TOLERANCE = 1e-3  # relative, of the first step's loss


@dataclass(frozen=True, slots=True)
class Case:
    """What is personalized.

    Attributes:
        model: The MODEL word.
        trainable: Its layers that are trained.
        counts: For inputs of whole numbers how many there are, from 0; the others are all ones.
    """

    model: str
    trainable: str
    counts: Mapping[str, int] = field(default_factory=dict)


CASES = (
    Case("zoo:resnet152", "layer4.2|fc"),
    Case("zoo:distilbert", "classifier", {"input_ids": 30522}),
)


def made_up_samples(graph: ModelGraph, case: Case, samples: int) -> dict[str, np.ndarray[Any, Any]]:
    """Return random inputs of a model by name, of shape `(samples, …)`, and random classes as "y"."""
    rng = np.random.default_rng(0)
    found: dict[str, np.ndarray[Any, Any]] = {}
    for spec in graph.input_tensors():
        size = (samples, *(int(str(each)) for each in (spec.shape or ())[1:]))
        kind = np.dtype(DTYPES[spec.type])
        if kind.kind == "f":
            found[spec.name] = rng.standard_normal(size).astype(kind)
        elif spec.name in case.counts:
            found[spec.name] = rng.integers(0, case.counts[spec.name], size).astype(kind)
        else:
            found[spec.name] = np.ones(size, dtype=kind)
    shape = graph.tensors[graph.outputs[0]].shape or ()
    return {**found, "y": rng.integers(0, int(str(shape[-1])), samples)}


def row(case: Case, runs: int, console: Console, cache: Path) -> dict[str, Any]:
    """Measure a case, arms in turns, and return a row of the record.

    Raises:
        SplitloadError: If an arm cannot be made or fails, or trains something else than the others.
    """
    source = open_source(case.model, cache)
    graph = load_opened(source, "native", cache, case.trainable).graph
    last, threads = len(graph.blocks) - 1, available_threads()
    plan = VariantPlan(graph, Partition(last + 1, (last,)), threads, last)
    cache.mkdir(parents=True, exist_ok=True)
    with (
        scratch_folder(cache, ".personalization-") as folder,
        tempfile.TemporaryDirectory(prefix="splitload-bench-") as made,
    ):
        bundle = folder / "model.splitload"
        write_bundle(
            bundle,
            source,
            plan,
            console,
            cache,
            device="host",
            tuner=HostDevice(cache),
            notes={},
            trainable=case.trainable,
        )
        subject = Subject(case.model, source, graph, bundle, {}, cache)
        arms = [make_arm(name, subject) for name in ARMS]
        data = Path(made) / "train.npz"
        np.savez(data, **made_up_samples(graph, case, BATCH_SIZE * BATCHES))  # type: ignore[arg-type]
        samples: dict[str, list[dict[str, Any]]] = {name: [] for name in ARMS}
        with console.progress(f"measuring {source.name}", unit="rounds") as show:
            for turn in range(-UNMEASURED_RUNS, runs):
                show(turn + UNMEASURED_RUNS, runs + UNMEASURED_RUNS)
                for place in range(len(arms)):
                    arm = arms[(turn + place) % len(arms)]
                    time.sleep(PAUSE_S)
                    taken = run_job(_epoch(arm, data.name, case), data.parent, _failed(arm))
                    if turn >= 0:
                        samples[arm.name].append({key: taken[key] for key in (*FIGURES, "losses")})
    check_losses(samples)
    return {
        "model": source.name,
        "model_sha256": source.sha256,
        "trainable": case.trainable,
        "batch_size": BATCH_SIZE,
        "batches": BATCHES,
        "learning_rate": LEARNING_RATE,
        "threads": threads,
        "page_cache": "warm",
        "source": "measured",
        "samples": samples,
        "medians": medians(samples),
    }


def _epoch(arm: Arm, data: str, case: Case) -> TrainEpoch:
    """Return the job of one sample."""
    return TrainEpoch(
        arm.name,
        str(arm.path.resolve()),
        data,
        case.trainable,
        BATCH_SIZE,
        LEARNING_RATE,
        available_threads(),
        arm.job.get("module"),
    )


def _failed(arm: Arm) -> Callable[[str], StageError]:
    return lambda line: StageError(f"benchmark arm '{arm.name}' failed: {line}")


def medians(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, dict[str, float]]:
    """Return the median of each of `FIGURES`, by arm."""
    return {
        arm: {key: statistics.median(sample[key] for sample in taken) for key in FIGURES}
        for arm, taken in samples.items()
    }


def check_losses(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raise `StageError` unless all arms begin with the same loss: that of the same batch by the same weights."""
    first = {arm: taken[0]["losses"][0] for arm, taken in samples.items()}
    wanted = first["splitload"]
    for arm, loss in first.items():
        if not abs(loss - wanted) <= _TOLERANCE * abs(wanted):
            raise StageError(
                f"arm '{arm}' trains something else: its first loss is {loss:.6g}, splitload's {wanted:.6g}"
            )


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure every case, and write a record."""
    words = list(sys.argv[1:] if words is None else words)
    parser = study_parser("personalization", __doc__)
    parser.add_argument("--runs", type=at_least(1), default=5, metavar="N", help="samples (default: %(default)s)")
    options = parser.parse_args(words)
    console = Console(json=False)
    cache = user_cache()
    rows = []
    for case in CASES:
        made = row(case, options.runs, console, cache)
        for arm, found in made["medians"].items():
            console.print(
                f"{made['model']:<12} {arm:<11} first step {found['process_s']:.2f} s after the process began, "
                f"{found['first_step_s']:.2f} s after the imports; peak {found['first_step_peak_bytes'] / 2**20:.0f} "
                f"MiB to there, {found['epoch_peak_bytes'] / 2**20:.0f} MiB in the epoch"
            )
        rows.append(made)
    if options.output:
        write_record(options.output, "personalization", "splitload.studies.personalization", words, rows)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

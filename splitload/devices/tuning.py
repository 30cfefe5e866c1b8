"""Chooses how each stage is loaded, by measuring the stage files of a new bundle."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from splitload.base.errors import ModelError
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import StageEntry, TensorSpec, Variant
from splitload.devices.machine import Machine
from splitload.measure.fresh import save_inputs
from splitload.measure.job import ComparePacked, Input, StageFile, TryScheme
from splitload.runtime.inputs import cure, made_up

REPEATS = 5
WORTHWHILE = 0.15  # what another way than the plain one must gain; measurements are not better than that
WORTHWHILE_S = 0.001
MIN_WEIGHTS_BYTES = 1 << 20  # with fewer there is nothing to map or rearrange


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to load a stage; the fields are those of `StageEntry`."""

    mapped: bool = True
    prefetch: bool = False
    prepack: bool = False


PLAIN = Scheme()
SCHEMES = (PLAIN, Scheme(prefetch=True), Scheme(mapped=False), Scheme(prepack=True))
MAPPED = tuple(scheme for scheme in SCHEMES if scheme.mapped and not scheme.prepack)


def tune(
    machine: Machine,
    folder: Path,
    variant: Variant,
    inputs: Sequence[TensorSpec],
    feeds: Mapping[str, Any],
    on_progress: Callable[[int, int], None] | None = None,
) -> Variant:
    """Return the variant with the measured choices in its stages.

    Every scheme is measured `REPEATS` times, in turns, each time in a fresh process with a warm page cache, in which
    the stages load and run one after the other. Without a megabyte of weights nothing is measured. A stage takes the
    scheme with the earliest first result, and is made anew in the background (`upgrade`) if rearranged weights make it
    faster in the long run. Stages that share weights stay mapped: rearranged or read, a weight would be in memory once
    for each. One that answers otherwise with rearranged weights, beyond rounding, has them rearranged from the start:
    its answers never change.

    Args:
        machine: Where the processes run.
        folder: Where the stage files lie.
        variant: Their entries.
        inputs: The model's inputs.
        feeds: Values for them; made up where missing.
        on_progress: Called as `on_progress(processes_done, processes)`.

    Raises:
        ModelError: If a stage does not run on the feeds.
    """
    if sum(stage.weights_bytes for stage in variant.stages) < MIN_WEIGHTS_BYTES:
        return variant._replace(stages=tuple(stage._replace(upgrade=False) for stage in variant.stages))
    with scratch_folder(folder, ".tune-") as made:
        saved = save_inputs(inputs, feeds, made)
        given = tuple(each if each.file is None else replace(each, file=f"{made.name}/{each.file}") for each in saved)
        packed, samples = _measured(machine, folder, variant, given, cure(made_up(inputs, feeds)), on_progress)
    sharing = {number for number in variant.sharing() if not variant.stages[number].upgrade}
    stages = [
        stage._replace(prepack=True, upgrade=False)
        if packed[number]
        else _choose(stage, {scheme: samples[number, scheme] for scheme in (MAPPED if number in sharing else SCHEMES)})
        for number, stage in enumerate(variant.stages)
    ]
    return variant._replace(stages=tuple(stages))


def _measured(
    machine: Machine,
    folder: Path,
    variant: Variant,
    inputs: tuple[Input, ...],
    advice: str,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[list[bool], dict[tuple[int, Scheme], list[dict[str, float]]]]:
    """Return which stages have weights rearranged from the start, and the samples of each stage and scheme."""
    files = tuple(
        StageFile(
            stage.blocks,
            stage.graph.name,
            stage.inputs,
            stage.outputs,
            optimized=stage.optimized,
            reoptimize=stage.reoptimize,
        )
        for stage in variant.stages
    )

    def failed(line: str) -> ModelError:
        return ModelError(f"the model cannot be measured on {machine.words}{advice}: {line}")

    differ = machine.run(ComparePacked(inputs, files), folder, failed)["differ"]
    packed = [stage.prepack or changes for stage, changes in zip(variant.stages, differ, strict=True)]
    samples: dict[tuple[int, Scheme], list[dict[str, float]]] = {}
    for turn in range(0 if all(packed) else REPEATS):
        for place in range(len(SCHEMES)):
            scheme = SCHEMES[(turn + place) % len(SCHEMES)]
            answer = machine.run(TryScheme(inputs, files, **asdict(scheme)), folder, failed)
            for number, row in enumerate(answer["rows"]):
                samples.setdefault((number, scheme), []).append(row)
            if on_progress is not None:
                on_progress(turn * len(SCHEMES) + place + 1, REPEATS * len(SCHEMES))
    return packed, samples


def _choose(stage: StageEntry, samples: Mapping[Scheme, Sequence[Mapping[str, float]]]) -> StageEntry:
    """Return the stage's entry with the best of the measured schemes."""
    first_s = {scheme: statistics.median(row["first_s"] for row in rows) for scheme, rows in samples.items()}
    steady_s = {scheme: min(row["steady_s"] for row in rows) for scheme, rows in samples.items()}
    best = min(samples, key=first_s.__getitem__)
    if first_s[PLAIN] - first_s[best] < max(WORTHWHILE * first_s[PLAIN], WORTHWHILE_S):
        best = PLAIN
    packed = Scheme(prepack=True)
    pays = packed in samples and not best.prepack and steady_s[packed] < (1 - WORTHWHILE) * steady_s[best]
    return stage._replace(**asdict(best), upgrade=pays)

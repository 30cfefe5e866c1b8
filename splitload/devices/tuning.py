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
from splitload.measure.job import Input
from splitload.measure.stage_jobs import ComparePacked, StageFile, TryScheme
from splitload.runtime.inputs import cure, made_up

REPEATS = 5
WORTHWHILE = 0.15  # what another way than the plain one must gain; measurements are not better than that
WORTHWHILE_S = 0.001
MISSES = 1  # of the pairs of neighbouring samples that may gain less: processors change their speed
MIN_WEIGHTS_BYTES = 1 << 20  # with fewer there is nothing to map or rearrange


@dataclass(frozen=True, slots=True)
class Scheme:
    """A way to load a stage; the fields are those of `StageEntry`."""

    mapped: bool = True
    prefetch: bool = False
    prepack: bool = False


PLAIN = Scheme()
SCHEMES = (PLAIN, Scheme(prefetch=True), Scheme(mapped=False), Scheme(prepack=True))
PACKED = SCHEMES[3]
MAPPED = tuple(scheme for scheme in SCHEMES if scheme.mapped and not scheme.prepack)
Samples = dict[tuple[int, Scheme], list[dict[str, float]]]  # by number of the stage


def tune(
    machine: Machine,
    folder: Path,
    variant: Variant,
    inputs: Sequence[TensorSpec],
    feeds: Mapping[str, Any],
    on_progress: Callable[[int, int], None] | None = None,
) -> Variant:
    """Return the variant with the measured choices in its stages.

    Every scheme is measured up to `REPEATS` times, in turns, each time in a fresh process, in which the stages load and
    run one after the other. On a cold device files are evicted before each, and read ahead as a loader does. One that
    further samples could not make better than the plain one gets none, see `_settled`. Without a megabyte of weights
    nothing is measured. A stage takes the scheme with the earliest first result, if that gains on the plain one in the
    median and in nearly every pair of samples, and is made anew in the background (`upgrade`) if rearranged weights
    make it faster in the long run. Stages that share weights stay mapped: rearranged or read, a weight would be in
    memory once for each. One that answers otherwise with rearranged weights, beyond rounding, has them rearranged from
    the start: its answers never change.

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
) -> tuple[list[bool], Samples]:
    """Return which stages have weights rearranged from the start, and the samples of each stage and scheme."""
    files = tuple(map(StageFile.of, variant.stages))

    def failed(line: str) -> ModelError:
        return ModelError(f"the model cannot be measured on {machine.words}{advice}: {line}")

    differ = machine.run(ComparePacked(inputs, files), folder, failed)["differ"]
    packed = [stage.prepack or changes for stage, changes in zip(variant.stages, differ, strict=True)]

    def measure(scheme: Scheme) -> list[dict[str, float]]:
        job = TryScheme(inputs, files, **asdict(scheme), steady=scheme in (PLAIN, PACKED))
        rows: list[dict[str, float]] = machine.run(job, folder, failed)["rows"]
        return rows

    stages = [number for number, each in enumerate(packed) if not each]
    return packed, _in_turns(measure, stages, on_progress) if stages else {}


def _in_turns(
    measure: Callable[[Scheme], list[dict[str, float]]],
    stages: Sequence[int],
    on_progress: Callable[[int, int], None] | None,
) -> Samples:
    """Measure schemes in turns, each until it is settled in all of these stages; return what each stage took."""
    samples: Samples = {}
    tried, total = list(SCHEMES), REPEATS * len(SCHEMES)
    for turn in range(REPEATS):
        first = turn % len(tried)
        for place, scheme in enumerate((*tried[first:], *tried[:first])):
            for number, row in enumerate(measure(scheme)):
                samples.setdefault((number, scheme), []).append(row)
            if on_progress is not None:
                on_progress(turn * len(SCHEMES) + place + 1, total)
        tried = [
            scheme
            for scheme in tried
            if scheme == PLAIN or not all(_settled(samples[each, scheme], samples[each, PLAIN]) for each in stages)
        ]
        if tried == [PLAIN]:
            break
    if on_progress is not None:
        on_progress(total, total)
    return samples


def _settled(rows: Sequence[Mapping[str, float]], plain: Sequence[Mapping[str, float]]) -> bool:
    """Return whether more samples of a scheme, up to `REPEATS`, could change nothing.

    - For the first result they could not: too many pairs of neighbouring samples gain too little, or the median of
      `REPEATS` would, were all further ones better than the best and those of the plain scheme worse than the worst.
    - For later runs most of `REPEATS` pairs of neighbouring samples say the same, whether it is faster or not.
    """
    most = REPEATS // 2 + 1
    if len(rows) < most:
        return False
    best = sorted(row["first_s"] for row in rows)[len(rows) - most]
    worst = sorted(row["first_s"] for row in plain)[most - 1]
    if _pays(best, worst) and _misses(rows, plain) <= MISSES:
        return False
    if "steady_s" not in rows[0]:
        return True
    faster = sum(_faster(row["steady_s"], other["steady_s"]) for row, other in zip(rows, plain, strict=True))
    return faster in (0, len(rows))


def _pays(first_s: float, plain_s: float) -> bool:
    """Return whether a first result comes enough sooner than in the plain way."""
    return plain_s - first_s >= max(WORTHWHILE * plain_s, WORTHWHILE_S)


def _misses(rows: Sequence[Mapping[str, float]], plain: Sequence[Mapping[str, float]]) -> int:
    """Return how many samples of a scheme gain too little on the plain one's beside them."""
    return sum(not _pays(row["first_s"], other["first_s"]) for row, other in zip(rows, plain, strict=False))


def _faster(steady_s: float, other_s: float) -> bool:
    """Return whether a run takes so much less time that it is worth a session made anew."""
    return steady_s < (1 - WORTHWHILE) * other_s


def _choose(stage: StageEntry, samples: Mapping[Scheme, Sequence[Mapping[str, float]]]) -> StageEntry:
    """Return the stage's entry with the best of the measured schemes.

    Weights that are not rearranged are run alike however they came to memory, so the plain way stands for all of them:
    a session is made anew where most pairs of neighbouring samples say that later runs are faster then.
    """
    first_s = {scheme: statistics.median(row["first_s"] for row in rows) for scheme, rows in samples.items()}
    paying = [
        scheme
        for scheme, rows in samples.items()
        if _pays(first_s[scheme], first_s[PLAIN]) and _misses(rows, samples[PLAIN]) <= MISSES
    ]
    best = min(paying, key=first_s.__getitem__, default=PLAIN)
    pairs = zip(samples.get(PACKED, ()), samples[PLAIN], strict=False)  # it may have been settled sooner
    faster = [_faster(row["steady_s"], plain["steady_s"]) for row, plain in pairs]
    pays = not best.prepack and 2 * sum(faster) > len(faster)
    return stage._replace(**asdict(best), upgrade=pays)

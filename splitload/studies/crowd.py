"""What a crowd of emulated devices takes and bears: `python -m splitload.studies.crowd`.

Each device has a control group, a network namespace and a link of its own (root, see `splitload.studies.emulation`).
Arms are measured in turns. Workers begin a part with all stages on their disks and none in memory; cold batches begin
with none on the disks.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from splitload.base.cache import user_cache
from splitload.base.errors import SplitloadError
from splitload.base.sizes import read_bytes
from splitload.base.words import one_of
from splitload.commands.argument_types import reading
from splitload.commands.console import Console
from splitload.crowd.mechanisms import Mechanisms
from splitload.studies import emulated_tables
from splitload.studies.crowd_faults import Storm, killed_batch
from splitload.studies.crowd_limits import measured
from splitload.studies.crowd_runs import Sample, begin_anew, run_batch
from splitload.studies.crowd_subjects import CrowdFile, Subject, in_stages, planned, unsplit
from splitload.studies.emulation import Emulation, Limits
from splitload.studies.study import at_least, errors_in_one_line, growing_record, study_parser

MODEL, NUM_INPUTS, NUM_STAGES = "zoo:distilbert", 5, 3  # the reference work's
STORM_MODEL = "zoo:mobilenet_v1"  # a thousand inputs of it take a minute
ALL = Mechanisms()
WITHOUT = {
    "deferred loading": replace(ALL, deferred_loading=False),
    "one stage resident": replace(ALL, one_resident=False),
    "affinity": replace(ALL, affinity="off"),
    "compression": replace(ALL, compression="off"),
    "streaming": replace(ALL, streaming=False),
    "recovery": replace(ALL, recovery=False),
    "stage cache": replace(ALL, stage_cache=False),
}
TIERS = replace(ALL, affinity="tiers")  # the reference work's rule
COLD = ("deferred loading", "affinity", "stage cache")  # what may tell when stages travel
Samples = dict[str, list[Sample | None]]


@dataclass(frozen=True)
class Counts:
    """How much is measured; see the options."""

    runs: int
    cold_runs: int
    memory_runs: int
    throughput_inputs: int
    throughput_runs: int
    ablation_runs: int
    kills: int
    storm_inputs: int
    storm_kills: int
    storm_cuts: int


class Study:
    """Measures the parts, each a row of the record.

    Args:
        counts: How much.
        limits: Of each device.
        devices: How many.
        storm: Limits and number of the devices of the part "storm".
        worker_memory: What stages may take on a device in the part "memory", for which they are planned.
        seed: Of what is random.
        bundles: Where bundles are, or are put.
        cache: The user's cache folder.
        console: Where to tell what is done.
        limited: Whether limits hold; None for where the system can have them.
    """

    def __init__(
        self,
        counts: Counts,
        limits: Limits,
        devices: int,
        storm: tuple[Limits, int],
        worker_memory: str,
        seed: int,
        bundles: Path,
        cache: Path,
        console: Console,
        limited: bool | None = None,
    ) -> None:
        self._counts, self._limits, self._devices, self._storm = counts, limits, devices, storm
        self._worker_memory = worker_memory
        self._seed, self._bundles, self._cache, self._console, self._limited = seed, bundles, cache, console, limited

    def batch(self) -> dict[str, Any]:
        """Return batches of the reference work, streaming and with a barrier, placed by its rule and by ours."""
        subject, seeds = self._stages(), range(NUM_INPUTS)
        arms = {"streaming": ALL, "barrier": WITHOUT["streaming"]}
        arms |= {f"{name}, tiers": replace(each, affinity=TIERS.affinity) for name, each in arms.items()}
        unsplit = self._unsplit(seeds)
        with self._emulated(self._limits, self._devices) as emulation:
            begin_anew(emulation, subject)
            samples = self._in_turns(emulation, subject, self._counts.runs, arms, unsplit=unsplit)
            cold = {f"{name}, cold": each for name, each in arms.items()}
            samples |= self._in_turns(emulation, subject, self._counts.cold_runs, cold, cold=True, unsplit=unsplit)
            return {**self._row("batch", subject, emulation, samples), "rounding": subject.rounding(seeds)}

    def memory(self) -> dict[str, Any]:
        """Return what workers take of memory with a plan that is free; each batch on fresh workers."""
        limits, seeds = self._limits, range(NUM_INPUTS)
        described = CrowdFile(
            self._devices, NUM_INPUTS, self._worker_memory, limits.processors, limits.link_bits_per_s / 1e6
        )
        subject = planned(MODEL, described, self._bundles, self._cache, self._console)
        samples: Samples = {"streaming": []}
        unsplit = self._unsplit(seeds)
        with self._emulated(limits, self._devices) as emulation:
            for _ in range(self._counts.memory_runs):
                begin_anew(emulation, subject)
                self._take(samples["streaming"], lambda: run_batch(emulation, subject, seeds, unsplit=unsplit))
            return {**self._row("memory", subject, emulation, samples), "planned_for": self._worker_memory}

    def throughput(self) -> dict[str, Any]:
        """Return long batches, and what they could be at most."""
        subject = self._stages()
        seeds = range(self._counts.throughput_inputs)
        samples: Samples = {"streaming": []}
        unsplit = self._unsplit(seeds)
        with self._emulated(self._limits, self._devices) as emulation:
            begin_anew(emulation, subject)
            for _ in range(self._counts.throughput_runs):
                self._take(samples["streaming"], lambda: run_batch(emulation, subject, seeds, unsplit=unsplit))
            rates = [each and measured(each, NUM_STAGES) for each in samples["streaming"]]
            return {**self._row("throughput", subject, emulation, samples), "rates": rates}

    def ablation(self) -> dict[str, Any]:
        """Return batches without each of the mechanisms; that without recovery loses a worker, beside one with it."""
        subject, counts = self._stages(), self._counts
        warm = {name: each for name, each in WITHOUT.items() if name not in ("recovery", "stage cache")}
        cold = {f"{name}, cold": WITHOUT[name] for name in COLD}
        with self._emulated(self._limits, self._devices) as emulation:
            begin_anew(emulation, subject)
            samples = self._in_turns(emulation, subject, counts.ablation_runs, {"none": ALL, **warm})
            samples |= self._in_turns(emulation, subject, counts.cold_runs, {"none, cold": ALL, **cold}, cold=True)
            begin_anew(emulation, subject)
            after_s = _median_s(samples["none"]) / 2
            samples |= {"none, a worker killed": [], "recovery, a worker killed": []}
            for turn in range(counts.ablation_runs):
                name = emulation.names[turn % len(emulation.names)]
                for arm, mechanisms in (("none", ALL), ("recovery", WITHOUT["recovery"])):
                    self._take(
                        samples[f"{arm}, a worker killed"],
                        lambda name=name, mechanisms=mechanisms: killed_batch(  # type: ignore[misc]
                            emulation, subject, range(NUM_INPUTS), name, after_s, mechanisms
                        ),
                    )
            return self._row("ablation", subject, emulation, samples)

    def kills(self) -> dict[str, Any]:
        """Return batches in which a worker is killed at a random moment."""
        subject, chance = self._stages(), random.Random(self._seed)  # noqa: S311
        seeds = range(3 * self._devices)
        samples: Samples = {"undisturbed": [], "a worker killed": []}
        with self._emulated(self._limits, self._devices) as emulation:
            begin_anew(emulation, subject)
            for _ in range(3):
                self._take(samples["undisturbed"], lambda: run_batch(emulation, subject, seeds))
            batch_s = _median_s(samples["undisturbed"])
            for _ in range(self._counts.kills):
                name, after_s = chance.choice(emulation.names), chance.uniform(0, batch_s)
                self._take(
                    samples["a worker killed"],
                    lambda name=name, after_s=after_s: killed_batch(emulation, subject, seeds, name, after_s),  # type: ignore[misc]
                )
            return {**self._row("kills", subject, emulation, samples), "seed": self._seed}

    def storm(self) -> dict[str, Any]:
        """Return a long batch in which workers are killed and links are cut."""
        subject = in_stages(STORM_MODEL, NUM_STAGES, self._bundles, self._cache, self._console)
        limits, devices = self._storm
        counts, samples = self._counts, Samples(storm=[])
        with self._emulated(limits, devices) as emulation:
            begin_anew(emulation, subject)
            storm = Storm(emulation, counts.storm_inputs, counts.storm_kills, counts.storm_cuts, self._seed)
            seeds = range(counts.storm_inputs)
            try:
                self._take(samples["storm"], lambda: run_batch(emulation, subject, seeds, on_output=storm.on_output))
            finally:
                storm.end()
            row = self._row("storm", subject, emulation, samples, limits)
            return {**row, "seed": self._seed, "faults": storm.done}

    def _stages(self) -> Subject:
        return in_stages(MODEL, NUM_STAGES, self._bundles, self._cache, self._console)

    def _unsplit(self, seeds: Sequence[int]) -> dict[int, list[Any]]:
        return unsplit(MODEL, self._bundles, self._cache, self._console).answers(seeds)

    @contextmanager
    def _emulated(self, limits: Limits, devices: int) -> Iterator[Emulation]:
        with self._console.status(f"starting {devices} emulated devices"):
            emulation = Emulation(devices, limits, self._bundles, limited=self._limited)
        with emulation:
            for sentence in emulation.missing:
                self._console.note(f"this is no emulated device: {sentence}")
            yield emulation

    def _in_turns(
        self,
        emulation: Emulation,
        subject: Subject,
        runs: int,
        arms: Mapping[str, Mechanisms],
        *,
        cold: bool = False,
        unsplit: Mapping[int, Sequence[Any]] | None = None,
    ) -> Samples:
        """Return samples of arms, in turns that begin with another arm each."""
        samples: Samples = {name: [] for name in arms}
        names = list(arms)
        with self._console.progress("batches", unit="rounds") as show:
            for turn in range(runs):
                show(turn, runs)
                for place in range(len(names)):
                    name = names[(turn + place) % len(names)]
                    self._take(
                        samples[name],
                        lambda name=name: run_batch(  # type: ignore[misc]
                            emulation, subject, range(NUM_INPUTS), arms[name], cold=cold, unsplit=unsplit
                        ),
                    )
        return samples

    def _take(self, samples: list[Sample | None], run: Callable[[], Sample]) -> None:
        """Add a sample; None, and a note, where the crowd failed."""
        try:
            samples.append(run())
        except SplitloadError as error:
            self._console.note(f"a batch failed: {error}")
            samples.append(None)

    def _row(
        self, of: str, subject: Subject, emulation: Emulation, samples: Samples, limits: Limits | None = None
    ) -> dict[str, Any]:
        return {
            "of": of,
            "model": subject.source.name,
            "stage_bytes": subject.stage_bytes,
            "num_devices": len(emulation.names),
            "limits": None if emulation.missing else asdict(limits or self._limits),
            "missing": list(emulation.missing),
            "out_of_memory": emulation.out_of_memory(),
            "samples": samples,
        }


PARTS = ("batch", "memory", "throughput", "ablation", "kills", "storm")


def _median_s(samples: Sequence[Sample | None]) -> float:
    """Return the median seconds of batches.

    Raises:
        SplitloadError: If none succeeded.
    """
    found = [each["batch_s"] for each in samples if each is not None]
    if not found:
        raise SplitloadError("no batch succeeded that others are compared with")
    return float(statistics.median(found))


def _parser() -> argparse.ArgumentParser:
    parser = study_parser("crowd", __doc__)
    parser.add_argument(
        "parts",
        nargs="*",
        type=reading(one_of("part", PARTS)),
        metavar="PART",
        help=f"{', '.join(PARTS)} (default: all)",
    )
    for name, default, text in (
        ("cold-runs", 2, "batches that begin without stages on the disks"),
        ("memory-runs", 3, "batches of the plan that is free"),
        ("throughput-runs", 3, "long batches"),
        ("kills", 50, "batches in which a worker is killed"),
        ("storm-kills", 10, "workers that are killed in the storm"),
        ("storm-cuts", 5, "links that are cut in it"),
    ):
        parser.add_argument(f"--{name}", type=at_least(0), default=default, metavar="N", help=f"{text} (%(default)s)")
    for name, default, text in (
        ("runs", 10, "batches, streaming and with a barrier"),
        ("ablation-runs", 5, "batches without each mechanism"),
        ("throughput-inputs", 200, "inputs of a long batch"),
        ("storm-inputs", 1000, "inputs of the storm"),
        ("devices", 5, "emulated devices"),
        ("storm-devices", 8, "emulated devices in the storm"),
    ):
        parser.add_argument(f"--{name}", type=at_least(1), default=default, metavar="N", help=f"{text} (%(default)s)")
    given = Limits()
    parser.add_argument(
        "--memory", type=reading(read_bytes), default=given.memory_bytes, metavar="SIZE", help="of a device (160MB)"
    )
    parser.add_argument(
        "--processors", type=_share, default=given.processors, metavar="X", help="of a device (%(default)s)"
    )
    parser.add_argument(
        "--storm-processors", type=_share, default=0.2, metavar="X", help="of a device in the storm (%(default)s)"
    )
    parser.add_argument("--link-mbps", type=at_least(1), default=40, metavar="N", help="Mbit/s of a link (%(default)s)")
    parser.add_argument(
        "--worker-memory",
        type=_size,
        default="43MB",
        metavar="SIZE",
        help="what stages may take on a device, for which the plan that is free is made (%(default)s)",
    )
    parser.add_argument("--seed", type=at_least(0), default=0, help="of kills and cuts (%(default)s)")
    parser.add_argument("--bundles", type=Path, metavar="FOLDER", help="bundles, made where missing (the cache)")
    parser.add_argument(
        "--without-limits", action="store_true", help="take plain processes for devices, as is done without root"
    )
    return parser


def _size(word: str) -> str:
    reading(read_bytes)(word)
    return word


def _share(word: str) -> float:
    try:
        share = float(word)
    except ValueError:
        share = 0.0
    if not 0.05 <= share <= 1:
        raise argparse.ArgumentTypeError(f"it must be a share of a processor from 0.05 to 1, not '{word}'")
    return share


@errors_in_one_line
def main(words: Sequence[str] | None = None) -> int:
    """Measure the parts; print and perhaps record what came of them."""
    words = list(sys.argv[1:] if words is None else words)
    options = _parser().parse_args(words)
    console, cache = Console(json=False), user_cache()
    bundles = options.bundles or cache / "crowd-study"
    bundles.mkdir(parents=True, exist_ok=True)
    limits = Limits(options.memory, options.processors, options.link_mbps * 1_000_000)
    study = Study(
        Counts(**{name: getattr(options, name) for name in Counts.__dataclass_fields__}),
        limits,
        options.devices,
        (replace(limits, processors=options.storm_processors), options.storm_devices),
        options.worker_memory,
        options.seed,
        bundles,
        cache,
        console,
        False if options.without_limits else None,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what a Ctrl-C removes goes then as well
    rows: list[dict[str, Any]] = []
    with growing_record(options.output, "crowd", "splitload.studies.crowd", words) as add:
        for part in dict.fromkeys(options.parts or PARTS):
            rows.append(getattr(study, part)())
            add(rows[-1:])
    found = [("", {"rows": rows})]
    for title, table in (
        ("batches", emulated_tables.batches),
        ("mechanisms", emulated_tables.ablation),
        ("what was asked for", emulated_tables.targets),
    ):
        console.table(title, *table(found))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

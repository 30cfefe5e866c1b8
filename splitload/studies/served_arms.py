"""Plans as bundles, measured in turns on one device: a plan is where a model is cut and how each stage is loaded."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from splitload.base.errors import SplitloadError
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.build.residency import ResidencyScheme
from splitload.bundle.manifest import StageEntry, Variant
from splitload.devices import Measuring, PageCache
from splitload.devices.tuning import PLAIN, SCHEMES, Scheme
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.stage_store import StageStore
from splitload.measure.sampling import Arm, Sample
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.planner.portable import Beside, with_portable
from splitload.planner.report import Report

SINGLES = dict(zip(("plain", "prefetch", "read", "prepacked"), SCHEMES, strict=True))
Samples = list[Sample | None]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a model is cut, and how each stage is loaded.

    Attributes:
        split_points: The cuts, in blocks.
        ways: How each stage is loaded.
        max_weight_bytes: The most bytes of a weight in the graph that is cut; None where all are whole.
    """

    split_points: tuple[int, ...]
    ways: tuple[Scheme, ...]
    max_weight_bytes: int | None = None

    @classmethod
    def plain(cls, split_points: Sequence[int], max_weight_bytes: int | None = None) -> Plan:
        """Return a plan whose stages are all loaded in the plain way."""
        return cls(tuple(split_points), (PLAIN,) * (len(split_points) + 1), max_weight_bytes)

    @classmethod
    def of(cls, split_points: Sequence[int], stages: Sequence[StageEntry], max_weight_bytes: int | None) -> Plan:
        """Return the plan of a bundle's stages."""
        ways = tuple(Scheme(stage.mapped, stage.prefetch, stage.prepack) for stage in stages)
        return cls(tuple(split_points), ways, max_weight_bytes)

    def as_loaded(self, page_cache: PageCache) -> Plan:
        """Return the plan as it is loaded: cold files are read ahead whatever the way, so that all are the same."""
        if page_cache == "warm":
            return self
        return replace(self, ways=tuple(replace(way, prefetch=False) for way in self.ways))

    @property
    def num_stages(self) -> int:
        """How many stages it has."""
        return len(self.ways)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "split_points": list(self.split_points),
            "ways": [asdict(way) for way in self.ways],
            "max_weight_bytes": self.max_weight_bytes,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote."""
        ways = tuple(Scheme(**way) for way in data["ways"])
        return cls(tuple(data["split_points"]), ways, data["max_weight_bytes"])


class Builder:
    """Makes bundles of plans of one model, for one kind of processor.

    Args:
        source: The model.
        threads: Loading threads of the device.
        folder: Where the bundles go.
        store: Where stage files are kept that several have.
        report: Where to tell what is done.
        cache: The user's cache folder.
    """

    def __init__(
        self, source: Source, threads: int, folder: Path, store: StageStore, report: Report, cache: Path
    ) -> None:
        self.source = source
        self._threads, self._folder, self._store, self._report, self._cache = threads, folder, store, report, cache
        self._made = 0
        folder.mkdir(exist_ok=True)

    def graph(self, max_weight_bytes: int | None) -> ModelGraph:
        """Return the native graph, with larger weights than that cut into parts."""
        source = self.source
        return load_graph(source, "native", self._cache, max_weight_bytes=max_weight_bytes, feeds=source.examples)

    def arm(self, plan: Plan, scheme: ResidencyScheme | None = None) -> Arm:
        """Write the bundle of a plan, with nothing to do after the first output, and return what loads it.

        Args:
            plan: It.
            scheme: How much of it may be in memory; None for all.
        """
        graph = self.graph(plan.max_weight_bytes)
        variant = VariantPlan(graph, Partition.of(len(graph.blocks), plan.split_points), self._threads, scheme=scheme)
        _, *portable = with_portable(Beside(variant, self.source, self._report, self._cache, self.source.examples))
        bundle = self._folder / f"{self._made}.splitload"
        self._made += 1
        steps = Steps(choose=None if scheme is not None else partial(_in_ways, plan.ways))
        build_bundle(bundle, [variant, *portable], device="emulated", steps=steps, store=self._store)
        return Arm("splitload", bundle, threads=self._threads)


def measure_in_turns(
    device: Measuring,
    graph: ModelGraph,
    arms: Sequence[Arm],
    source: Source,
    runs: int,
    report: Report,
    again: Callable[[Sequence[Samples], Collection[int]], Collection[int]] = lambda _, running: running,
) -> list[Samples]:
    """Measure arms in fresh processes on a device, in rounds, each the other way round than the one before.

    Args:
        device: Where.
        graph: Of the model.
        arms: What is measured.
        source: The model.
        runs: The most rounds.
        report: Where to tell what is done.
        again: Takes the samples so far, and the numbers of the arms that were measured last; returns those of them that
            are measured once more. By default all are.

    Returns:
        The samples of each arm, as `Measuring.first_output` gives them; None where it failed.
    """
    samples: list[Samples] = [[] for _ in arms]
    inputs = graph.input_tensors()
    running: Collection[int] = range(len(arms))
    with report.progress(f"measuring {len(arms)} plans of {source.name}", unit="rounds") as show:
        for number in range(runs):
            show(number, runs)
            for place in sorted(running)[:: 1 if number % 2 == 0 else -1]:
                try:
                    samples[place].append(device.first_output(arms[place], inputs, source.examples))
                except SplitloadError as error:
                    report.note(f"{source.name}: {error}")
                    samples[place].append(None)
            if not (running := again(samples, running)):
                break
    return samples


def _in_ways(ways: Sequence[Scheme], _: Path, variant: Variant) -> Variant:
    """Return the variant with its stages loaded in these ways, and nothing to do after the first output."""
    stages = zip(variant.stages, ways, strict=True)
    return variant._replace(stages=tuple(stage._replace(upgrade=False, **asdict(way)) for stage, way in stages))

"""Plans as bundles, measured in turns on one device: a plan is where a model is cut and how each stage is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from splitload.base.scratch import scratch_folder
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.bundle.manifest import StageEntry, Variant
from splitload.devices import Measuring
from splitload.devices.tuning import PLAIN, Scheme
from splitload.frontends.onnx import Source
from splitload.graphs.stage_store import StageStore
from splitload.measure.sampling import Arm, Sample
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.planner.portable import Beside, with_portable
from splitload.planner.report import Report
from splitload.planner.residency import MemoryLimit
from splitload.build.residency import ResidencyScheme


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a model is cut, and how each stage is loaded.

    Attributes:
        split_points: The cuts, in blocks.
        ways: How each stage is loaded.
    """

    split_points: tuple[int, ...]
    ways: tuple[Scheme, ...]

    @classmethod
    def plain(cls, split_points: Sequence[int]) -> Plan:
        """Return a plan whose stages are all loaded in the plain way."""
        return cls(tuple(split_points), (PLAIN,) * (len(split_points) + 1))

    @classmethod
    def of(cls, split_points: Sequence[int], stages: Sequence[StageEntry]) -> Plan:
        """Return the plan of a bundle's stages."""
        return cls(
            tuple(split_points),
            tuple(Scheme(stage.mapped, stage.prefetch, stage.prepack) for stage in stages),
        )

    @property
    def num_stages(self) -> int:
        """How many stages it has."""
        return len(self.ways)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"split_points": list(self.split_points), "ways": [asdict(way) for way in self.ways]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Plan:
        """Read what `to_json` wrote."""
        return cls(tuple(data["split_points"]), tuple(Scheme(**way) for way in data["ways"]))


def measure_in_turns(
    device: Measuring,
    source: Source,
    graph: ModelGraph,
    plans: Sequence[Plan],
    schemes: Sequence[ResidencyScheme | None],
    runs: int,
    report: Report,
    cache: Path,
    store: StageStore,
    done: Callable[[], None] = lambda: None,
) -> list[list[Sample | None]]:
    """Measure each plan in fresh processes on a device, the first of a round another one each time.

    Args:
        device: Where.
        source: The model.
        graph: It on the device.
        plans: Different ones.
        schemes: How much of each may be in memory; None for all.
        runs: Samples of each.
        report: Where to tell what is done.
        cache: Where the bundles lie meanwhile.
        store: Where stage files are kept that several have.
        done: Called after each round.

    Returns:
        The samples of each plan, as `Measuring.first_output` gives them; None for one that failed.
    """
    raise NotImplementedError

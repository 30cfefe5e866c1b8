"""What a bundle is made of beside a native plan: the portable graph for other machines, under the same ceiling."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from splitload.base.phrases import count_of
from splitload.base.sizes import megabytes
from splitload.build.assemble import VariantPlan
from splitload.build.fleet import same_cuts
from splitload.build.residency import ResidencyScheme
from splitload.bundle.manifest import Variant
from splitload.devices import Measuring
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.kernels import needs_fusions
from splitload.graphs.read import parse_model
from splitload.plan.ceiling import most_of_a_weight
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.planner.least_ceiling import CeilingTooLowError
from splitload.planner.report import Report
from splitload.planner.residency import MemoryLimit, PlanMemory, advised
from splitload.training.opened import Opened, load_opened

_WHAT = "the portable part for other machines"


@dataclass(frozen=True, slots=True)
class Beside:
    """What a portable plan stands beside, and what it is made with.

    Attributes:
        plan: The plan that is preferred.
        source: The model.
        report: Where to tell what is done.
        cache: The user's cache folder.
        feeds: Inputs to measure with; made up where they are missing.
        measuring: What measures its working memory, where that of `plan` was measured; None where it is predicted.
        cut_as: The portable variant of a former bundle, by which it is cut; None where there is none.
    """

    plan: VariantPlan
    source: Source
    report: Report
    cache: Path
    feeds: Mapping[str, Any] = field(default_factory=dict)
    measuring: Measuring | None = None
    cut_as: Variant | None = None

    @property
    def max_blocks(self) -> int:
        """The most blocks of a portable graph: the same number is divided at the same places."""
        blocks = self.plan.graph.max_blocks
        return blocks if self.cut_as is None else max(blocks, self.cut_as.stages[-1].blocks[1])


def with_portable(beside: Beside) -> list[VariantPlan]:
    """Return what a bundle is made of: the plan, and where its graph is native one that runs anywhere.

    That has one stage, or is cut as a portable variant was, and loads on as many threads. Beside a plan under a ceiling
    it keeps the same one, if it can: see `_under_ceiling`.
    """
    if beside.plan.graph.kind == "portable":
        return [beside.plan]

    def load(max_weight_bytes: int | None) -> ModelGraph:
        return load_graph(
            beside.source,
            "portable",
            beside.cache,
            max_blocks=beside.max_blocks,
            max_weight_bytes=max_weight_bytes,
            feeds=beside.feeds,
        )

    with beside.report.status(f"adding {_WHAT}"):
        graph = load(beside.plan.graph.max_weight_bytes)
    return [beside.plan, _planned(beside, VariantPlan(graph, Partition(len(graph.blocks)), 1), load)]


def with_opened(beside: Beside, trainable: str | Collection[str]) -> tuple[list[VariantPlan], Opened]:
    """Return what a bundle with a trainable last stage is made of, and the model it is trained by.

    The plan that runs anywhere has two stages, what is frozen and what is trained, or more as in `with_portable`.
    """

    def opened(max_weight_bytes: int | None) -> Opened:
        return load_opened(
            beside.source,
            "portable",
            beside.cache,
            trainable,
            max_blocks=beside.max_blocks,
            max_weight_bytes=max_weight_bytes,
            feeds=beside.feeds,
        )

    with beside.report.status(f"adding {_WHAT}"):
        found = opened(beside.plan.graph.max_weight_bytes)
    if beside.plan.graph.kind == "portable":
        return [beside.plan], found
    last = len(found.graph.blocks) - 1
    portable = VariantPlan(found.graph, Partition(last + 1, (last,)), 1, last)
    return [beside.plan, _planned(beside, portable, lambda most: opened(most).graph)], found


def _planned(beside: Beside, plan: VariantPlan, load: Callable[[int | None], ModelGraph]) -> VariantPlan:
    """Return the plan of a portable graph.

    Args:
        beside: What it stands beside.
        plan: It with no more cuts than it needs.
        load: Returns the graph with weights of at most so many bytes.
    """
    cut = _cut_as(beside, plan)
    scheme = beside.plan.scheme
    return cut if scheme is None else _under_ceiling(beside, cut, scheme, load)


def _cut_as(beside: Beside, plan: VariantPlan) -> VariantPlan:
    """Return a portable plan with the cuts and threads of a portable variant, where there is one with such cuts."""
    cut_as = beside.cut_as
    if cut_as is None:
        return plan
    partition = same_cuts(plan.graph, cut_as)
    if partition is None or plan.trainable_from not in (None, partition.bounds[-2]):
        stages = count_of(len(cut_as.stages), "stage")
        now = count_of(plan.partition.num_stages, "stage")
        beside.report.note(
            f"the portable graph, which was cut into {stages}, cannot be cut there again and has {now} now"
        )
        return plan
    return replace(plan, partition=partition, threads=cut_as.threads)


def _under_ceiling(
    beside: Beside, plan: VariantPlan, scheme: ResidencyScheme, load: Callable[[int | None], ModelGraph]
) -> VariantPlan:
    """Return a portable plan that keeps the ceiling of the plan beside it, or the given one where none does.

    It stays cut as it is if it was made for a ceiling and fits; otherwise it is the one that needs the least memory.
    Its graph runs as it is then: what the runtime makes of it at load would be in memory besides.
    """
    if needs_fusions(parse_model(plan.graph.path).graph):
        beside.report.note(
            f"{_WHAT} keeps no ceiling and is loaded as a whole: it computes with quantised or half-precision weights, "
            "as a stock session does only where the runtime optimises it at load"
        )
        return plan

    def limits(ceiling_bytes: int | None, graph: ModelGraph) -> MemoryLimit:
        measuring = None if scheme.arena_bytes is None else beside.measuring
        return MemoryLimit(ceiling_bytes, measuring, graph, beside.feeds, beside.report)

    ceiling_bytes = scheme.residency if isinstance(scheme.residency, int) else None
    here = limits(ceiling_bytes, plan.graph)
    try:
        memory = _memory_kept(beside, plan, ceiling_bytes, here)
        if memory is None:
            partition, memory = here.least()
            plan = replace(plan, partition=partition, threads=beside.plan.threads)
    except CeilingTooLowError as error:
        known = advised(error, ceiling_bytes or 0, lambda least: limits(least, load(most_of_a_weight(least))).least())
        beside.report.note(
            f"{_WHAT} keeps no ceiling and is loaded as a whole: {known.reason}; the least that would do for it too is "
            f"{megabytes(known.least_bytes)}"
        )
        return plan
    stages, own = count_of(plan.partition.num_stages, "stage"), megabytes(sum(plan.graph.weights_bytes.values()))
    beside.report.note(f"{_WHAT} keeps the ceiling as well, in {stages} with weights of its own: {own} more on disk")
    return replace(plan, scheme=memory.scheme(scheme.residency))


def _memory_kept(
    beside: Beside, plan: VariantPlan, ceiling_bytes: int | None, limits: MemoryLimit
) -> PlanMemory | None:
    """Return what a plan takes that is cut as before, if that was for a ceiling and it keeps this one; else None."""
    before = beside.cut_as
    if before is None or before.residency is None or plan.partition.num_stages != len(before.stages):
        return None
    memory = limits.memory_of(plan.partition)
    return memory if ceiling_bytes is None or memory.peak_bytes <= ceiling_bytes else None

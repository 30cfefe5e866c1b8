"""Before a cut is taken on a device: whether it answers sooner than the whole model, measured, not predicted."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.errors import SplitloadError
from splitload.build.assemble import VariantPlan
from splitload.devices import Measuring
from splitload.frontends.onnx import Source
from splitload.graphs.stage_store import StageStore
from splitload.measure.sampling import Sample
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.planner.found_plan import FoundPlan
from splitload.planner.measure_plans import measure_plans
from splitload.planner.race import FEWEST_ROUNDS
from splitload.planner.report import Report
from splitload.planner.search import Search

if TYPE_CHECKING:
    from splitload.planner.refine import Refined

TRIAL_RUNS = 9
GAIN = 0.03  # what a cut must gain where both are measured, in turns: medians of so many runs are as good as that


@dataclass(frozen=True, slots=True)
class Trial:
    """Times to first output of a cut and of the whole model as one stage, in seconds.

    Attributes:
        num_stages: Stages of the cut; where the last layers are trained, of what is frozen.
        split_s: Its samples, each of a fresh process.
        whole_s: Those of the whole model, taken in turns with them.
    """

    num_stages: int
    split_s: tuple[float, ...]
    whole_s: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """How many times as long the whole model takes as the cut, in the median of neighbouring samples."""
        return statistics.median(whole / split for split, whole in zip(self.split_s, self.whole_s, strict=True))

    @property
    def pays(self) -> bool:
        """Whether the cut answers sooner by `GAIN`, in the median of neighbouring samples."""
        ratios = (split / whole for split, whole in zip(self.split_s, self.whole_s, strict=True))
        return statistics.median(ratios) < 1 - GAIN

    def to_json(self) -> dict[str, Any]:
        """Return what records and manifests say about it: medians in seconds."""
        return {
            "runs": len(self.split_s),
            "num_stages": self.num_stages,
            "split_ttfo_s": statistics.median(self.split_s),
            "whole_ttfo_s": statistics.median(self.whole_s),
        }


def try_cut(
    device: Measuring,
    source: Source,
    plan: VariantPlan,
    report: Report,
    cache: Path,
    *,
    feeds: Mapping[str, Any],
    runs: int | None = None,
    beside: Partition | None = None,
    store: StageStore | None = None,
) -> Trial | None:
    """Measure a plan of several stages beside the whole model, up to `TRIAL_RUNS` times each in fresh processes.

    It ends when most of `TRIAL_RUNS` samples say the same: `Trial.pays` would not change after all of them. With `runs`
    so many times, for what it shows alone: nothing is chosen by it. With `beside` that plan stands for the whole model:
    where the last layers are trained, what is frozen as one stage. Stage files come from `store`, and are kept there.

    Returns:
        None, and a note on the report, if one of the two cannot be built or run.
    """
    one = beside or Partition(plan.partition.num_blocks)
    whole = VariantPlan(plan.graph, one, plan.threads)

    def enough(samples: Sequence[Sequence[Sample]]) -> bool:
        return runs is None and _decided(*([sample["ttfo_s"] for sample in each] for each in samples))

    try:
        measured = measure_plans(
            device, source, [plan, whole], runs or TRIAL_RUNS, report, cache, feeds=feeds, enough=enough, store=store
        )
    except (SplitloadError, OSError) as error:
        so = ", so its prediction counts" if runs is None else ""
        report.note(f"the cut could not be measured beside the whole model (in '{cache}'){so}: {error}")
        return None
    split_s, whole_s = (tuple(sample["ttfo_s"] for sample in samples) for samples in measured)
    return Trial(plan.partition.num_stages - one.num_stages + 1, split_s, whole_s)


def trial_of(refined: Refined) -> Trial | None:
    """Return the trial of a plan that has raced against the whole model already; None where it has not long enough."""
    plan, one = refined.found.partition, refined.search.fewest
    split, whole = (refined.raced.get(each, ()) for each in (plan, one))
    runs = min(len(split), len(whole))
    if plan == one or runs < FEWEST_ROUNDS:
        return None
    split_s, whole_s = (tuple(each.ttfo_s for each in taken[:runs]) for taken in (split, whole))
    return Trial(plan.num_stages - one.num_stages + 1, split_s, whole_s)


def _decided(split_s: Sequence[float], whole_s: Sequence[float]) -> bool:
    """Return whether `Trial.pays` of `TRIAL_RUNS` samples is known: more than half of them say the same."""
    sooner = sum(map(_sooner, split_s, whole_s))
    return max(sooner, len(split_s) - sooner) > TRIAL_RUNS // 2


def _sooner(split_s: float, whole_s: float) -> bool:
    """Return whether a cut answers sooner by `GAIN`."""
    return split_s / whole_s < 1 - GAIN


def choose_measured(
    device: Measuring,
    search: Search,
    found: FoundPlan,
    source: Source,
    graph: ModelGraph,
    threads: int,
    report: Report,
    cache: Path,
    *,
    feeds: Mapping[str, Any],
    store: StageStore | None = None,
) -> tuple[FoundPlan, Trial | None]:
    """Return what was found if it pays when it is measured, or else the whole model; and the trial, if there was one.

    Args:
        device: What measures.
        search: What found it.
        found: What was found.
        source: The model.
        graph: Its graph for the device.
        threads: Loads that can run at the same time.
        report: Where to tell what is done.
        cache: The user's cache folder.
        feeds: Inputs to measure with; made up where they are missing.
        store: Where stage files are kept for the bundle.
    """
    if found.partition == search.fewest:
        return found, None
    plan = VariantPlan(graph, found.partition, threads)
    trial = try_cut(device, source, plan, report, cache, feeds=feeds, beside=search.fewest, store=store)
    return (found if trial is None or trial.pays else search.whole(found)), trial

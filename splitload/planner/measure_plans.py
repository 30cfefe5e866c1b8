"""Plans measured beside each other on a device: built as bundles, then loaded in turns in fresh processes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from splitload.base.phrases import count_of
from splitload.base.scratch import scratch_folder
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.bundle.manifest import Variant
from splitload.devices import Measuring
from splitload.frontends.onnx import Source
from splitload.graphs.stage_store import StageStore
from splitload.measure.sampling import Arm, Sample
from splitload.plan.partition import Partition
from splitload.planner.portable import Beside, with_portable
from splitload.planner.report import Report


def measure_plans(
    device: Measuring,
    source: Source,
    plans: Sequence[VariantPlan],
    runs: int,
    report: Report,
    cache: Path,
    *,
    feeds: Mapping[str, Any],
    enough: Callable[[Sequence[Sequence[Sample]]], bool] = lambda _: False,
    store: StageStore | None = None,
) -> list[list[Sample]]:
    """Measure plans of one graph in rounds, so that a machine that slows down does so for all of them.

    All are loaded in the plain way, whatever way is chosen for the stages of a bundle later, and nothing is done after
    the first output. Plans that differ in their threads alone share a bundle.

    Args:
        device: What measures.
        source: The model.
        plans: What to measure, at least one.
        runs: The most rounds; each takes one sample of every plan, of a fresh process, with the page cache
            that the device measures with.
        report: Where to tell what is done.
        cache: Where the bundles lie meanwhile.
        feeds: Inputs to measure with; made up where they are missing.
        enough: Given the samples so far, says whether further rounds could change nothing.
        store: Where stage files that were made before are taken from, and new ones kept.

    Returns:
        The samples of each plan, as `Measuring.first_output` gives them, in order.

    Raises:
        SplitloadError: If a plan cannot be built or run.
    """
    _, *portable = with_portable(Beside(plans[0], source, report, cache, feeds))
    inputs = plans[0].graph.input_tensors()
    samples: list[list[Sample]] = [[] for _ in plans]
    cache.mkdir(parents=True, exist_ok=True)
    with scratch_folder(cache, ".trial-") as folder:
        bundles: dict[Partition, Path] = {}
        for plan in plans:
            if plan.partition not in bundles:
                bundle = folder / f"{len(bundles)}.splitload"
                with report.status(f"building {count_of(plan.partition.num_stages, 'stage')} to measure"):
                    build_bundle(
                        bundle,
                        [plan, *portable],
                        device="host",
                        steps=Steps(choose=_plain, canary=False),
                        store=store,
                        runtime=device.runtime,
                    )
                bundles[plan.partition] = bundle
        arms = [Arm("splitload", bundles[plan.partition], threads=plan.threads) for plan in plans]
        with report.progress(f"measuring {count_of(len(plans), 'plan')} of {source.name}", unit="rounds") as show:
            for done in range(runs):
                show(done, runs)
                if enough(samples):
                    break
                for arm, taken in zip(arms, samples, strict=True):
                    taken.append(device.first_output(arm, inputs, feeds))
    return samples


def _plain(_: Path, variant: Variant) -> Variant:
    """Return the variant with nothing to do after the first output: that alone is measured."""
    return variant._replace(stages=tuple(stage._replace(upgrade=False) for stage in variant.stages))

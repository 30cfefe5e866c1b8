"""A plan becomes a bundle: with a portable graph beside a native one, with what trains it, and checked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.errors import MissingPackageError, ModelError
from splitload.build.agreement import Agreement, compare_with_stock
from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.build.fleet import keep_natives
from splitload.bundle.manifest import Manifest, Metadata, StageEntry, Training, Variant
from splitload.devices import Measuring
from splitload.frontends.onnx import Source
from splitload.graphs.describe import tensor_spec
from splitload.graphs.runtime import GraphRuntime
from splitload.graphs.stage_store import StageStore
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.portable import Beside, with_opened, with_portable
from splitload.planner.report import Report, Show
from splitload.planner.why import reasons
from splitload.training.opened import Opened
from splitload.training.training import keep_training, write_training

if TYPE_CHECKING:
    from splitload.planner.trial import Trial

AddTraining = Callable[[Path, StageEntry], Training | None]


def notes_of(
    profile: Profile, partition: Partition, trial: Trial | None, plans: Mapping[int, Partition], **others: Any
) -> dict[str, Any]:
    """Return what a bundle's manifest says of how its plan was found, as JSON values.

    Args:
        profile: What it was found by.
        partition: The plan.
        trial: How it was measured beside the whole model, if it was.
        plans: The best plan for each number of stages.
        others: What comes first.
    """
    return {
        **others,
        "num_blocks": profile.num_blocks,
        "split_points": list(partition.split_points),
        "profile_source": profile.source,
        "predicted_ttfo_s": profile.schedule(partition).ttfo_s,
        "trial": None if trial is None else trial.to_json(),
        "why": reasons(profile, partition, plans),
    }


def write_bundle(
    target: Path,
    source: Source,
    plan: VariantPlan,
    report: Report,
    cache: Path,
    *,
    device: str,
    tuner: Measuring,
    notes: Mapping[str, Any],
    feeds: Mapping[str, Any] | None = None,
    trainable: str | Collection[str] | None = None,
    specialized_from: Manifest | None = None,
    keep_other_natives: bool = False,
    on_compared: Callable[[Agreement], None] | None = None,
    store: StageStore | None = None,
) -> Manifest:
    """Write the bundle, the plan and where its graph is native a portable one that runs anywhere; return the manifest.

    How the stages of a native plan are loaded is chosen by `tuner`, which measures them on `feeds`, and whose runtime
    the graph was made for. With `trainable`
    its last stage can be trained: what does that on a device is checked and written too. With `specialized_from` the
    source is that bundle at `target`: the new one names the same model, ends with the same last stage, is trained by
    the same steps, keeps personalized tails, and its portable graph is cut as before; with `keep_other_natives` its
    native variants for other machines stay. `on_compared` is called with what a run of every variant beside a stock
    session came to. Stage files that `store` holds are taken from there. Stages of a plan with a `scheme` are not
    tuned, and the portable plan beside it has one as well where that fits; `tuner` measures what it takes, if the
    scheme says what was measured.

    Raises:
        SplitloadError: If it cannot be written, or a variant does not run where a stock session does.
    """
    feeds = feeds or {}
    metadata, model_data, cut_as, keep_tail = _taken_over(source, specialized_from)
    beside = Beside(plan, source, report, cache, feeds, tuner, cut_as)
    plans, add_training = _with_training(target, beside, trainable, specialized_from)
    is_tuned = plan.graph.kind == "native" and plan.scheme is None
    with report.progress("writing the bundle", unit="stages") as show:
        return build_bundle(
            target,
            plans,
            device=device,
            notes=notes,
            metadata=metadata,
            model_data=model_data,
            steps=Steps(
                on_progress=show,
                on_note=report.note,
                choose=partial(_tuned, tuner, plan, feeds, show) if is_tuned else None,
                with_others=partial(keep_natives, target, specialized_from)
                if keep_other_natives and specialized_from is not None
                else None,
                add_training=add_training,
                check=None
                if on_compared is None
                else partial(_compared, source, feeds, tuner.runtime, show, on_compared),
            ),
            keep_tail=keep_tail,
            store=store,
            runtime=tuner.runtime,
        )


def _with_training(
    target: Path, beside: Beside, trainable: str | Collection[str] | None, former: Manifest | None
) -> tuple[list[VariantPlan], AddTraining | None]:
    """Return what the bundle is made of, and what writes beside it how its last stage is trained, if it is."""
    add_training: AddTraining | None = None
    if trainable is None:
        plans = with_portable(beside)
    else:
        plans, opened = with_opened(beside, trainable)
        add_training = partial(_add_training, opened, beside.source, beside.feeds, beside.report)
    if former is None:
        return plans, add_training
    kept = None if former.training is None else partial(keep_training, target, former.training)
    return [_of_model(each, former) for each in plans], kept or add_training


def _taken_over(
    source: Source, former: Manifest | None
) -> tuple[Metadata | None, Sequence[str], Variant | None, StageEntry | None]:
    """Return the metadata and data files that a manifest names, and what of a former bundle stays.

    Returns:
        Besides the first two, the variant by which the portable graph is cut, and the last stage that is trained.
    """
    if former is None:
        return source.metadata, source.data_files, None, None
    portable = former.variants[-1]
    kept = None if former.training is None else portable.stages[-1]
    return former.metadata, former.model_data or (), portable, kept


def _of_model(plan: VariantPlan, manifest: Manifest) -> VariantPlan:
    """Return a plan whose graph is said to be of the model that a manifest names."""
    graph = replace(plan.graph, source_sha256=manifest.model_sha256, source_bytes=manifest.model_bytes)
    return replace(plan, graph=graph)


def _tuned(
    tuner: Measuring, plan: VariantPlan, feeds: Mapping[str, Any], show: Show, folder: Path, variant: Variant
) -> Variant:
    """Return the native variant with the ways to load its stages that were the fastest."""
    inputs = [tensor_spec(plan.graph, name) for name in plan.graph.inputs]
    return tuner.tune(
        folder, variant, inputs, feeds, lambda done, total: show(done, total, "measuring how to load them")
    )


def _compared(
    source: Source,
    feeds: Mapping[str, Any],
    runtime: GraphRuntime,
    show: Show,
    on_compared: Callable[[Agreement], None],
    folder: Path,
    manifest: Manifest,
) -> None:
    """Compare what the bundle answers with a stock session."""
    show(1, 1, "comparing what it answers with a stock session")
    on_compared(compare_with_stock(folder, manifest, source.path, feeds, runtime))


def _add_training(
    opened: Opened, source: Source, feeds: Mapping[str, Any], report: Report, folder: Path, tail: StageEntry
) -> Training | None:
    """Write what trains the last stage on a device, or say why that cannot be."""
    try:
        with report.status("checking the gradients of the last stage"):
            training, reason = write_training(opened, source, feeds, folder, tail)
    except (ModelError, MissingPackageError) as error:
        report.note(f"the last stage cannot be trained: {error}")
        return None
    if reason is not None:
        report.note(f"the last stage can only be trained where torch is installed: {reason}")
    if training.output_doubt is not None:
        report.note(training.output_doubt)
    return training

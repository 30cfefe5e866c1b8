"""From a request to a bundle: the model is read, a plan searched and tried, the bundle written and measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from splitload.base.errors import SplitloadError, UsageError
from splitload.build.agreement import Agreement
from splitload.build.assemble import VariantPlan
from splitload.bundle.manifest import Manifest
from splitload.bundle.replace import check_output_file
from splitload.bundle.write import check_target
from splitload.devices import Device, open_device
from splitload.devices.host import HostDevice
from splitload.frontends.onnx import Source, model_files
from splitload.graphs.stage_store import StageStore
from splitload.plan.ceiling import most_of_a_weight
from splitload.plan.crowd import Crowd
from splitload.plan.graph import ModelGraph
from splitload.plan.partition import Partition
from splitload.plan.profile import Profile
from splitload.planner.crowd_plan import prediction
from splitload.planner.found_plan import FoundPlan
from splitload.planner.gain import GAIN_RUNS, Gain, measure_gain
from splitload.planner.least_ceiling import CeilingTooLowError
from splitload.planner.make_plan import Planned, make_plan
from splitload.planner.parallel import check_cluster
from splitload.planner.read_model import native_left_out, read_model
from splitload.planner.report import Report
from splitload.planner.request import TrainRequest
from splitload.planner.residency import MemoryLimit, advised
from splitload.planner.result import TrainResult
from splitload.planner.resume_hint import resume_hint
from splitload.planner.trial import Trial, choose_measured, trial_of, try_cut
from splitload.planner.write_bundle import notes_of, write_bundle
from splitload.training.division import Division


@dataclass(frozen=True, slots=True)
class _Model:
    """The model as it is cut.

    Attributes:
        source: The .onnx file.
        graph: It on the device.
        division: Where it is divided for training.
        feeds: Inputs to measure with.
        left_out: Why its bundle gets no native part, if it gets none.
        store: Files of its stages that were written already.
        crowd: What it is planned for, where that is a crowd.
    """

    source: Source
    graph: ModelGraph
    division: Division | None
    feeds: Mapping[str, Any]
    left_out: str | None
    store: StageStore
    crowd: Crowd | None


def train(request: TrainRequest, report: Report) -> TrainResult:
    """Search a plan, write the bundle, and measure it; what is printed of it is left to the caller.

    Args:
        request: What is asked for.
        report: Where to tell what is done, and what the user should know.

    Raises:
        KeyboardInterrupt: With a message that says what is there, and how to go on.
        SplitloadError: Whatever went wrong; nothing half-written is left.
    """
    check_target(request.target, "give another place with -o")
    device = open_device(request.device, request.cache, page_cache=request.page_cache)
    _check_places(request, device)
    crowd = None if request.crowd is None else Crowd.read(Path(request.crowd))
    with StageStore(request.cache) as store:
        model = _read(request, report, device, store, crowd)
        if device.measuring is not None:
            device.measuring.expect(model_files(model.source.path))  # what a stock session reads, at the end
        try:
            planned = make_plan(request, report, device, model.graph, model.feeds, model.graph.first_trainable, crowd)
        except CeilingTooLowError as error:
            raise _advised(request, report, device, error) from None
        found, trial = _tried(request, report, device, model, planned)
        if request.limits_memory:
            report.note(_what_stays_out(request, found))
        notes = _notes(request, model, planned, found, trial)
        plan = VariantPlan(
            model.graph,
            found.partition,
            planned.profile.contention.threads,
            model.graph.first_trainable,
            None if planned.memory is None else planned.memory.scheme(planned.residency(request)),
        )
        replaced = request.target.exists()
        manifest, agreement = _written(request, report, device, model, plan, notes)
        stages, gain = _measured(request, report, device, model, planned, plan, trial)
        if device.measuring is not None:
            device.measuring.settled(model.graph, model.feeds)
    return TrainResult(
        request,
        model.graph,
        planned,
        found,
        trial,
        model.division,
        manifest.training,
        stages,
        agreement,
        gain,
        replaced,
    )


def _check_places(request: TrainRequest, device: Device) -> None:
    """Make sure that the device can measure what is asked for, and that a search can write where it has to.

    Raises:
        UsageError: If the device measures nothing, and a budget is given.
        OutputError: If a file cannot be written.
        SplitloadError: If there is no cluster.
    """
    if request.cluster is not None:
        check_cluster(request.cluster)
    if request.budget is not None and device.measuring is None:
        raise UsageError(f"--budget counts stage loads that are measured, and on '{request.device}' none are")
    for what, file in (("checkpoint", request.checkpoint), ("curve", request.curve)):
        if file is not None:
            check_output_file(Path(file), what)


def _advised(request: TrainRequest, report: Report, device: Device, error: CeilingTooLowError) -> CeilingTooLowError:
    """Return the refusal of a ceiling, with one that does; see `advised`."""

    def attempt(ceiling_bytes: int) -> None:
        source, graph, _ = _opened(replace(request, residency=ceiling_bytes), report, device)
        limits = MemoryLimit(ceiling_bytes, device.measuring, graph, {**source.examples, **request.feeds}, report)
        limits.ceiling(request.max_stages)

    assert isinstance(request.residency, int)  # noqa: S101 - nothing else is refused
    return advised(error, request.residency, attempt)


def _opened(
    request: TrainRequest, report: Report, device: Device, crowd: Crowd | None = None
) -> tuple[Source, ModelGraph, Division | None]:
    """Return the model, its graph for the device, and where it is divided for training."""
    return read_model(
        request.model,
        device,
        report,
        request.cache,
        request.feeds,
        max_blocks=request.max_blocks,
        max_weight_bytes=request.max_weight_bytes if crowd is None else most_of_a_weight(crowd.memory_bytes),
        trainable=request.trained,
        new_head=request.new_head,
    )


def _read(request: TrainRequest, report: Report, device: Device, store: StageStore, crowd: Crowd | None) -> _Model:
    """Return the model, and tell what it lacks."""
    source, graph, division = _opened(request, report, device, crowd)
    left_out = native_left_out(device, graph)
    if left_out is not None:
        report.note(left_out)
    if len(graph.blocks) == 1:
        report.note(f"{graph.name} cannot be cut anywhere: it becomes one stage")
    elif request.max_stages is not None and request.max_stages > len(graph.blocks):
        report.note(f"{graph.name} has {len(graph.blocks)} blocks, and so at most as many stages")
    return _Model(source, graph, division, {**source.examples, **request.feeds}, left_out, store, crowd)


def _tried(
    request: TrainRequest, report: Report, device: Device, model: _Model, planned: Planned
) -> tuple[FoundPlan, Trial | None]:
    """Return the plan to build, and how it was measured beside the whole model, where that chose it.

    Where not all of the model may be in memory, the whole of it is no alternative.
    """
    found = planned.found
    trial = None if planned.refined is None or request.limits_memory else trial_of(planned.refined)
    if trial is not None:
        found = found if trial.pays else planned.search.whole(found)
    elif device.measuring is not None and request.split_points is None and not request.limits_memory:
        threads = planned.profile.contention.threads
        try:
            found, trial = choose_measured(
                device.measuring,
                planned.search,
                found,
                model.source,
                model.graph,
                threads,
                report,
                request.cache,
                feeds=model.feeds,
                store=model.store,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(resume_hint(request, found.partition)) from None
    return found, trial


def _what_stays_out(request: TrainRequest, found: FoundPlan) -> str:
    """Return what `--residency` or `--crowd` does besides, for people."""
    option = "--residency" if request.crowd is None else "--crowd"
    said = (
        f"with {option} weights stay mapped from their files: nothing is rearranged, read into memory or loaded anew "
        "for speed, and no way to load is measured"
    )
    alone = found.partition.num_stages == 1 and request.residency == "stage"
    return f"{said}. The plan has one stage, so that all weights are there at a time" if alone else said


def _notes(
    request: TrainRequest, model: _Model, planned: Planned, found: FoundPlan, trial: Trial | None
) -> dict[str, Any]:
    """Return what the manifest says of how the plan was found."""
    return notes_of(
        planned.profile,
        found.partition,
        trial,
        planned.search.plans,
        agent=request.agent if request.split_points is None else "given",
        found_by=found.found_by,
        values_s=dict(found.values_s),
        objective=request.objective,
        trainable=request.trained,
        new_head=request.new_head,
        seed=planned.seed,
        episodes=found.episodes,
        native_left_out=model.left_out,
        **({} if request.residency is None else {"residency": request.residency}),
        **({} if planned.crowd is None else {"crowd": prediction(planned.crowd, planned.profile, found.partition)}),
    )


def _written(
    request: TrainRequest,
    report: Report,
    device: Device,
    model: _Model,
    plan: VariantPlan,
    notes: Mapping[str, Any],
) -> tuple[Manifest, Agreement]:
    """Write the bundle; return its manifest, and how far it is from a stock session."""
    agreements: list[Agreement] = []
    try:
        manifest = write_bundle(
            request.target,
            model.source,
            plan,
            report,
            request.cache,
            device=device.name,
            tuner=device.measuring or HostDevice(request.cache),  # a native graph is laid out for this processor
            notes=notes,
            feeds=model.feeds,
            trainable=request.trained,
            on_compared=agreements.append,
            store=model.store,
        )
    except KeyboardInterrupt as interrupt:  # which tells if the bundle is there
        raise KeyboardInterrupt(str(interrupt) or resume_hint(request, plan.partition)) from None
    if note := agreements[0].note():
        report.note(note)
    return manifest, agreements[0]


def _measured(
    request: TrainRequest,
    report: Report,
    device: Device,
    model: _Model,
    planned: Planned,
    plan: VariantPlan,
    trial: Trial | None,
) -> tuple[Profile, Gain | None]:
    """Return what the stages cost, and what the bundle gains; without figures where it cannot be measured."""
    stages, gain = planned.profile, None
    try:
        with report.status("measuring the stages and the time to first output in fresh processes"):
            if device.measuring is not None and planned.measured_loads is None:  # else they are in the profile
                stages = device.measuring.measure(model.graph, plan.partition.stages(), feeds=model.feeds)
        gain = _gain(request, report, device, model, planned.profile, plan, trial)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted while measuring; the bundle '{request.target}' is complete") from None
    except (SplitloadError, OSError) as error:
        report.note(f"the bundle '{request.target}' is complete, but could not be measured: {error}")
    return stages, gain


def _gain(
    request: TrainRequest,
    report: Report,
    device: Device,
    model: _Model,
    profile: Profile,
    plan: VariantPlan,
    trial: Trial | None,
) -> Gain:
    """Return what the bundle gains: measured where the device can, otherwise by the profile.

    A trial that chose the plan says what the cut makes of it; a plan that was given, or is cut where training begins
    besides, is tried for that alone.
    """
    num_stages = plan.partition.num_stages
    if device.measuring is None:
        here, one = (profile.schedule(each) for each in (plan.partition, Partition(profile.num_blocks)))
        ratio = one.ttfo_s / here.ttfo_s if num_stages > 1 and here.ttfo_s > 0 else None
        return Gain(here.source, num_stages, {"ttfo_s": here.ttfo_s}, {"ttfo_s": one.ttfo_s}, cut_ratio=ratio)
    if num_stages > 1 and not request.limits_memory and (trial is None or plan.trainable_from is not None):
        alone, feeds = replace(plan, trainable_from=None), model.feeds
        trial = try_cut(
            device.measuring, model.source, alone, report, request.cache, feeds=feeds, runs=GAIN_RUNS, store=model.store
        )
    cut_ratio = None if num_stages == 1 or trial is None else trial.ratio
    return measure_gain(device.measuring, model.source, plan.graph, request.target, num_stages, model.feeds, cut_ratio)

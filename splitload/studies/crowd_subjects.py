"""What is run on emulated crowds: bundles of zoo models, inputs from seeds, and what a stock session answers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitload.build.assemble import Steps, VariantPlan, build_bundle
from splitload.build.residency import with_residency
from splitload.bundle.manifest import TensorSpec, Variant
from splitload.bundle.read import read_manifest
from splitload.devices import Device, open_device
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.graph import ModelGraph
from splitload.plan.memory import memory_needs
from splitload.plan.partition import Partition
from splitload.planner.request import TrainRequest
from splitload.planner.train import train
from splitload.runtime.answers import relative_error
from splitload.runtime.loader import ParallelLoader
from splitload.runtime.stock import python_module, stock_session

if TYPE_CHECKING:
    from splitload.planner.report import Report

TOKENS = 1000  # fewer than any model of text knows
Feeds = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A bundle, and the model that it is of.

    Attributes:
        source: The model.
        bundle: The folder of the bundle.
        input_specs: What the model takes.
        output_names: What it gives.
        kept: What a stock session has answered, by seed.
    """

    source: Source
    bundle: Path
    input_specs: tuple[TensorSpec, ...]
    output_names: tuple[str, ...]
    kept: dict[int, list[Any]] = field(default_factory=dict, compare=False)

    @property
    def stage_bytes(self) -> list[int]:
        """What each stage takes as it travels."""
        stages = read_manifest(self.bundle).variants[0].stages
        return [sum(file.bytes for file in (stage.graph, stage.weights) if file is not None) for stage in stages]

    def inputs(self, seed: int) -> Feeds:
        """Return an input of the model, others for each seed."""
        return {spec.name: made_up(spec, seed) for spec in self.input_specs}

    def expect(self, seeds: Sequence[int]) -> dict[int, list[Any]]:
        """Return what a stock session on the unsplit model answers to inputs, by seed."""
        if lacking := [seed for seed in seeds if seed not in self.kept]:
            session = stock_session(self.source.path, None)
            for seed in lacking:
                self.kept[seed] = session.run(list(self.output_names), self.inputs(seed))
        return {seed: self.kept[seed] for seed in seeds}

    def answers(self, seeds: Sequence[int]) -> dict[int, list[Any]]:
        """Return what the bundle answers to inputs on this machine alone, by seed."""
        with ParallelLoader(self.bundle, upgrade=False) as model:
            return {seed: list(model.run(list(self.output_names), self.inputs(seed))) for seed in seeds}

    def rounding(self, seeds: Sequence[int]) -> float:
        """Return how far a stock session is from one that does not optimise the graph, the most of all inputs.

        Both compute the same model: what a right answer is cannot be told more exactly than that.
        """
        ort = python_module("a stock session")
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        plain, expected = stock_session(self.source.path, options), self.expect(seeds)
        answers = {seed: plain.run(list(self.output_names), self.inputs(seed)) for seed in seeds}
        return max(relative_error(answers[seed], expected[seed]) for seed in seeds)


def made_up(spec: TensorSpec, seed: int) -> Any:
    """Return an array for an input, made from a seed: normal floats, tokens, or a mask of ones."""
    rng = np.random.default_rng(seed)
    shape = [size if isinstance(size, int) else 1 for size in spec.shape or ()]
    if spec.type == "tensor(float)":
        return rng.standard_normal(shape).astype(np.float32)
    if "mask" in spec.name:
        return np.ones(shape, np.int64)
    return rng.integers(0, TOKENS, shape)


def even_cuts(seconds: Sequence[float], num_stages: int) -> tuple[int, ...]:
    """Return the split points with which the slowest stage is as fast as can be.

    Args:
        seconds: Of each block.
        num_stages: How many stages there are to be; there are many blocks for each.
    """
    before = [0.0, *itertools.accumulate(seconds)]

    def slowest_s(points: tuple[int, ...]) -> float:
        bounds = (0, *points, len(seconds))
        return max(before[end] - before[start] for start, end in itertools.pairwise(bounds))

    return min(itertools.combinations(range(1, len(seconds)), num_stages - 1), key=slowest_s)


def in_stages(model: str, num_stages: int, bundles: Path, cache: Path, report: Report) -> Subject:
    """Return a model in so many stages of equal inference seconds on this host; its bundle is made unless it is there.

    Raises:
        SplitloadError: If it cannot be.
    """

    def cuts(graph: ModelGraph, device: Device) -> tuple[int, ...]:
        return even_cuts([block.cost.inference_s for block in device.profile(graph).blocks], num_stages)

    return _cut(model, f"{num_stages}-stages", cuts, bundles, cache, report)


def unsplit(model: str, bundles: Path, cache: Path, report: Report) -> Subject:
    """Return a model in one stage, which the runtime opens and runs as it does the stages of `in_stages`.

    Raises:
        SplitloadError: If it cannot be.
    """
    return _cut(model, "1-stage", lambda graph, device: (), bundles, cache, report)


def planned(model: str, crowd: CrowdFile, bundles: Path, cache: Path, report: Report) -> Subject:
    """Return a model in the stages that `train --crowd` finds for the latency of a batch; likewise.

    Raises:
        SplitloadError: If it cannot be.
    """
    source = open_source(model, cache)
    target = bundles / f"{source.name}-{crowd.memory}.splitload"
    if not target.exists():
        described = target.with_suffix(".toml")
        described.write_text(crowd.text, encoding="utf-8")
        request = TrainRequest(
            model=model, device="host", output=str(target), objective="latency", crowd=str(described), cache=cache
        )
        train(request, report)
    manifest = read_manifest(target)
    return Subject(source, target, manifest.inputs, tuple(spec.name for spec in manifest.outputs))


@dataclass(frozen=True)
class CrowdFile:
    """Workers that are alike, as `train --crowd` reads them.

    Attributes:
        count: How many.
        batch: Inputs of a batch.
        memory: What stages may take on each, such as 43MB.
        speed: Times as fast as this host.
        link_mbit_s: What the link of each carries.
    """

    count: int
    batch: int
    memory: str
    speed: float
    link_mbit_s: float

    @property
    def text(self) -> str:
        """The file."""
        worker = (
            f'count = {self.count}\nmemory = "{self.memory}"\nspeed = {self.speed}\nlink_mbit_s = {self.link_mbit_s}'
        )
        return f"batch = {self.batch}\n\n[[workers]]\n{worker}\n"


def _cut(
    model: str,
    word: str,
    cuts: Callable[[ModelGraph, Device], tuple[int, ...]],
    bundles: Path,
    cache: Path,
    report: Report,
) -> Subject:
    """Return a model whose bundle has the cuts that a function chooses, and a word in its name that says which."""
    source = open_source(model, cache)
    target = bundles / f"{source.name}-{word}.splitload"
    if not target.exists():
        device = open_device("host", cache)
        graph = load_graph(source, device.graph_kind, cache)
        plan = VariantPlan(graph, Partition(len(graph.blocks), cuts(graph, device)), 1)
        needs = memory_needs(graph)

        def choose(_: Path, variant: Variant) -> Variant:
            return with_residency(variant, "stage", [needs.stage(*stage) for stage in plan.partition.stages()])

        with report.status(f"building {target.name}"):
            portable = load_graph(source, "portable", cache)  # no device here runs it, and a bundle has one
            beside = VariantPlan(portable, Partition(len(portable.blocks)), 1)
            build_bundle(target, [plan, beside], device="host", steps=Steps(choose=choose))
    manifest = read_manifest(target)
    return Subject(source, target, manifest.inputs, tuple(spec.name for spec in manifest.outputs))

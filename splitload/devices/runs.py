"""Stages and plans of one graph, written once and measured in fresh processes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from splitload.base.errors import ModelError
from splitload.build.residency import ResidencyScheme
from splitload.bundle.manifest import MANIFEST, Manifest, TensorSpec, Variant
from splitload.devices.estimate import FirstOutput
from splitload.devices.journal import Journal
from splitload.devices.machine import Machine
from splitload.graphs.describe import describe
from splitload.graphs.runtime import GraphRuntime
from splitload.graphs.stages import StageWriter, WrittenStage
from splitload.measure.fresh import save_inputs
from splitload.measure.job import LoadModel
from splitload.measure.stage_jobs import MeasureArena, SampleStages, StageFile
from splitload.plan.graph import ModelGraph
from splitload.plan.memory import sessions_bytes
from splitload.plan.partition import Partition
from splitload.plan.profile import Cost, Segment
from splitload.runtime.inputs import cure, made_up


class WorkingMemory(NamedTuple):
    """What runs of a model take beside weights and sessions.

    Attributes:
        arena_bytes: It, with what the sessions take more than `sessions_bytes` says.
        input_bytes: Of the inputs that were given.
    """

    arena_bytes: int
    input_bytes: int


class Runs:
    """Measures stages of one graph, each sample in a fresh process.

    Args:
        graph: The model.
        feeds: Inputs; made up where missing.
        folder: Where the stages' files are written, once each.
        machine: Where the processes run.
        journal: Keeps what they answer, for an attempt after this one.
        runtime: What a native graph was made for.
    """

    def __init__(
        self,
        graph: ModelGraph,
        feeds: Mapping[str, Any],
        folder: Path,
        machine: Machine,
        journal: Journal,
        runtime: GraphRuntime,
    ) -> None:
        self._graph = graph
        self._folder = folder
        self._machine = machine
        self._journal = journal
        self._writer = StageWriter(graph, runtime=runtime)
        self._written: dict[Segment, WrittenStage] = {}
        specs = graph.input_tensors()
        self._inputs = save_inputs(specs, feeds, folder)
        self._made_up = made_up(specs, feeds)

    def sample(
        self, chain: Sequence[Segment], others: Sequence[Segment] = (), *, pair: bool = False
    ) -> tuple[list[tuple[Segment, Cost]], float | None]:
        """Load and run once the stages of a partition, in order, and other segments where their inputs are there.

        Args:
            chain: The stages.
            others: Further segments; each begins where one of the stages does.
            pair: Whether to load two halves of the model as well, alone and together: four loads.

        Returns:
            What each took, and of a pair the share of the shorter load that the longer one waits for.

        Raises:
            ModelError: If the model does not run.
        """
        halves = list(even_cut(self._graph, 2).stages()) if pair and len(self._graph.blocks) > 1 else []

        def measure() -> Any:
            files = (tuple(map(self._file, each)) for each in (chain, others, halves))
            return self._machine.run(SampleStages(self._inputs, *files), self._folder, self._failed)

        answer = self._journal.answer(("stages", *map(list, (chain, others, halves))), measure)
        costs = [((row["start"], row["end"]), _cost(row, self._machine.is_cold)) for row in answer["rows"]]
        return costs, answer["serial_share"]

    def first_output(self, plan: Partition, threads: int, scheme: ResidencyScheme | None = None) -> FirstOutput:
        """Load a plan once as that of a bundle, in a fresh process, and return when it was loaded and when it answered.

        Args:
            plan: Its stages are loaded in the plain way, and not made anew afterwards.
            threads: Loading threads.
            scheme: How much of it may be in memory; None for all.

        Raises:
            ModelError: If the model does not run.
        """

        def measure() -> Any:
            manifest = self._manifest(plan, threads, scheme)
            (self._folder / MANIFEST).write_text(json.dumps(manifest.to_json()), encoding="utf-8")
            job = LoadModel("splitload", ".", self._inputs, threads, steady=False)
            return self._machine.run(job, self._folder, self._failed)

        answer = self._journal.answer(("plan", list(plan.split_points), threads, repr(scheme)), measure)
        return FirstOutput(answer["load_s"], answer["ttfo_s"])

    def working_memory(self, plan: Partition, reserve_bytes: int) -> WorkingMemory:
        """Run a plan again and again in a fresh process, and return what that takes beside weights and sessions.

        Args:
            plan: Its stages stay mapped.
            reserve_bytes: With how large a piece of memory the arena begins.

        Returns:
            It; sessions that take more than is predicted of them add to it, so that the sum is what was measured.

        Raises:
            ModelError: If the model does not run.
        """

        def measure() -> Any:
            job = MeasureArena(self._inputs, tuple(map(self._file, plan.stages())), reserve_bytes)
            return self._machine.run(job, self._folder, self._failed)

        answer = self._journal.answer(("anonymous memory", list(plan.split_points), reserve_bytes), measure)
        sessions = sessions_bytes(plan.num_stages, len(self._graph.nodes))
        return WorkingMemory(max(answer["anonymous_bytes"] - sessions, 0), answer["input_bytes"])

    def _manifest(self, plan: Partition, threads: int, scheme: ResidencyScheme | None) -> Manifest:
        """Return what makes a bundle of the folder."""
        graph = self._graph
        stages = tuple(
            # a weight may lie in the file of a stage of another plan, which this manifest does not name
            self._stage(segment).entry(str(segment), segment, upgrade=False)._replace(shares=())
            for segment in plan.stages()
        )
        manifest = describe(graph, cpu=self._machine.cpu, device=self._machine.name, created_with={}, plan={})
        variant = Variant(graph.kind, None, None, threads, True, stages)
        return manifest._replace(variants=(variant if scheme is None else scheme.of(variant),))

    def _file(self, segment: Segment) -> StageFile:
        """Return a segment's stage file as a job has it."""
        stage = self._stage(segment)
        outputs = tuple(TensorSpec(spec.name, spec.type, None) for spec in stage.outputs)
        return StageFile(
            segment, stage.graph.name, stage.inputs, outputs, stage.prepack, stage.optimized, stage.reoptimize
        )

    def _stage(self, segment: Segment) -> WrittenStage:
        """Return a segment's stage file, and write it the first time."""
        if segment not in self._written:
            nodes = self._graph.node_range(*segment)
            self._written[segment] = self._writer.write(*nodes, self._folder, "blocks-{}-{}".format(*segment))
        return self._written[segment]

    def _failed(self, line: str) -> ModelError:
        return ModelError(f"the model cannot be measured on {self._machine.words}{cure(self._made_up)}: {line}")


def _cost(row: Mapping[str, Any], is_cold: bool) -> Cost:
    """Return what a stage took; of cold files all reading counts as loading, as a loader reads them ahead."""
    if not is_cold:
        return Cost(row["load_s"], row["first_inference_s"], row["inference_s"])
    later_s = row["first_wait_s"]
    load_s = row["load_s"] + later_s
    return Cost(
        load_s, row["first_inference_s"] - later_s, row["inference_s"], min(row["load_wait_s"] + later_s, load_s)
    )


def even_cut(graph: ModelGraph, num_stages: int) -> Partition:
    """Return a cut into about equal loading work; of fewer stages where blocks are few or one does most of it."""
    cost, num_blocks = graph.cumulative_cost(), len(graph.blocks)
    shares = [cost[-1] * number / num_stages for number in range(1, num_stages)] if num_blocks > 1 else []
    starts = {number: cost[graph.blocks[number].start] for number in range(1, num_blocks)}
    points = {min(starts, key=lambda number: abs(starts[number] - share)) for share in shares}
    return Partition(num_blocks, tuple(sorted(points)))

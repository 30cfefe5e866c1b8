"""Checks that a cut model computes what the whole one does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from splitload.base.errors import ModelError
from splitload.base.scratch import scratch_folder
from splitload.frontends.onnx import Source
from splitload.graphs.observe import one_line
from splitload.graphs.stages import StageWriter
from splitload.plan.graph import ModelGraph
from splitload.runtime.answers import TOLERANCE, identical, relative_error
from splitload.runtime.inputs import example_inputs
from splitload.runtime.session import open_session, run_stage, still_read, to_python
from splitload.runtime.stock import stock_session


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a check of one model found.

    Attributes:
        num_cuts: Legal cut points, each tried alone.
        num_partitions: Partitions tried besides.
        different: Split positions whose outputs are not identical to the unsplit model's.
        original_error: Largest error of the unsplit optimised model against the original file, relative to the
            largest magnitude of each output.
    """

    num_cuts: int
    num_partitions: int
    different: tuple[tuple[int, ...], ...]
    original_error: float

    @property
    def passed(self) -> bool:
        """Whether every split was identical and the original within `TOLERANCE`."""
        return not self.different and self.original_error <= TOLERANCE


def check_graph(
    source: Source,
    graph: ModelGraph,
    num_stages: Sequence[int] = (2, 3, 5, 8),
    feeds: Mapping[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Outcome:
    """Try every cut point alone, and one even partition for each number of stages.

    Partitions are tried as bundles hold them; stages between single cuts map the optimised model's file instead.

    Args:
        source: The original model.
        graph: Its optimised graph, made for this machine.
        num_stages: Numbers of stages of the partitions; those the graph is too small for are left out.
        feeds: Inputs; made up where missing.
        on_progress: Called as `on_progress(done, total)`.

    Raises:
        ModelError: If the model does not run on the feeds, or numpy has no type for an output (bfloat16).
    """
    import onnxruntime as ort

    cuts = [cut.position for cut in graph.cut_points]
    quick, shipped = StageWriter(graph, copy_weights=False), StageWriter(graph)
    splits = [(quick, (cut,)) for cut in cuts] + [(shipped, split) for split in even_splits(cuts, num_stages)]
    options = ort.SessionOptions()
    options.log_severity_level = 4
    original = stock_session(str(source.path), options)
    ready = example_inputs(original.get_inputs(), feeds)
    try:
        expected_original = original.run(list(graph.outputs), ready)
    except Exception as error:  # onnxruntime has no common root for its errors
        raise ModelError(f"'{source.path}' does not run on these inputs: {one_line(error)}") from error
    del original
    unsplit = open_session(graph.path)
    expected = unsplit.run(list(graph.outputs), ready)
    del unsplit
    different = []
    for done, (writer, positions) in enumerate(splits):
        if not all(map(identical, run_split(writer, graph, positions, ready), expected)):
            different.append(positions)
        if on_progress is not None:
            on_progress(done + 1, len(splits))
    original_error = max(map(relative_error, expected, expected_original), default=0.0)
    return Outcome(len(cuts), len(splits) - len(cuts), tuple(different), original_error)


def even_splits(cuts: Sequence[int], num_stages: Iterable[int]) -> list[tuple[int, ...]]:
    """Return, for each number of stages k, k-1 of the cut positions, evenly spread."""
    return [
        tuple(cuts[len(cuts) * part // count] for part in range(1, count))
        for count in num_stages
        if count - 1 <= len(cuts) and count > 1
    ]


def run_split(writer: StageWriter, graph: ModelGraph, positions: Sequence[int], feeds: Mapping[str, Any]) -> list[Any]:
    """Cut at node `positions`, run stage after stage, and return the model's outputs.

    Raises:
        ModelError: If a stage cannot be loaded or run.
    """
    import onnxruntime as ort

    bounds = [0, *positions, len(graph.nodes)]
    values: dict[str, Any] = dict(feeds)
    with scratch_folder(graph.path.parent, ".cut-") as folder:
        stages = [writer.write(start, end, folder, f"stage-{start}") for start, end in pairwise(bounds)]
        for number, (stage, (start, end)) in enumerate(zip(stages, pairwise(bounds), strict=True), start=1):
            names = [spec.name for spec in stage.outputs]
            try:
                session = open_session(folder / stage.graph.name)
                values.update(zip(names, run_stage(ort, session, stage, names, values, None), strict=True))
            except Exception as error:  # onnxruntime has no common root for its errors
                raise ModelError(f"{graph.name}: nodes {start} to {end} do not run alone: {one_line(error)}") from error
            values = still_read(values, stages[number:], graph.outputs)
    return [to_python(ort, values[name]) for name in graph.outputs]

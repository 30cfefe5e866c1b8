"""Measures what the units of a shared model cost on a machine, each with several counts of rows, in a fresh process."""

from __future__ import annotations

import os
import shutil
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from splitload.base.errors import ModelError
from splitload.base.scratch import scratch_folder
from splitload.collaborative.costs import MachineCosts, by_rows
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.program import Compute
from splitload.graphs.proto import external_sizes
from splitload.graphs.row_pieces import Range
from splitload.graphs.work_key import work_key
from splitload.measure.job import Input
from splitload.measure.piece_jobs import TimedPiece, TimeMessages, TimePieces
from splitload.plan.graph import ModelGraph
from splitload.runtime.tiny import TINY_MODEL

if TYPE_CHECKING:
    from splitload.measure.fresh import Runner
    from splitload.planner.report import Report

ROUNDS = 7
SHARES = (1.0, 0.5, 0.25, 0.1)  # of the rows of a level
MESSAGE_BYTES = (1_000, 64_000, 512_000)  # that are measured
_PIECES_AT_A_TIME = 24  # sessions of one process


class DoesJobs(Protocol):
    """A machine that does jobs in fresh processes; `splitload.devices.Measuring` is one.

    Attributes:
        name: For people.
    """

    name: str

    @property
    def run(self) -> Runner:
        """Does a job there in a fresh process."""
        ...


def measure_costs(
    pieces: Pieces,
    model: ModelGraph,
    device: DoesJobs,
    report: Report,
    *,
    rounds: int = ROUNDS,
) -> MachineCosts:
    """Return what a machine takes for each unit of a model, by its rows, and to send or receive a message.

    Units of the same operators and sizes take as long, and one of them is run. Each is run with all rows of the level
    at its end and with a few of them from their middle, so that what a small range costs is known; counts between those
    lie on lines. What a call takes whatever it computes is measured on the smallest model, and taken off each. Messages
    go over its loopback, and each side of them takes one half.

    Args:
        pieces: Of the model.
        model: Its graph.
        device: The machine.
        report: Where to tell what is done.
        rounds: Samples of each.

    Raises:
        SplitloadError: If it cannot be measured.
    """
    levels = pieces.levels.levels
    steps = [
        Compute(level - 1, level, rows) for level in range(1, len(levels)) for rows in _ranges(levels[level].num_rows)
    ]
    measured: list[dict[int, float]] = [{} for _ in levels]
    calls: list[float] = []
    with (
        scratch_folder(model.path.parent, ".pieces-") as folder,
        report.progress(f"measuring units on {device.name}", unit="graphs") as show,
    ):
        _link_weights(pieces.source, model.path.parent, folder)
        (folder / "tiny.onnx").write_bytes(TINY_MODEL)
        groups = _alike(pieces, steps)
        for begin in range(0, len(groups), _PIECES_AT_A_TIME):
            show(begin, len(groups))
            chosen = groups[begin : begin + _PIECES_AT_A_TIME]
            files = [TimedPiece("tiny.onnx", (Input("x", "tensor(float)", (1,)),))]
            files += [_written(pieces, model, group[0], folder) for group in chosen]
            answer = device.run(TimePieces(tuple(files), rounds), folder, ModelError)
            call_s, *seconds = [statistics.median(each) for each in answer["rounds_s"]]
            calls.append(call_s)
            for group, each in zip(chosen, seconds, strict=True):
                for step in group:
                    measured[step.last][step.rows.size] = max(each - call_s, 0.0)
            for file in files[1:]:
                (folder / file.graph).unlink()
        trips_s = device.run(TimeMessages(MESSAGE_BYTES, rounds), folder, ModelError)["rounds_s"]
    sides_s = np.array([statistics.median(each) / 2 for each in trips_s])
    byte_s, message_s = np.polyfit(MESSAGE_BYTES, sides_s, 1, w=1 / sides_s)  # small messages count as large ones do
    tables = tuple(by_rows(each, level.num_rows) if each else () for each, level in zip(measured, levels, strict=True))
    return MachineCosts(tables, statistics.median(calls), max(float(byte_s), 0.0), max(float(message_s), 0.0))


def _alike(pieces: Pieces, steps: Sequence[Compute]) -> list[list[Compute]]:
    """Return steps that take as long together; each group in their order."""
    groups: dict[Any, list[Compute]] = {}
    for step in steps:
        piece = pieces.of(step)
        sizes = tuple(_shape(pieces, name, rows) for name, rows in piece.reads.items())
        groups.setdefault((sizes, work_key(piece.model.graph)), []).append(step)
    return list(groups.values())


def _ranges(count: int) -> list[Range]:
    """Return the rows that are measured of a level: all, and fewer from the middle."""
    sizes = dict.fromkeys(max(1, round(share * count)) for share in SHARES)
    return [Range((count - size) // 2, (count - size) // 2 + size) for size in sizes]


def _written(pieces: Pieces, model: ModelGraph, step: Compute, folder: Path) -> TimedPiece:
    """Write the graph of a step, and return how it is timed."""
    piece = pieces.of(step)
    name = f"level-{step.last}-rows-{step.rows.size}.onnx"
    (folder / name).write_bytes(piece.model.SerializeToString())
    inputs = tuple(
        Input(each, model.tensors[each].type, _shape(pieces, each, rows)) for each, rows in piece.reads.items()
    )
    return TimedPiece(name, inputs)


def _shape(pieces: Pieces, name: str, rows: Range | None) -> tuple[int, ...]:
    tensor = pieces.tensors[name]
    if rows is None or tensor.axis is None:
        return tensor.shape
    return (*tensor.shape[: tensor.axis], rows.size, *tensor.shape[tensor.axis + 1 :])


def _link_weights(source: Any, place: Path, folder: Path) -> None:
    """Have the files that a graph reads weights from be in a folder: onnxruntime follows no link out of it."""
    for name in external_sizes(source):
        try:
            os.link((place / name).resolve(), folder / name)
        except OSError:  # a file system without hard links
            shutil.copyfile(place / name, folder / name)

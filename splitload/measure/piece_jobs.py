"""The job of a fresh process that times graphs of rows, pieces of an inference that is shared."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from splitload.base.fields import Reader
from splitload.measure.graph_jobs import graph_name
from splitload.measure.job import Input, Job, inputs_of


@dataclass(frozen=True, slots=True)
class TimedPiece:
    """A graph to time.

    Attributes:
        graph: The .onnx file.
        inputs: What it reads.
    """

    graph: str
    inputs: tuple[Input, ...]


@dataclass(frozen=True, slots=True)
class TimePieces(Job):
    """Open graphs and run them in turns, each of them once in a round.

    The answer has `rounds_s`, of each graph the seconds of each round; one that came before all is not among them.

    Attributes:
        pieces: The graphs.
        rounds: How many.
    """

    kind: ClassVar[str] = "timed"
    pieces: tuple[TimedPiece, ...]
    rounds: int

    @classmethod
    def read(cls, row: Reader) -> TimePieces:
        """Return what a message says."""
        pieces = []
        for each in row.items("pieces", 1):
            each.only(*(field.name for field in fields(TimedPiece)))
            pieces.append(TimedPiece(graph_name(each, "graph"), inputs_of(each)))
        return cls(tuple(pieces), row.count("rounds", 1))

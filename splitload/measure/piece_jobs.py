"""Jobs of fresh processes on inferences that are shared: they time graphs of rows, and messages of rows."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar

from splitload.base.errors import BundleError
from splitload.base.fields import Reader, is_count
from splitload.measure.graph_jobs import graph_name
from splitload.measure.job import Input, Job, inputs_of

REPEATS = 4  # of a run in a round
MOST_MESSAGE_BYTES, MOST_SIZES = 1 << 24, 16


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
    """Open graphs and run them in turns, each of them `REPEATS` times in a round, with nothing of it in caches.

    A processor of which a process has a share is its own for a moment and then no more: what takes no longer than that
    moment seems to take less than it does. So the processor time of runs is measured, and how much longer a round took.
    The answer has `rounds_s`, of each graph the seconds of a run, by rounds; a run that came before all is not among
    them.

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


@dataclass(frozen=True, slots=True)
class TimeMessages(Job):
    """Send messages and receive them in the same process, encrypted, over the loopback of this machine.

    The answer has `rounds_s`, of each size the seconds that one takes of both sides together, by rounds.

    Attributes:
        sizes: Bytes of messages.
        rounds: How many.
    """

    kind: ClassVar[str] = "messages"
    sizes: tuple[int, ...]
    rounds: int

    @classmethod
    def read(cls, row: Reader) -> TimeMessages:
        """Return what a message says."""
        sizes = tuple(row.sequence("sizes"))
        is_good = all(is_count(size) and 0 < size <= MOST_MESSAGE_BYTES for size in sizes)
        if not is_good or not 0 < len(sizes) <= MOST_SIZES:
            cure = f"must hold 1 to {MOST_SIZES} counts of bytes up to {MOST_MESSAGE_BYTES}"
            raise BundleError(f"{row.where}.sizes {cure}, it is {sizes!r:.80}")
        return cls(sizes, row.count("rounds", 1))


SHARING_JOBS: tuple[type[Job], ...] = (TimePieces, TimeMessages)

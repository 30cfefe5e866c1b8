"""One run of the crowd as a deterministic state machine: an engine or a simulator drives it, and tells it the time."""

from __future__ import annotations

from collections.abc import Sequence

from splitload.crowd.entities import Assignment, Measured, Outcome, Preparation, Stage, Step, Worker
from splitload.crowd.mechanisms import Mechanisms


class Pipeline:
    """Which worker does what next, of a chain of stages and any number of items.

    The engine adds workers and items, and then, after every event, calls `step` and carries out what it returns:

    >>> pipeline = Pipeline([Stage("a", 8, 8, run_s=1.0), Stage("b", 8, 8, run_s=1.0)])
    >>> pipeline.add_worker(Worker("pi"), now_s=0.0)
    >>> pipeline.add_item(0)
    >>> step = pipeline.step(now_s=0.0)         # step.assignments[0].task == Task(stage=0, item=0)
    >>> pipeline.finished(step.assignments[0], 1.0, Measured(run_s=1.0))

    A task's result carries all that later stages still read, so that a task needs the one before alone. Outputs stay
    on the worker that made them; the pipeline knows where they lie, the engine moves them. Item inputs lie at the
    client and are never lost. No method waits, and none may be called from two threads at once.
    """

    def __init__(
        self, stages: Sequence[Stage], mechanisms: Mechanisms | None = None, max_in_flight: int | None = None
    ) -> None:
        """Make a run without workers and items.

        Args:
            stages: The chain.
            mechanisms: The switches; by default all mechanisms are on.
            max_in_flight: Items that may be on their way at once, those included that are done and not yet taken;
                by default three for each worker, and no fewer than two for each stage.
        """

    def add_worker(self, worker: Worker, now_s: float) -> None:
        """Let a worker take part. One that was removed may join again."""

    def remove_worker(self, name: str, now_s: float) -> None:
        """Take a worker out that is dead or cannot be reached; an unknown name is ignored.

        What it ran, held in its queue, or had made and is still needed is placed anew. Reports of its assignments that
        still come are ignored.
        """

    def add_item(self, item: int) -> None:
        """Let an item take part; any number may wait outside the bound of items in flight.

        Args:
            item: Its place in the order of results; each number once, in rising order.
        """

    @property
    def room(self) -> int:
        """How many more items could be on their way now; an engine need not read inputs earlier."""
        return 0

    def step(self, now_s: float) -> Step:
        """Return what is to be done now."""
        return Step()

    def finished(self, assignment: Assignment, now_s: float, measured: Measured) -> bool:
        """Take the report of a task that is done; return whether it counts (False: late, doubled, or of a removed worker)."""
        return False

    def prepared(self, preparation: Preparation, now_s: float, measured: Measured) -> None:
        """Take the report of a stage that is loaded (`measured.run_s` is not read)."""

    def failed(self, assignment: Assignment, now_s: float, error: Exception) -> bool:
        """Take the report of a task whose item cannot be computed; the error is the item's outcome. Return as `finished`."""
        return False

    def lost_input(self, assignment: Assignment, now_s: float) -> None:
        """Take the report that a task's input could not be had from `input_worker`: it is made anew."""

    def delivered(self, item: int, now_s: float) -> bool:
        """Take the report that an item's last output is at the client; return whether it counts (False: doubled)."""
        return False

    def undelivered(self, item: int, now_s: float) -> None:
        """Take the report that an item's last output could not be fetched: it is made anew."""

    def take(self, ordered: bool = True) -> list[Outcome]:
        """Return the outcomes that are there and were not yet taken: in the order of items, or as they were completed."""
        return []

    @property
    def done(self) -> bool:
        """Whether every item that was added has been taken."""
        return True

    def lacking(self) -> str | None:
        """Return one line if no worker present has the memory for a stage that is still needed; otherwise None.

        The line names the stage, what it needs, and how much the best worker lacks.
        """
        return None

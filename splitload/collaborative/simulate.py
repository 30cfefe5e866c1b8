"""When a shared plan would answer: two machines at their programs, and a link with a queue in each direction."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from splitload.collaborative.costs import Costs, Link, MachineCosts
from splitload.collaborative.levels import Levels
from splitload.collaborative.program import Compute, Send, Step, programs
from splitload.collaborative.shared_plan import SharedPlan, needed
from splitload.graphs.row_pieces import Range

Where = Literal["device", "server", "up", "down"]


class Task(NamedTuple):
    """Something that takes time.

    Attributes:
        where: The machine that computes, or the direction of the link: "up" is to the server.
        level: Number of the level that is computed, or sent.
        rows: Which rows of it; the first to the last one of any tensor.
        start_s: When it begins, in seconds from the begin of the inference.
        end_s: When it ends.
    """

    where: Where
    level: int
    rows: Range
    start_s: float
    end_s: float


@dataclass
class Timeline:
    """What a simulated inference does.

    Attributes:
        tasks: Of each machine and direction in their order.
        latency_s: When the outputs are on the device, in seconds.
    """

    tasks: list[Task] = field(default_factory=list)
    latency_s: float = 0.0


def latency_s(levels: Levels, plan: SharedPlan, costs: Costs, link: Link) -> float:
    """Return the seconds that an inference by a plan takes, predicted; see `simulate`."""
    return simulate(levels, plan, costs, link).latency_s


def simulate(levels: Levels, plan: SharedPlan, costs: Costs, link: Link) -> Timeline:
    """Return what an inference by a plan does, and when.

    A machine takes one step after the other. A message leaves when its sender comes to it and those before it have
    left; while it travels both go on, except for what carrying its bytes takes of their processors.
    """
    timeline = Timeline()
    both = programs(levels, plan)
    up: deque[float] = deque()  # when messages are there
    down: deque[float] = deque()
    device = _Machine("device", both.device, levels, costs.device, link, timeline, up, down)
    server = _Machine("server", both.server, levels, costs.server, link, timeline, down, up)
    device_runs, server_runs = iter(device), iter(server)
    while next(device_runs, None):  # it waits for a message that has not been sent yet
        if next(server_runs, None) is None and not down:
            raise AssertionError("the programs wait for each other")
    timeline.latency_s = device.clock_s
    return timeline


class _Machine:
    """One machine; iterating over it lets it go on until it waits for what has not been sent."""

    def __init__(
        self,
        where: Literal["device", "server"],
        steps: tuple[Step, ...],
        levels: Levels,
        costs: MachineCosts,
        link: Link,
        timeline: Timeline,
        sent: deque[float],
        comes: deque[float],
    ) -> None:
        self._where, self._steps, self._levels, self._costs, self._link = where, steps, levels, costs, link
        self._timeline, self._sent, self._comes = timeline, sent, comes
        self._line: Where = "up" if where == "device" else "down"
        self._line_free_s = 0.0
        self.clock_s = 0.0

    def __iter__(self) -> Iterator[bool]:
        for step in self._steps:
            if isinstance(step, Compute):
                start_s = self.clock_s
                self.clock_s += self._costs.segment_s(computed(self._levels, step))
                self._timeline.tasks.append(Task(self._where, step.last, step.rows, start_s, self.clock_s))
                continue
            size = self._levels.bytes_of(step.level, step.rows)
            if isinstance(step, Send):
                start_s = max(self._line_free_s, self.clock_s)
                self._line_free_s = start_s + size / self._link.bytes_per_s
                rows = Range(min(each.start for each in step.rows if each.size), max(each.stop for each in step.rows))
                self._timeline.tasks.append(Task(self._line, step.level, rows, start_s, self._line_free_s))
                self._sent.append(self._line_free_s + self._link.latency_s)
            else:
                while not self._comes:
                    yield True
                self.clock_s = max(self.clock_s, self._comes.popleft())
            self.clock_s += self._costs.carries_s(size)


def computed(levels: Levels, step: Compute) -> list[tuple[int, Range]]:
    """Return which rows of which levels a step computes, from the last one back."""
    found, rows = [], step.rows
    for level in range(step.last, step.first, -1):
        found.append((level, rows))
        rows = needed(levels, level - 1, level, rows)
    return found

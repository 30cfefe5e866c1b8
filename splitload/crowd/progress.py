"""How far every item of a run is: what is ready, where outputs lie, what is through."""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from dataclasses import dataclass, field

from splitload.crowd.entities import Outcome, Task


@dataclass
class Item:
    """One item that is on its way.

    Attributes:
        number: Its place in the order of results.
        stage: The stage it needs next; the number of stages once only its delivery is missing.
        ready: Whether that stage waits for a worker.
        attempts: Assignments of that stage that are with workers, by number, and which workers.
        made: For each stage whose output is kept, the worker that holds it.
    """

    number: int
    stage: int = 0
    ready: bool = False
    attempts: dict[int, str] = field(default_factory=dict)
    made: dict[int, str] = field(default_factory=dict)


class Progress:
    """All items of a run.

    Of each item the two latest outputs are kept: the one that is needed next, and the one it was made from, so that
    the loss of a worker costs the task it made and not the whole chain.

    Attributes:
        ready: For each stage how many tasks wait for a worker.
        here: For each stage how many items need it next.
        items: Those on their way, by number.
    """

    def __init__(self, num_stages: int) -> None:
        """Begin without items."""
        self._num_stages = num_stages
        self.ready = [0] * num_stages
        self.here = [0] * (num_stages + 1)
        self.items: dict[int, Item] = {}
        self._queues: list[list[int]] = [[] for _ in range(num_stages)]
        self._outside: deque[int] = deque()
        self._order: deque[int] = deque()  # from the first that is not yet taken
        self._taken: set[int] = set()  # those behind it that are
        self._completed: dict[int, Exception | None] = {}  # in the order of completion
        self._last = -1

    def add(self, number: int) -> None:
        """Take in an item, outside the bound at first."""
        if number <= self._last:
            raise ValueError(f"item {number} came after item {self._last}: items are added once, in rising order")
        self._last = number
        self._outside.append(number)
        self._order.append(number)

    @property
    def in_flight(self) -> int:
        """Return how many items are on their way or wait to be taken."""
        return len(self.items) + len(self._completed)

    @property
    def num_outside(self) -> int:
        """Return how many items wait outside the bound."""
        return len(self._outside)

    @property
    def is_empty(self) -> bool:
        """Return whether every item was taken."""
        return not self._order

    def to_come(self, stage: int) -> int:
        """Return how many items have not come as far as the stage."""
        return len(self._outside) + sum(self.here[:stage])

    def needed(self) -> tuple[bool, ...]:
        """Return for each stage whether an item is yet to leave it."""
        sums = itertools.accumulate(self.here[:-1], initial=len(self._outside))
        return tuple(number > 0 for number in itertools.islice(sums, 1, None))

    def admit(self, max_in_flight: float) -> None:
        """Send items on their way as far as the bound allows."""
        while self._outside and self.in_flight < max_in_flight:
            item = Item(self._outside.popleft())
            self.items[item.number] = item
            self.here[0] += 1
            self.queue(item)

    def oldest(self, stage: int) -> Item:
        """Return the first item that waits for a worker at a stage where there is one."""
        queue = self._queues[stage]
        while True:
            item = self.items.get(queue[0])
            if item is not None and item.ready and item.stage == stage:
                return item
            heapq.heappop(queue)

    def queue(self, item: Item) -> None:
        """Let an item wait for a worker at its stage."""
        if not item.ready:
            item.ready = True
            self.ready[item.stage] += 1
            heapq.heappush(self._queues[item.stage], item.number)

    def unqueue(self, item: Item) -> None:
        """Take an item out of its queue."""
        if item.ready:
            item.ready = False
            self.ready[item.stage] -= 1

    def advance(self, item: Item, worker: str) -> list[tuple[Task, str]]:
        """Note that an item's stage is done on a worker; return the outputs that are not needed any more, and where."""
        self.unqueue(item)
        item.made[item.stage] = worker
        dropped = item.stage - 2
        self._move(item, item.stage + 1)
        if item.stage < self._num_stages:
            self.queue(item)
        place = item.made.pop(dropped, None)
        return [] if place is None else [(Task(dropped, item.number), place)]

    def rewind(self, item: Item) -> None:
        """Let an item go on from the latest stage whose input is there."""
        self.unqueue(item)
        stage = min(item.stage, self._num_stages - 1) if self._num_stages - 1 not in item.made else item.stage
        while 0 < stage < self._num_stages and stage - 1 not in item.made:
            stage -= 1
        self._move(item, stage)
        if stage < self._num_stages:
            self.queue(item)

    def complete(self, item: Item, error: Exception | None) -> list[tuple[Task, str]]:
        """Note that an item is through; return the outputs that were kept, and where."""
        self.unqueue(item)
        self.here[item.stage] -= 1
        del self.items[item.number]
        self._completed[item.number] = error
        return [(Task(stage, item.number), worker) for stage, worker in item.made.items()]

    def take(self, ordered: bool) -> list[Outcome]:
        """Return the outcomes that are there and were not yet taken."""
        taken: list[Outcome] = []
        if ordered:
            while self._order and self._order[0] in self._completed:
                number = self._order.popleft()
                taken.append(Outcome(number, self._completed.pop(number)))
                self._pass_taken()
        else:
            taken = [Outcome(number, error) for number, error in self._completed.items()]
            self._taken.update(self._completed)
            self._completed.clear()
            self._pass_taken()
        return taken

    def _pass_taken(self) -> None:
        while self._order and self._order[0] in self._taken:
            self._taken.remove(self._order.popleft())

    def _move(self, item: Item, stage: int) -> None:
        self.here[item.stage] -= 1
        self.here[stage] += 1
        item.stage = stage

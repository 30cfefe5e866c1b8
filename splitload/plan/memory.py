"""What each stage of a model needs of memory while it runs.

While a stage runs, three things are in memory: the weights that it reads, the working memory of the run, and the
sessions of all stages. Weights of other stages may be there as long as there is room. Working memory is tensors of the
stage and those that wait for later ones; the runtime's arena holds it, and keeps the most that any stage has taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from splitload.plan.graph import LOOKUPS, ModelGraph, Node
from splitload.plan.partition import Partition

PAGE_BYTES = 4096
AROUND_BYTES = 64 << 10
"""What Linux maps around the first page that is read of a file (`fault_around_bytes`)."""

SESSION_BYTES, NODE_BYTES = 96 << 10, 6 << 10
"""What a session takes, and each of its nodes besides.

Measured: the growth of RssAnon in /proc/self/status when onnxruntime 1.32.0's C library has opened the stages of a
bundle, mapped and not prepacked, in a process that had opened another one. MobileNet-V1 (31 nodes) in 1, 4 and 16
stages took 274, 422 and 1,495 kB, DistilBERT (219 nodes) in 1, 8 and 32 stages 1,192, 1,683 and 4,002 kB: 81 to 91 kB a
session and 5 to 6 kB a node.
"""

_INDEX_BYTES = {"tensor(int32)": 4, "tensor(int64)": 8}
Sizes = tuple[tuple[int, ...], ...]


class StageNeeds(NamedTuple):
    """What one stage needs, in bytes; a bundle's manifest has the same four.

    Attributes:
        mapped_bytes: Weights that a run of it reads: shared ones too, of tables the rows that are looked up.
        working_bytes: The most that its tensors take at a time. What it reads is there during the whole run, and what
            it makes from then on.
        passing_bytes: Tensors that are there before it and that it does not read, until the last stage that reads them;
            inputs and outputs of the model, which are the caller's, to the end.
        session_bytes: Its session.
    """

    mapped_bytes: int
    working_bytes: int
    passing_bytes: int
    session_bytes: int

    @property
    def weights_bytes(self) -> int:
        """The pages that its weights lie on, which begin and end amid one."""
        return self.mapped_bytes + 2 * PAGE_BYTES

    @property
    def live_bytes(self) -> int:
        """The tensors that are there at a time while it runs."""
        return self.working_bytes + self.passing_bytes


@dataclass(frozen=True, slots=True)
class MemoryNeeds:
    """What every segment of a model would need as a stage.

    Tables are of N + 1 rows of N + 1 whole numbers: entry `[s][e]` is of the blocks `[s, e)`, and 0 where `s >= e`.

    Attributes:
        mapped_bytes: See `StageNeeds`.
        working_bytes: See `StageNeeds`.
        passing_bytes: See `StageNeeds`.
        nodes: Number of nodes of each block.
    """

    mapped_bytes: Sizes
    working_bytes: Sizes
    passing_bytes: Sizes
    nodes: tuple[int, ...]

    @property
    def num_blocks(self) -> int:
        """Number of blocks N."""
        return len(self.nodes)

    def stage(self, start: int, end: int) -> StageNeeds:
        """Return what the blocks `[start, end)` need as a stage."""
        return StageNeeds(
            self.mapped_bytes[start][end],
            self.working_bytes[start][end],
            self.passing_bytes[start][end],
            SESSION_BYTES + NODE_BYTES * sum(self.nodes[start:end]),
        )

    def sessions_bytes(self, num_stages: int) -> int:
        """Return what the sessions of a plan of so many stages take; all of them stay."""
        return sessions_bytes(num_stages, sum(self.nodes))

    def live_bytes(self, partition: Partition) -> int:
        """Return the most tensors that are there at a time while a plan runs."""
        return max(self.stage(*stage).live_bytes for stage in partition.stages())

    @property
    def most_live_bytes(self) -> int:
        """The most tensors that are there at a time, whatever the plan."""
        tables = zip(self.working_bytes, self.passing_bytes, strict=True)
        return max(sum(each) for rows in tables for each in zip(*rows, strict=True))


def sessions_bytes(num_stages: int, num_nodes: int) -> int:
    """Return what the sessions of so many stages with so many nodes in all take, see `SESSION_BYTES`."""
    return SESSION_BYTES * num_stages + NODE_BYTES * num_nodes


def peak_bytes(stages: Sequence[StageNeeds], arena_bytes: int) -> int:
    """Return the most that stages have in memory at a time if nothing stays that need not: the least ceiling for them.

    It is `max over stages of weights + arena + sum over stages of session`.

    Args:
        stages: Of a plan.
        arena_bytes: The working memory of a run.
    """
    return max(stage.weights_bytes for stage in stages) + arena_bytes + sum(stage.session_bytes for stage in stages)


def memory_needs(graph: ModelGraph) -> MemoryNeeds:
    """Return what the segments of a graph would need; tensors are of the sizes that a run showed, of unknown size 0.

    With the nodes in order, a tensor is there from the node that makes it to the last one that reads it. The stage of
    the blocks `[s, e)` then needs

    - working + passing = what is there before its first node + the most, over its nodes n, of what the nodes from its
      first to n have made and a node from n on reads. What is there before stays, as onnxruntime holds what it is
      given until the run is over;
    - mapped = the weights that its nodes read, each counted once. Of a table of which single rows are looked up counts
      what is read, with `AROUND_BYTES` for each row, and no more than the whole.
    """
    bounds = [*(block.start for block in graph.blocks), len(graph.nodes)]
    lives = _Lives.of(graph)
    tables: tuple[list[tuple[int, ...]], ...] = ([], [], [])
    for number, first in enumerate(bounds[:-1]):
        rows: tuple[list[int], ...] = tuple([0] * (number + 1) for _ in tables)
        weights, tensors = _Weights(graph), _Tensors(lives, first)
        for start, end in pairwise(bounds[number:]):
            for position in range(start, end):
                weights.add(graph.nodes[position])
                tensors.add(graph.nodes[position], position)
            for row, each in zip(
                rows, (weights.mapped_bytes, tensors.working_bytes, tensors.passing_bytes), strict=True
            ):
                row.append(each)
        for table, row in zip(tables, rows, strict=True):
            table.append(tuple(row))
    mapped, working, passing = ((*table, (0,) * len(bounds)) for table in tables)
    return MemoryNeeds(mapped, working, passing, tuple(end - start for start, end in pairwise(bounds)))


class _Lives(NamedTuple):
    """From when to when each tensor is there, by name: the positions of nodes, and its bytes.

    Attributes:
        size_bytes: Of each tensor.
        made: Where it is made; -1 for inputs of the model.
        last: Where it is read for the last time; behind all nodes for inputs and outputs of the model.
    """

    size_bytes: dict[str, int]
    made: dict[str, int]
    last: dict[str, int]

    @classmethod
    def of(cls, graph: ModelGraph) -> _Lives:
        made, last = dict.fromkeys(graph.inputs, -1), dict[str, int]()
        for position, node in enumerate(graph.nodes):
            made.update(dict.fromkeys(node.outputs, position))
            last.update(dict.fromkeys((*node.outputs, *node.inputs), position))
        last.update(dict.fromkeys((*graph.inputs, *graph.outputs), len(graph.nodes)))
        return cls({name: graph.tensors[name].nbytes or 0 for name in made}, made, last)


class _Tensors:
    """The tensors of a stage that begins at a node and grows node by node."""

    def __init__(self, lives: _Lives, first: int) -> None:
        self._lives, self._first = lives, first
        before = (name for name, made in lives.made.items() if made < first <= lives.last[name])
        self._waiting = {name: lives.size_bytes[name] for name in before}  # and is not read, so far
        self.passing_bytes = sum(self._waiting.values())
        self._given_bytes = self._made_bytes = self._most_bytes = 0

    @property
    def working_bytes(self) -> int:
        return self._given_bytes + self._most_bytes

    def add(self, node: Node, position: int) -> None:
        size_bytes, made, last = self._lives
        for name in node.inputs:
            read_bytes = self._waiting.pop(name, 0)
            self._given_bytes += read_bytes
            self.passing_bytes -= read_bytes
        self._made_bytes += sum(size_bytes[name] for name in node.outputs)
        self._most_bytes = max(self._most_bytes, self._made_bytes)
        done = (name for name in {*node.inputs, *node.outputs} if last[name] == position and made[name] >= self._first)
        self._made_bytes -= sum(size_bytes[name] for name in done)


class _Weights:
    """The weights of a stage that grows node by node."""

    def __init__(self, graph: ModelGraph) -> None:
        self._graph = graph
        self._whole: dict[str, int] = {}
        self._looked_up: dict[str, int] = {}

    @property
    def mapped_bytes(self) -> int:
        rows = (
            min(read_bytes, self._graph.weights_bytes[name])
            for name, read_bytes in self._looked_up.items()
            if name not in self._whole
        )
        return sum(self._whole.values()) + sum(rows)

    def add(self, node: Node) -> None:
        read_bytes = _looked_up_bytes(node, self._graph)
        for name in node.weights:
            if read_bytes is None:
                self._whole[name] = self._graph.weights_bytes[name]
            else:
                self._looked_up[name] = self._looked_up.get(name, 0) + read_bytes


def _looked_up_bytes(node: Node, graph: ModelGraph) -> int | None:
    """Return what a node reads of a table of which it looks up single rows; None where it reads its weights whole."""
    if node.op_type not in LOOKUPS or len(node.inputs) != 1 or len(node.weights) != 1:
        return None
    rows, made = graph.tensors[node.inputs[0]], graph.tensors[node.outputs[0]]
    if rows.nbytes is None or made.nbytes is None or rows.type not in _INDEX_BYTES:
        return None
    return made.nbytes + rows.nbytes // _INDEX_BYTES[rows.type] * AROUND_BYTES

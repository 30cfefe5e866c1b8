"""A model as the search sees it: nodes in topological order, where it may be cut, and the blocks between cuts.

Nothing here knows a file format: frontends fill it in. Positions count nodes: the cut at position c lies between
nodes c-1 and c.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Literal

GraphKind = Literal["native", "portable"]
DEFAULT_MAX_BLOCKS = 64
LOOKUPS = frozenset({"Gather", "GatherND", "GatherElements"})  # operators that read rows of a table


@dataclass(frozen=True, slots=True)
class Tensor:
    """A value that nodes exchange.

    Attributes:
        name: Unique in the graph.
        type: onnxruntime's word for it, for example "tensor(float)".
        shape: One entry a dimension, a name or None where it is not fixed; None where even the rank is unknown.
        nbytes: Size in bytes as seen in a run on the example inputs, or None where it is not known.
    """

    name: str
    type: str
    shape: tuple[int | str | None, ...] | None
    nbytes: int | None

    @property
    def can_cross(self) -> bool:
        """Whether it can be handed from one stage to the next: only plain tensors can."""
        return self.type.startswith("tensor(")


@dataclass(frozen=True, slots=True)
class Node:
    """One operation.

    Attributes:
        name: For people; may be empty.
        op_type: For people.
        inputs: Names of the tensors it reads, captured by its bodies included, weights left out.
        outputs: Names of the tensors it writes.
        weights: Names of the weights it reads.
        flops: Estimated floating-point operations of one inference.
    """

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: tuple[str, ...]
    flops: int


@dataclass(frozen=True, slots=True)
class CutPoint:
    """A place in the topological order where the graph may be cut.

    Attributes:
        position: Number of nodes before it.
        boundary: Names of the tensors that cross it, in the order they are made.
        boundary_bytes: Their size; a tensor of unknown size counts as 0.
    """

    position: int
    boundary: tuple[str, ...]
    boundary_bytes: int


@dataclass(frozen=True, slots=True)
class Block:
    """A run of nodes between two chosen cut points, the smallest unit that may move between stages.

    Its `weights_bytes` are those of the weights that no block before it reads.
    """

    name: str
    start: int
    end: int
    weights_bytes: int
    flops: int


@dataclass(frozen=True)
class ModelGraph:
    """A model that can be cut.

    Attributes:
        name: Name of the model, for people.
        source_sha256: Hash of the file it came from.
        source_bytes: Size of that file and its external data.
        kind: "native" (optimised for this CPU and runtime version) or "portable" (standard operators only).
        path: The optimised graph file that stages are cut from.
        nodes: In topological order; nodes that only prepare constants are left out (each stage repeats its own).
        tensors: Every value a node reads or writes, by name.
        inputs: Names of the model's inputs.
        outputs: Names of the model's outputs.
        weights_bytes: Size of each weight, by name.
        max_blocks: The most blocks it is divided into.
        tail_start: Position of the first node of the trainable tail, which is the last block; None where there is none.
        trainable: Names of the weights that are trained, all read by the tail.
        max_weight_bytes: The most bytes of weights in a block that could be divided further, though there be more than
            `max_blocks` then; None for any.
    """

    name: str
    source_sha256: str
    source_bytes: int
    kind: GraphKind
    path: Path
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights_bytes: Mapping[str, int]
    max_blocks: int = DEFAULT_MAX_BLOCKS
    tail_start: int | None = None
    trainable: tuple[str, ...] = ()
    max_weight_bytes: int | None = None

    @cached_property
    def cut_points(self) -> tuple[CutPoint, ...]:
        """Every legal cut point, over the whole topological order.

        A tensor crosses the cut at c if a node before c makes it and a node from c on reads it. Model inputs do not
        count: every stage gets them from the caller. A cut that something other than a plain tensor would cross
        is not legal, nor one that parts an operator from what quantises its outputs or dequantises its inputs: the
        runtime computes such a group as one, and apart it answers otherwise. Signed bytes are part of two such groups,
        where it takes unsigned ones in their place.
        """
        last_use: dict[str, int] = {}
        grouped: set[str] = set()  # tensors within what is computed as one
        for index, node in enumerate(self.nodes):
            last_use.update(dict.fromkeys(node.inputs, index))
            if node.op_type == "QuantizeLinear":
                grouped.update(node.inputs[:1])
                grouped.update(name for name in node.outputs if self.tensors[name].type == "tensor(int8)")
            elif node.op_type == "DequantizeLinear":
                grouped.update(node.outputs)
        live: dict[str, None] = {}
        cuts = []
        for position, node in enumerate(self.nodes[:-1], start=1):
            live.update((name, None) for name in node.outputs if last_use.get(name, -1) >= position)
            for name in node.inputs:
                if last_use[name] < position:
                    live.pop(name, None)
            crossing = [self.tensors[name] for name in live]
            if grouped.isdisjoint(live) and all(tensor.can_cross for tensor in crossing):
                cuts.append(CutPoint(position, tuple(live), sum(tensor.nbytes or 0 for tensor in crossing)))
        return tuple(cuts)

    @property
    def first_trainable(self) -> int | None:
        """Index of the block that is trained, which is the last one; None where none is."""
        return None if self.tail_start is None else len(self.blocks) - 1

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The model divided at its best cut points into at most `max_blocks` blocks; two if there is a tail.

        There are more where a block would hold more than `max_weight_bytes` and could be divided.
        """
        if self.tail_start is None:
            cuts = self._chosen(self.cut_points, self.max_blocks, len(self.nodes))
            bounds = [0, *(cut.position for cut in cuts), len(self.nodes)]
        else:
            body = [cut for cut in self.cut_points if cut.position < self.tail_start]
            cuts = self._chosen(body, max(self.max_blocks - 1, 1), self.tail_start)
            bounds = [0, *(cut.position for cut in cuts), self.tail_start, len(self.nodes)]
        return tuple(
            Block(
                self.segment_name(start, end),
                start,
                end,
                self.segment_weights_bytes(start, end),
                sum(node.flops for node in self.nodes[start:end]),
            )
            for start, end in pairwise(bounds)
        )

    def _chosen(self, cuts: Sequence[CutPoint], max_blocks: int, end: int) -> list[CutPoint]:
        """Return the cuts of nodes `[0, end)` into blocks, chosen out of `cuts`."""
        required: list[CutPoint] = []
        if self.max_weight_bytes is not None:
            own = [0] * len(self.nodes)
            for name, first in self.first_use.items():
                own[first] += self.weights_bytes[name]
            required = needed_cuts(cuts, [0, *accumulate(own)], end, self.max_weight_bytes)
        return choose_cuts(cuts, self.cumulative_cost(), max_blocks, required)

    def input_tensors(self) -> list[Tensor]:
        """Return the model's inputs as tensors."""
        return [self.tensors[name] for name in self.inputs]

    def output_tensors(self) -> list[Tensor]:
        """Return the model's outputs as tensors."""
        return [self.tensors[name] for name in self.outputs]

    def node_range(self, start: int, end: int) -> tuple[int, int]:
        """Return the half-open node range of the blocks `[start, end)`."""
        return self.blocks[start].start, self.blocks[end - 1].end

    def segment_weights_bytes(self, start: int, end: int) -> int:
        """Return the bytes of the weights that nodes `[start, end)` are the first to read.

        A weight that several stages read is loaded, stored and mapped with the first of them, so that the segments of
        any cut add up to the whole model.
        """
        return sum(self.weights_bytes[name] for name, first in self.first_use.items() if start <= first < end)

    @cached_property
    def first_use(self) -> Mapping[str, int]:
        """Position of the first node that reads each weight, by the weight's name."""
        first: dict[str, int] = {}
        for index, node in enumerate(self.nodes):
            for name in node.weights:
                first.setdefault(name, index)
        return first

    def largest_weight(self) -> tuple[str, Node, int] | None:
        """Return the largest weight that a node reads as a whole, the node and the bytes; None where there is none.

        No ceiling on memory can be lower. Of the tables of lookups only rows are read.
        """
        read = [(name, node) for node in self.nodes if node.op_type not in LOOKUPS for name in node.weights]
        if not read:
            return None
        name, node = max(read, key=lambda each: self.weights_bytes[each[0]])
        return name, node, self.weights_bytes[name]

    def boundary(self, position: int) -> tuple[str, ...]:
        """Return the names of the tensors that cross the cut at `position` (none at either end)."""
        return self._boundaries.get(position, ())

    @cached_property
    def _boundaries(self) -> dict[int, tuple[str, ...]]:
        return {cut.position: cut.boundary for cut in self.cut_points}

    def cumulative_cost(self) -> list[float]:
        """Return the share of loading work before each position: half by weight bytes, half by nodes."""
        total_bytes = sum(self.weights_bytes.values()) or 1
        seen: set[str] = set()
        costs = []
        for node in self.nodes:
            new = [name for name in node.weights if name not in seen]
            seen.update(new)
            own = sum(self.weights_bytes[name] for name in new)
            costs.append(0.5 * own / total_bytes + 0.5 / len(self.nodes))
        return [0.0, *accumulate(costs)]

    def segment_name(self, start: int, end: int) -> str:
        """Return the first and last of the nodes `[start, end)` as one name, for people."""
        first, last = (
            node.name.rpartition("/")[0] or node.name or node.op_type
            for node in (self.nodes[start], self.nodes[end - 1])
        )
        return first if first == last else f"{first} … {last}"


def needed_cuts(
    cuts: Sequence[CutPoint], weights_before: Sequence[int], end: int, max_weight_bytes: int
) -> list[CutPoint]:
    """Return cuts between which there are at most so many bytes of weights, or no other cut.

    The parts are at least half as large as they may be, where there are cuts for that, and of such cuts that with the
    smallest boundary is taken.

    Args:
        cuts: Legal cut points in order of position.
        weights_before: Bytes of weights before each position, non-decreasing.
        end: Position behind the last node.
        max_weight_bytes: The most bytes between two cuts.
    """
    chosen: list[CutPoint] = []
    start = next_cut = 0
    while weights_before[end] - weights_before[start] > max_weight_bytes and next_cut < len(cuts):
        last = next_cut
        least, most = (weights_before[start] + share for share in (max_weight_bytes / 2, max_weight_bytes))
        while last + 1 < len(cuts) and weights_before[cuts[last + 1].position] <= most:
            last += 1
        fitting = [at for at in range(next_cut, last) if weights_before[cuts[at].position] >= least]
        taken = min([last, *reversed(fitting)], key=lambda at: cuts[at].boundary_bytes)
        chosen.append(cuts[taken])
        start, next_cut = cuts[taken].position, taken + 1
    return chosen


def choose_cuts(
    cuts: Sequence[CutPoint],
    cumulative_cost: Sequence[float],
    max_blocks: int,
    required: Sequence[CutPoint] = (),
) -> list[CutPoint]:
    """Choose at most `max_blocks - 1` cuts, spread over the cost and each the best of its neighbourhood.

    Cuts are taken from the smallest boundary up; one is passed over only when a taken cut, which by that order has a
    boundary no larger, lies within a distance d in cost. d is the smallest (by bisection) that leaves few enough, so a
    cut is never dropped for a worse one.

    Args:
        cuts: Legal cut points in order of position.
        cumulative_cost: Share of cost before each position, non-decreasing.
        max_blocks: The most blocks wanted, at least 1; `required` may make more.
        required: Cuts that are taken first.
    """
    max_blocks = max(max_blocks, len(required) + 1)
    if len(cuts) < max_blocks:
        return list(cuts)
    first = [(cumulative_cost[cut.position], cut.position) for cut in required]
    held = {cut.position for cut in required}
    others = [cut for cut in cuts if cut.position not in held]
    ranked = sorted(others, key=lambda cut: (cut.boundary_bytes, len(cut.boundary), cut.position))

    def spread(distance: float) -> list[int]:
        taken: list[tuple[float, int]] = [(-math.inf, -1), *first, (math.inf, -1)]
        for cut in ranked:
            cost = cumulative_cost[cut.position]
            at = bisect.bisect(taken, (cost, cut.position))
            if taken[at][0] - cost > distance and cost - taken[at - 1][0] > distance:
                taken.insert(at, (cost, cut.position))
        return [position for _, position in taken[1:-1]]

    low, high, best = 0.0, cumulative_cost[-1] + 1.0, spread(cumulative_cost[-1] + 1.0)
    for _ in range(40):
        middle = (low + high) / 2
        positions = spread(middle)
        if len(positions) < max_blocks:
            high, best = middle, positions
        else:
            low = middle
    chosen = set(best[: max_blocks - 1])
    return [cut for cut in cuts if cut.position in chosen]


def used_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return `names` without empties and repeats, in order."""
    return tuple(dict.fromkeys(name for name in names if name))

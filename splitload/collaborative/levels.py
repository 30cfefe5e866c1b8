"""The places in a model where a device and a server may exchange rows, and which rows each needs of the place before.

A level is a cut of the graph whose tensors all have as many rows, so that "the first k rows" means the same of each.
Level 0 is the model's inputs, the last one its outputs; between two neighbours lies a unit of operators.

A machine is sent no more rows of each tensor than it needs. In a residual block, for instance, a convolution needs rows
beside its own of a narrow tensor, and of the wide one that passes it by none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from splitload.graphs.row_graph import RowGraph
from splitload.graphs.row_pieces import Range, plan_piece
from splitload.plan.graph import ModelGraph, choose_cuts

MOST_LEVELS = 64


@dataclass(frozen=True)
class Level:
    """A place where rows may be exchanged.

    Attributes:
        position: Nodes before it.
        tensors: Names of the tensors that cross it.
        num_rows: Rows of each; 1 where they are there as a whole or not at all.
        row_bytes: Of one row of all of them.
        is_whole: Whether they are there as a whole or not at all.
    """

    position: int
    tensors: tuple[str, ...]
    num_rows: int
    row_bytes: int
    is_whole: bool = False


@dataclass(frozen=True)
class Strand:
    """Tensors of a level of which the level behind needs the same rows.

    Attributes:
        tensors: Their names.
        row_bytes: Of one row of all of them.
        starts: For each k: at which row begins what the rows from k on of the level behind need.
        stops: For each k: behind which row lies all that its rows `[0, k)` need.
    """

    tensors: tuple[str, ...]
    row_bytes: int
    starts: tuple[int, ...]
    stops: tuple[int, ...]

    def needs(self, rows: Range) -> Range:
        """Return the rows that rows of the level behind need; none where there are none."""
        found = Range(self.starts[rows.start], self.stops[rows.stop])
        return found if rows.size > 0 and found.size > 0 else Range(0, 0)


@dataclass(frozen=True)
class Levels:
    """The levels of a model.

    Attributes:
        graph: The model as operators on rows.
        levels: In order; level 0 has the inputs, the last one the outputs.
        row_bytes: Of one row of each tensor there, by name.
    """

    graph: RowGraph
    levels: tuple[Level, ...]

    row_bytes: Mapping[str, int]

    @classmethod
    def of(cls, model: ModelGraph, graph: RowGraph, most: int = MOST_LEVELS) -> Levels:
        """Return the levels of a model, spread over what it computes.

        Least is exchanged before operators that need rows beside their own, and of such places where they read narrow
        rows. Besides there are places with little of all, for cuts between layers. Where no place has rows, tensors are
        there as a whole or not at all: two machines can take turns there.

        Args:
            model: It.
            graph: The same as operators on rows.
            most: The most levels before operators that need rows beside their own, and half as many others.
        """
        cuts = []
        for cut in model.cut_points:
            level = _level(model, graph, cut.position, cut.boundary)
            if level is not None and level.num_rows > 1:
                cuts.append(cut)
        done = [0.0]
        for node in model.nodes:
            done.append(done[-1] + node.flops)
        share = [each / (done[-1] or 1.0) for each in done]
        beside = [(cut, _beside_bytes(model, graph, cut.position)) for cut in cuts]
        narrow = [replace(cut, boundary_bytes=size) for cut, size in beside if size]
        places = cuts or list(model.cut_points)
        taken = [*choose_cuts(narrow, share, most + 1), *choose_cuts(places, share, most // 2 + 1)]
        positions = {cut.position for cut in taken}
        chosen = [
            _level(model, graph, cut.position, cut.boundary) or _whole(model, cut.position, cut.boundary)
            for cut in places
            if cut.position in positions
        ]
        first = _level(model, graph, 0, model.inputs) or _whole(model, 0, model.inputs)
        last = _level(model, graph, len(model.nodes), model.outputs) or _whole(model, len(model.nodes), model.outputs)
        levels = (first, *chosen, last)
        sizes = {name: (model.tensors[name].nbytes or 0) // each.num_rows for each in levels for name in each.tensors}
        return cls(graph, levels, sizes)

    @property
    def num_units(self) -> int:
        """How many units of operators lie between levels."""
        return len(self.levels) - 1

    def nodes(self, first: int, last: int) -> range:
        """Return the positions of the nodes between two levels."""
        return range(self.levels[first].position, self.levels[last].position)

    def wanted(self, level: int, rows: Range) -> dict[str, Range | None]:
        """Return rows of a level by the names of its tensors."""
        return dict.fromkeys(self.levels[level].tensors, None if self.levels[level].is_whole else rows)

    def parts(self, level: int, rows: Sequence[Range]) -> dict[str, Range | None]:
        """Return rows of the strands of a level by the names of tensors; those without are left out."""
        return {
            name: None if self.levels[level].is_whole else each
            for strand, each in zip(self.strands[level], rows, strict=True)
            for name in strand.tensors
            if each.size
        }

    def bytes_of(self, level: int, rows: Sequence[Range]) -> int:
        """Return the bytes that rows of the strands of a level have."""
        return sum(strand.row_bytes * each.size for strand, each in zip(self.strands[level], rows, strict=True))

    @cached_property
    def strands(self) -> tuple[tuple[Strand, ...], ...]:
        """The strands of each level; behind the outputs lies nothing, and all of their rows are needed."""
        last = self.levels[-1]
        own = tuple(range(last.num_rows + 1))
        end = (Strand(last.tensors, last.row_bytes, own, own),)
        return (*(self._strands(level) for level in range(self.num_units)), end)

    @cached_property
    def stops(self) -> tuple[tuple[int, ...], ...]:
        """For each level but 0 and each k: behind which row of the level before lies all that rows `[0, k)` need."""
        needs = ([strand.stops for strand in strands] for strands in self.strands[:-1])
        return ((), *(tuple(map(max, zip(*each, strict=True))) for each in needs))

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """For each level but 0 and each k: at which row of the level before begins what the rows from k on need."""
        needs = ([strand.starts for strand in strands] for strands in self.strands[:-1])
        return ((), *(tuple(map(min, zip(*each, strict=True))) for each in needs))

    def _strands(self, level: int) -> tuple[Strand, ...]:
        here, count = self.levels[level], self.levels[level + 1].num_rows
        starts: dict[str, list[int]] = {name: [] for name in here.tensors}
        stops: dict[str, list[int]] = {name: [] for name in here.tensors}
        for row in range(count + 1):
            first, last = self._needed(level, Range(0, row)), self._needed(level, Range(row, count))
            for name in here.tensors:
                starts[name].append(last[name].start if name in last else here.num_rows)
                stops[name].append(first[name].stop if name in first else 0)
        alike: dict[tuple[tuple[int, ...], tuple[int, ...]], list[str]] = {}
        for name in here.tensors:
            alike.setdefault((tuple(starts[name]), tuple(stops[name])), []).append(name)
        return tuple(
            Strand(tuple(names), sum(self.row_bytes[name] for name in names), *edges) for edges, names in alike.items()
        )

    def _needed(self, level: int, rows: Range) -> dict[str, Range]:
        """Return the rows of tensors of a level that rows of the level behind need."""
        if rows.size == 0:
            return {}
        here = self.levels[level]
        piece = plan_piece(self.graph, self.nodes(level, level + 1), self.wanted(level + 1, rows))
        every = Range(0, here.num_rows)
        return {
            name: every if each is None or here.is_whole else each
            for name, each in piece.needed.items()
            if name in here.tensors
        }


def _beside_bytes(model: ModelGraph, graph: RowGraph, position: int) -> int:
    """Return the bytes of what a node reads beside the rows that it gives; 0 where it needs no such rows."""
    node, found = graph.nodes[position], 0
    for place, need in node.rows.needs.items() if node.rows else ():
        name, window = node.proto.input[place], need.window
        if name in graph.axes:
            first, last = window.rows(0, window.per)
            found += max(last - first - window.step, 0) * ((model.tensors[name].nbytes or 0) // graph.size(name))
    return found


def _level(model: ModelGraph, graph: RowGraph, position: int, names: Sequence[str]) -> Level | None:
    """Return a level; None where tensors there have no rows, or not as many."""
    if not names or any(name not in graph.axes for name in names):
        return None
    counts = {graph.size(name) for name in names}
    if len(counts) != 1:
        return None
    (count,) = counts
    return Level(position, tuple(names), count, sum(model.tensors[name].nbytes or 0 for name in names) // count)


def _whole(model: ModelGraph, position: int, names: Sequence[str]) -> Level:
    return Level(position, tuple(names), 1, sum(model.tensors[name].nbytes or 0 for name in names), is_whole=True)

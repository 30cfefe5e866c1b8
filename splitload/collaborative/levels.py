"""The places in a model where a device and a server may exchange rows, and which rows each needs of the place before.

A level is a cut of the graph whose tensors all have as many rows, so that "the first k rows" means the same of each.
Level 0 is the model's inputs, the last one its outputs; between two neighbours lies a unit of operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from splitload.graphs.row_graph import RowGraph
from splitload.graphs.row_pieces import Range, plan_piece
from splitload.plan.graph import ModelGraph, choose_cuts

MOST_LEVELS = 40


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
class Levels:
    """The levels of a model.

    Attributes:
        graph: The model as operators on rows.
        levels: In order; level 0 has the inputs, the last one the outputs.
    """

    graph: RowGraph
    levels: tuple[Level, ...]

    @classmethod
    def of(cls, model: ModelGraph, graph: RowGraph, most: int = MOST_LEVELS) -> Levels:
        """Return the levels of a model, at most so many and spread over what it computes.

        Where no place has rows, tensors are there as a whole or not at all: two machines can take turns there.

        Args:
            model: It.
            graph: The same as operators on rows.
            most: The most levels between inputs and outputs.
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
        places = cuts or list(model.cut_points)
        chosen = [
            _level(model, graph, cut.position, cut.boundary) or _whole(model, cut.position, cut.boundary)
            for cut in choose_cuts(places, share, most + 1)
        ]
        first = _level(model, graph, 0, model.inputs) or _whole(model, 0, model.inputs)
        last = _level(model, graph, len(model.nodes), model.outputs) or _whole(model, len(model.nodes), model.outputs)
        return cls(graph, (first, *chosen, last))

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

    @cached_property
    def stops(self) -> tuple[tuple[int, ...], ...]:
        """For each level but 0 and each k: behind which row of the level before lies all that rows `[0, k)` need."""
        return ((), *(self._needs(unit, lowest=False) for unit in range(1, len(self.levels))))

    @cached_property
    def starts(self) -> tuple[tuple[int, ...], ...]:
        """For each level but 0 and each k: at which row of the level before begins what the rows from k on need."""
        return ((), *(self._needs(unit, lowest=True) for unit in range(1, len(self.levels))))

    def _needs(self, level: int, *, lowest: bool) -> tuple[int, ...]:
        count, before = self.levels[level].num_rows, self.levels[level - 1]
        found = []
        for row in range(count + 1):
            rows = Range(row, count) if lowest else Range(0, row)
            if rows.size == 0:
                found.append(before.num_rows if lowest else 0)
                continue
            piece = plan_piece(self.graph, self.nodes(level - 1, level), self.wanted(level, rows))
            whole = Range(0, before.num_rows)
            needed = [
                whole if before.is_whole or each is None else each
                for name, each in piece.needed.items()
                if name in before.tensors
            ]
            edges = [each.start if lowest else each.stop for each in needed]
            default = before.num_rows if lowest else 0
            found.append((min if lowest else max)(edges, default=default))
        return tuple(found)


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

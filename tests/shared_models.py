"""Small models that a device and a server share, and both in one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import models
import onnx
import runtime_models

from splitload.collaborative.costs import Costs, Link, MachineCosts
from splitload.collaborative.levels import Levels
from splitload.collaborative.pieces import Pieces
from splitload.collaborative.program import Receive, Send, Step, programs
from splitload.collaborative.search import search
from splitload.collaborative.segment_costs import SegmentCosts
from splitload.collaborative.shared_plan import SharedPlan
from splitload.collaborative.store import Planned, write
from splitload.deploy.row_store import RowStore
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.here import HERE
from splitload.graphs.row_pieces import Range
from splitload.graphs.runtime import Beside
from splitload.plan.graph import GraphKind, ModelGraph

PIXELS = 24


def images() -> onnx.ModelProto:
    """Two strided convolutions, two residual blocks, a pooling, and a classifier that needs everything."""
    block = "{o}a = Conv<pads=[1,1,1,1]>({i}, w{n}) {o}b = Relu({o}a) {o}c = Conv<pads=[1,1,1,1]>({o}b, v{n}) "
    block += "{o}d = Add({o}c, {i}) {o} = Relu({o}d)"
    nodes = [
        "s = Conv<pads=[1,1,1,1]>(x, ws) t = Relu(s)",
        block.format(i="t", o="p", n=1),
        "q = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(p)",
        block.format(i="q", o="r", n=2),
        "m = GlobalAveragePool(r) f = Flatten(m) y = MatMul(f, wf)",
    ]
    weights = {name: models.floats(16, 16, 3, 3) / 8 for name in ("w1", "v1", "w2", "v2")}
    return models.text(
        f"g (float[1, 3, {PIXELS}, {PIXELS}] x) => (float[1, 5] y) {{ {' '.join(nodes)} }}",
        ws=models.floats(16, 3, 3, 3),
        wf=models.floats(16, 5),
        **weights,
    )


def graph_of(folder: Path, kind: GraphKind = "native", model: onnx.ModelProto | None = None) -> ModelGraph:
    """Return a model as both machines have it, with every cut a block."""
    source = Source.open(models.save(images() if model is None else model, folder), "shared")
    return load_graph(source, kind, folder / "cache")


class Made(NamedTuple):
    """A collaboration, its bundle, and the graph that both are of."""

    folder: Path
    bundle: Path
    graph: ModelGraph


def collaboration_in(place: Path) -> Made:
    """Make a bundle of `images` and its collaboration; the plan of the fastest link is shared, that of none is not."""
    graph = graph_of(place)
    bundle = runtime_models.bundle(place / "model.onnx", place / "shared.splitload", num_stages=2, native=True)
    pieces = Pieces(graph)
    costs = even_costs(pieces.levels)
    plans = [Planned(0.0, SharedPlan.device_only(pieces.levels), 0.4)]
    for bytes_per_s in (5e4, 1e5, 1e6):
        found = search(SegmentCosts(pieces.levels, costs), Link(bytes_per_s), generations=5)
        plans.append(Planned(bytes_per_s, found.plan, found.latency_s, found.baselines))
    return Made(write(bundle, graph, pieces, plans[::-1]), bundle, graph)


def even_costs(levels: Levels, *, device_s: float = 0.4, server_s: float = 0.1) -> Costs:
    """Return costs of two machines that take as long for each unit, of the whole model so many seconds."""

    def machine(whole_s: float) -> MachineCosts:
        unit_s = whole_s / levels.num_units
        return MachineCosts(
            (
                (),
                *(
                    tuple(unit_s * row / each.num_rows for row in range(each.num_rows + 1))
                    for each in levels.levels[1:]
                ),
            )
        )

    return Costs(machine(device_s), machine(server_s))


def shared_answer(pieces: Pieces, plan: SharedPlan, graph: ModelGraph, feeds: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs of a model that both machines compute by a plan, each with what it is sent and no more."""
    levels = pieces.levels
    stores = {name: RowStore(pieces.tensors) for name in ("device", "server")}
    queues: dict[str, deque[dict[str, Any]]] = {name: deque() for name in stores}
    for name, rows in levels.wanted(0, Range(0, levels.levels[0].num_rows)).items():
        stores["device"].put(name, *_ends(rows), feeds[name])

    def go(me: str, other: str, steps: tuple[Step, ...]) -> Iterator[bool]:
        store = stores[me]
        for step in steps:
            if isinstance(step, Send):
                wanted = levels.parts(step.level, step.rows)
                queues[other].append({name: store.get(name, *_ends(rows)) for name, rows in wanted.items()})
            elif isinstance(step, Receive):
                while not queues[me]:
                    yield True
                message = queues[me].popleft()
                for name, rows in levels.parts(step.level, step.rows).items():
                    store.put(name, *_ends(rows), message[name])
            else:
                piece = pieces.of(step)
                given = {name: store.get(name, *_ends(rows)) for name, rows in piece.reads.items()}
                names = [output.name for output in piece.model.graph.output]
                found = HERE.run(Beside(graph.path.parent, piece.model.SerializeToString()), names, given)
                for (name, rows), value in zip(piece.gives.items(), found, strict=True):
                    store.put(name, *_ends(rows), value)

    both = programs(levels, plan)
    device, server = go("device", "server", both.device), go("server", "device", both.server)
    while next(device, None):
        next(server, None)
    return {name: stores["device"].get(name, 0, None) for name in graph.outputs}


def _ends(rows: Range | None) -> tuple[int, int | None]:
    return (0, None) if rows is None else rows

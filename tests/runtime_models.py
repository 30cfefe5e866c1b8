"""Small models and bundles for the tests of the runtime, and a scripted `open_session` that orders the loads."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from splitload import ParallelLoader
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.bundle.manifest import TensorSpec
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.partition import Partition
from splitload.runtime.opening import LoadingParts

WIDTH = 16  # its square in floats is just large enough to lie in a weights file


def loader_with(**parts: Any) -> type[ParallelLoader]:
    """`ParallelLoader` with some of its `LoadingParts` replaced."""

    class Loader(ParallelLoader):
        _parts = LoadingParts(**parts)

    return Loader


def chain() -> onnx.ModelProto:
    """Six layers; input `x` with an open dimension enters first, `z` of fixed shape late; outputs `y` and `early`."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 3, f"w{layer}")
        for layer in range(6)
    ]
    nodes = []
    value = "x"
    for layer in range(6):
        nodes.append(helper.make_node("MatMul", [value, f"w{layer}"], [f"m{layer}"], name=f"layer{layer}/matmul"))
        value = {1: "early", 5: "y"}.get(layer, f"t{layer}")
        if layer == 3:
            nodes.append(helper.make_node("Add", [f"m{layer}", "z"], [value], name=f"layer{layer}/add"))
        else:
            nodes.append(helper.make_node("Tanh", [f"m{layer}"], [value], name=f"layer{layer}/tanh"))
    inputs = [_tensor("x", TensorProto.FLOAT, ["n", WIDTH]), _tensor("z", TensorProto.FLOAT, [WIDTH])]
    outputs = [_tensor("y", TensorProto.FLOAT, ["n", WIDTH]), _tensor("early", TensorProto.FLOAT, ["n", WIDTH])]
    return _model(nodes, inputs, outputs, weights)


def strings() -> onnx.ModelProto:
    """Two string operators in a row, so that a string tensor crosses a cut."""
    nodes = [
        helper.make_node("Concat", ["words", "words"], ["twice"], axis=0),
        helper.make_node("Concat", ["twice", "words"], ["thrice"], axis=0),
    ]
    return _model(nodes, [_tensor("words", TensorProto.STRING, ["n"])], [_tensor("thrice", TensorProto.STRING, ["m"])])


def sequences() -> onnx.ModelProto:
    """A tensor becomes a sequence, which is an output."""
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"]),
        helper.make_node("SplitToSequence", ["t"], ["parts"], axis=0),
    ]
    parts = helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None)
    return _model(nodes, [_tensor("x", TensorProto.FLOAT, [3, 2])], [parts])


def shapeless() -> onnx.ModelProto:
    """An output whose rank is not declared."""
    return _model(
        [helper.make_node("Tanh", ["x"], ["t"]), helper.make_node("Reshape", ["t", "shape"], ["y"])],
        [_tensor("x", TensorProto.FLOAT, [4]), _tensor("shape", TensorProto.INT64, ["rank"])],
        [_tensor("y", TensorProto.FLOAT, None)],
    )


def _tensor(name: str, kind: int, shape: Sequence[str | int] | None) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def _model(nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: Sequence[Any] = ()) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "small", inputs, outputs, list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


INPUTS = (TensorSpec("x", "tensor(float)", (2, WIDTH)), TensorSpec("z", "tensor(float)", (WIDTH,)))


def feeds(rows: int = 2, seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of `chain`."""
    rng = np.random.default_rng(seed)
    return {
        "x": rng.normal(size=(rows, WIDTH)).astype(np.float32),
        "z": rng.normal(size=WIDTH).astype(np.float32),
    }


def bundle(model: Path, target: Path, num_stages: int = 4, native: bool = False, threads: int = 2) -> Path:
    """Cut the model into stages with equal counts of blocks and write the bundle."""
    source = Source.open(model, model.stem)
    cache = target.parent / "cache"
    plans = []
    for kind in ("native", "portable") if native else ("portable",):
        graph = load_graph(source, kind, cache)  # type: ignore[arg-type]
        count = len(graph.blocks)
        stages = min(num_stages, count)
        points = [round(number * count / stages) for number in range(1, stages)]
        plans.append(VariantPlan(graph, Partition.of(count, points), threads))
    build_bundle(target, plans, device="host")
    return target


class Script:
    """Stands in for `open_session`: every load waits for its gate, and may fail; what opens is real.

    Attributes:
        started: Set when a stage's load begins, by stage.
        gates: A stage's load ends when its gate is set.
        failures: Errors to raise instead, by stage.
        upgrade_gate: Upgrades wait for it.
        upgrades: Stages that were made anew.
        loader: A `ParallelLoader` that opens its sessions by this.
    """

    def __init__(self, num_stages: int = 4, *, opened: bool = False) -> None:
        self.started = [threading.Event() for _ in range(num_stages)]
        self.gates = [threading.Event() for _ in range(num_stages)]
        self.failures: dict[int, Exception] = {}
        self.upgrade_gate = threading.Event()
        self.upgrades: list[int] = []
        self.loader = loader_with(open_session=self)
        if opened:
            self.upgrade_gate.set()
            for gate in self.gates:
                gate.set()

    def __call__(self, open_session: Any, graph: Path, *, prepack: bool = False, **options: Any) -> Any:
        stage = int(Path(graph).stem.split("-")[1])
        if prepack:
            assert self.upgrade_gate.wait(60)
            self.upgrades.append(stage)
        else:
            self.started[stage].set()
            assert self.gates[stage].wait(60)
        if stage in self.failures:
            raise self.failures[stage]
        return open_session(graph, prepack=prepack, **options)

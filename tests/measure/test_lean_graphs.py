"""A device without numpy and without onnxruntime's Python module does what the maker of its native graph asks."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
from lean_device import alone, lean_place

from splitload.base.errors import SplitloadError
from splitload.build.agreement import compare_with_stock
from splitload.build.assemble import VariantPlan, build_bundle
from splitload.devices.graph_runtime import FarRuntime
from splitload.devices.machine import Machine
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs.here import HERE
from splitload.graphs.layout import channel_block
from splitload.graphs.runtime import GraphRuntime, Refusal
from splitload.measure.answers import check_answer
from splitload.measure.job import Job
from splitload.plan.partition import Partition

PROGRAM = "from splitload.measure.__main__ import main; main()"
CPU = "x86_64+toy"  # whose blocks are this processor's


@pytest.fixture(scope="module")
def lean(tmp_path_factory: pytest.TempPathFactory) -> GraphRuntime:
    place = lean_place(tmp_path_factory.mktemp("lean"))

    def run(
        job: Job, folder: Path, failed: Callable[[str], SplitloadError], *, cold: Sequence[Path] = ()
    ) -> dict[str, Any]:
        (place / "job.json").write_text(json.dumps(job.to_json()), encoding="utf-8")
        done = alone(place, PROGRAM, place / "job.json", folder, given="\n")
        if done.returncode:
            raise failed(done.stderr.splitlines()[-1])
        return check_answer(job, json.loads(done.stdout.splitlines()[-1]))

    return FarRuntime(Machine("lean", "a lean device", 2, CPU, "", lambda: HERE.version, run))


def test_a_whole_bundle(lean: GraphRuntime, tmp_path: Path) -> None:
    """Convolutions in blocks, a product of many rows that may be one, and what is fused."""
    model = models.text(
        """g (float[n,16,8,8] x, float[32,64] z) => (float[n,48] y, float[32,64] v) {
            a = Conv <pads=[1,1,1,1]> (x, w)
            b = Relu(a)
            p = GlobalAveragePool(b)
            y = Flatten(p)
            m = MatMul(z, u)
            v = Gelu <approximate="tanh"> (m)
        }""",
        opset=20,
        w=models.floats(48, 16, 3, 3),
        u=models.floats(64, 64),
    )
    source, cache = Source.open(models.save(model, tmp_path), "m"), tmp_path / "cache"
    native, portable = (load_graph(source, kind, cache, runtime=lean) for kind in ("native", "portable"))  # type: ignore[arg-type]
    assert CPU in native.path.parent.name
    assert channel_block(lean) == channel_block()
    here = load_graph(source, "native", cache)
    assert {name: (each.type, each.shape) for name, each in native.tensors.items() if name in here.tensors} == {
        name: (each.type, each.shape) for name, each in here.tensors.items() if name in native.tensors
    }
    plans = [
        VariantPlan(native, Partition.of(len(native.blocks), [1]), 2),
        VariantPlan(portable, Partition(len(portable.blocks)), 1),
    ]
    notes: list[str] = []
    manifest = build_bundle(tmp_path / "b.splitload", plans, device="lean", runtime=lean)
    assert not notes
    assert manifest.variants[0].needs is not None
    assert manifest.variants[0].needs.canary is not None
    found = compare_with_stock(tmp_path / "b.splitload", manifest, source.path, {}, lean)
    assert found.agrees
    assert set(found.difference) == {"native", "portable"}


@pytest.mark.parametrize("dtype", ["float32", "float16", "int64", "uint8", "bool"])
def test_it_runs_what_this_process_runs(lean: GraphRuntime, tmp_path: Path, dtype: str) -> None:
    word = {"float32": "float"}.get(dtype, dtype)
    path = models.save(models.text(f"g ({word}[n,2] x) => ({word}[n,2] y) {{ y = Identity(x) }}"), tmp_path)
    value = np.array([[0, 1], [1, 0], [3, 2]]).astype(dtype)
    for how in ("plain", "packed", "stock"):
        (found,) = lean.run(path, ["y"], {"x": value}, how=how, times=2)  # type: ignore[arg-type]
        assert (found.dtype, found.tolist()) == (value.dtype, value.tolist())
    assert lean.open(path) == HERE.open(path)
    assert lean.race(path, path, {"x": value}).alike


def test_it_refuses_what_this_process_refuses(lean: GraphRuntime, tmp_path: Path) -> None:
    path = models.save(models.text("g (float[2,3] x) => (float[2,3] y) { y = Tanh(x) }"), tmp_path)
    for runtime in (lean, HERE):
        with pytest.raises(Refusal, match="INVALID_ARGUMENT"):
            runtime.run(path, ["y"], {"x": np.ones((2, 2), "f")})
    texts = models.save(models.text("g (string[2] x) => (string[2] y) { y = Identity(x) }"), tmp_path, "texts.onnx")
    with pytest.raises(Refusal, match="'x' is no tensor of numbers"):
        lean.open(texts)

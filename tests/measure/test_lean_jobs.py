"""A device without numpy and without onnxruntime's Python module does every job on stages, and loads models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import numpy as np
import onnx
import pytest
import runtime_models
from device_graphs import make_graph
from lean_device import alone, lean_place
from onnx import parser

from splitload.base.errors import ModelError, SplitloadError
from splitload.base.machine import cpu_architecture
from splitload.bundle.read import read_manifest
from splitload.devices.machine import Machine
from splitload.devices.measuring import MeasuringDevice
from splitload.measure.arm_names import PORTABLE_ARMS
from splitload.measure.fresh import run_job, save_inputs
from splitload.measure.job import Input, Job, LoadModel
from splitload.measure.stage_jobs import ComparePacked
from splitload.plan.memory import sessions_bytes
from splitload.plan.partition import Partition

PROGRAM = "from splitload.measure.__main__ import main; main()"
KEYS = {
    "stages": {"rows", "serial_share"}, "scheme": {"rows"}, "packed": {"differ"},
    "arena": {"anonymous_bytes", "input_bytes"},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lean_place(tmp_path_factory.mktemp("lean"))


class LeanRunner:
    """Does jobs on the lean device; keeps the answers."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.answers: list[tuple[Job, dict[str, Any]]] = []

    def __call__(self, job: Job, folder: Path, failed: Callable[[str], SplitloadError]) -> dict[str, Any]:
        (self.place / "job.json").write_text(json.dumps(job.to_json()), encoding="utf-8")
        done = alone(self.place, PROGRAM, self.place / "job.json", folder, given="\n")
        if done.returncode:
            raise failed(done.stderr.splitlines()[-1])
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        self.answers.append((job, answer))
        return answer


@pytest.fixture
def lean(place: Path) -> LeanRunner:
    return LeanRunner(place)


def device_of(lean: LeanRunner, cache: Path) -> MeasuringDevice:
    machine = Machine("lean", "a lean device", 2, cpu_architecture(), "", lambda: "1.32.0", lean)
    return MeasuringDevice(machine, cache, repeats=1)


def test_it_is_a_device_that_measures(lean: LeanRunner, tmp_path: Path) -> None:
    model = models.chain(3, width=640)  # weights enough to be worth a way to load them
    graph = make_graph(tmp_path, "native", model)
    device = device_of(lean, tmp_path / "cache")
    profile = device.profile(graph)
    assert all(block.cost.load_s > 0 for block in profile.blocks)
    plan = Partition.of(len(graph.blocks), [1])
    bundle = runtime_models.bundle(models.save(model, tmp_path), tmp_path / "m.splitload", 2, native=True)
    manifest = read_manifest(bundle)
    device.tune(bundle, manifest.variants[0], manifest.inputs, {})
    with device.runs(graph) as runs:
        memory = runs.working_memory(plan, 1 << 20)
    kinds = {}
    for job, answer in lean.answers:
        kinds[job.kind] = answer
        assert answer["engine"] == "library"
        if job.kind in KEYS:
            assert answer.keys() == KEYS[job.kind] | {"engine", "runtime"}
    assert kinds.keys() == KEYS.keys() | {"load"}
    taken, expected = kinds["arena"]["anonymous_bytes"], sessions_bytes(plan.num_stages, len(graph.nodes))
    assert memory == (max(taken - expected, 0), kinds["arena"]["input_bytes"]), "all that is no weight counts, once"
    assert kinds["load"]["arrays"] == "buffers"


SPECS = (
    Input("x", "tensor(float16)", (2, 3)),
    Input("i", "tensor(int64)", (2, 3)),
    Input("w", "tensor(bfloat16)", (1,)),
)
HALVES = """
<ir_version: 8, opset_import: ["" : 17]>
h (float16[2, 3] x, int64[2, 3] i, bfloat16[1] w) => (float16[2, 3] y, bfloat16[2, 3] b, float[1] v)
{ c = Cast<to = 10>(i) y = Add(x, c) b = Cast<to = 16>(y) v = Cast<to = 1>(w) }
"""


@pytest.mark.parametrize("arm", PORTABLE_ARMS)
def test_it_loads_models(lean: LeanRunner, tmp_path: Path, arm: str) -> None:
    model = tmp_path / "halves.onnx"
    onnx.save(parser.parse_model(HALVES), model)
    is_bundle = arm.startswith("splitload")
    path = runtime_models.bundle(model, tmp_path / "h.splitload", num_stages=1) if is_bundle else model
    x = np.asfortranarray(np.arange(6, dtype="f2").reshape(2, 3))
    inputs = save_inputs(SPECS, {"x": x}, tmp_path)
    answer = lean(LoadModel(arm, str(path), inputs, 1, outputs=True), tmp_path, ModelError)
    assert (answer["engine"], answer.get("arrays")) == ("library", "buffers" if is_bundle else None)
    y, b, v = (np.load(tmp_path / file) for file in answer["outputs"])
    assert (y.dtype, y.tolist()) == (np.float16, (x + 1).tolist())
    assert v.tolist() == [1.0]
    assert b.view("u2").tolist() == [[0x3F80, 0x4000, 0x4040], [0x4080, 0x40A0, 0x40C0]]
    whole = lean(LoadModel(arm, str(path), inputs, 1, steady=False, whole=True), tmp_path, ModelError)
    assert whole.keys() == {"first_at_s", "process_peak_memory_bytes"}


def test_what_starts_jobs_needs_no_numpy_either(place: Path) -> None:
    done = alone(place, "import splitload.measure.fresh, splitload.measure.stage_jobs")
    assert (done.returncode, done.stderr) == (0, "")


def test_what_it_cannot_do_it_says_in_a_line(lean: LeanRunner, tmp_path: Path) -> None:
    text = Input("words", "tensor(string)", (1,))
    with pytest.raises(ModelError) as caught:
        lean(ComparePacked((text,), ()), tmp_path, ModelError)
    assert str(caught.value) == (
        "MissingPackageError: onnxruntime's Python module is needed (the model has tensor(string)) and cannot be "
        "imported (No module named 'numpy'): 'pip install onnxruntime'"
    )
    with pytest.raises(ModelError, match="ModuleNotFoundError: No module named 'numpy'"):
        lean(LoadModel("stock", "m.onnx", (text,)), tmp_path, ModelError)


def test_where_the_module_is_needed_it_is_taken(tmp_path: Path) -> None:
    graph = make_graph(tmp_path, "portable", runtime_models.strings())
    engines = set()

    def run(job: Job, *rest: Any) -> dict[str, Any]:
        answer = run_job(job, *rest)
        engines.add(answer["engine"])
        return answer

    machine = Machine("host", "this host", 2, cpu_architecture(), "", lambda: "1.32.0", run)
    MeasuringDevice(machine, tmp_path / "cache", repeats=1).profile(graph)
    assert engines == {"python"}

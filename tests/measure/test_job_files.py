"""Which files travel with a job: all that it reads, and of no job that another machine must not be sent."""

from __future__ import annotations

from pathlib import Path

import models
import onnx
import pytest

from splitload.base.errors import BundleError, UsageError
from splitload.bundle.read import read_manifest
from splitload.measure.fresh import save_inputs
from splitload.measure.job import Job, LoadModel, LoadModule, TrainEpoch
from splitload.measure.job_files import check_portable, files_made, job_files
from splitload.measure.sampling import Arm, load_job
from splitload.measure.stage_jobs import SampleStages, StageFile


def test_a_bundle_travels_with_its_manifest(native_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(native_bundle)
    inputs = save_inputs(manifest.inputs, {}, tmp_path)
    job = load_job(Arm("splitload", native_bundle), tmp_path, inputs)
    found = job_files(job, tmp_path)
    wanted = {"manifest.json", *(file.name for file in manifest.files())}
    assert {name.partition("/")[2] for name in found if "/" in name} == wanted
    assert {name for name in found if "/" not in name} == {each.file for each in inputs}
    assert all(path.is_file() for path in found.values())


def test_weights_beside_a_graph_travel_with_it(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    model = tmp_path / "m.onnx"
    onnx.save_model(
        models.chain(2, width=64), str(model), save_as_external_data=True, location="m.weights", size_threshold=64
    )
    job = load_job(Arm("stock", model), tmp_path / "job", ())
    assert [name.rpartition("/")[2] for name in job_files(job, tmp_path / "job")] == ["m.onnx", "m.weights"]
    stages = SampleStages((), (StageFile((0, 1), "m.onnx", (), ()),))
    assert list(job_files(stages, tmp_path)) == ["m.onnx", "m.weights"]


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "a/../../secret", "*/_ORT_MEM_ADDR_/*"])
def test_a_graph_that_reads_elsewhere_does_not_travel(location: str, tmp_path: Path) -> None:
    model = models.chain(1, width=4)
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BundleError, match="does not lie beside it; refused"):
        job_files(SampleStages((), (StageFile((0, 1), "m.onnx", (), ()),)), tmp_path)


def test_outputs_come_back() -> None:
    assert files_made(LoadModel("stock", "m.onnx", ()), {"outputs": ["output-0.npy", None]}) == ["output-0.npy"]
    assert files_made(SampleStages((), ()), {"rows": []}) == []


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (TrainEpoch("torch", "m.pt", "d.npz", "fc", 1, 1e-3, 1), "kind 'epoch' is done on this machine alone"),
        (LoadModule("copy", "cpu", "float32", 1, 1, 1), "kind 'module' is done on this machine alone"),
        (LoadModel("torch", "m.pt", (), module={"package": "os", "name": "system"}), "arm 'torch' is measured on this"),
        (LoadModel("stock", "m.onnx", (), module={"package": "os", "name": "system"}), "and nothing else"),
        (LoadModel("stock", "/etc/passwd", ()), "and nothing else"),
        (LoadModel("stock", "a/../../m.onnx", ()), "and nothing else"),
    ],
)
def test_what_no_other_machine_is_sent(job: Job, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_portable(job)

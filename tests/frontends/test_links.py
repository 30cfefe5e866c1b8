"""Models that are links, as huggingface_hub keeps them; and no link leads outside."""

import os

import models
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from models import floats

from splitload import ParallelLoader, cli
from splitload.base.errors import ModelError
from splitload.frontends.onnx import Source
from splitload.training.head import with_new_head

X = {"x": floats(2, 8)}


@pytest.fixture
def stored(tmp_path):
    """A folder with a model and its data, named as blobs are."""
    model = models.text(
        "g (float[n,8] x) => (float[n,8] y) { a = MatMul(x, v)\nb = Tanh(a)\ny = MatMul(b, w) }",
        v=floats(8, 8),
        w=floats(8, 8),
    )
    blobs = tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    onnx.save_model(model, blobs / "11", save_as_external_data=True, location="model.onnx_data", size_threshold=100)
    (blobs / "model.onnx_data").rename(blobs / "22")
    return blobs


@pytest.fixture
def snapshot(stored):
    """Links to them, in a folder of the snapshot, as a repository has them."""
    folder = stored.parent / "snapshots/abc/onnx"
    folder.mkdir(parents=True)
    for name, blob in (("model.onnx", "11"), ("model.onnx_data", "22")):
        (folder / name).symlink_to(f"../../../blobs/{blob}")
    return folder


def opens_in_stock(path):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    try:
        ort.InferenceSession(path, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception:
        return False
    return True


def test_a_model_and_its_data_may_be_links(snapshot, tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    path, bundle = snapshot / "model.onnx", tmp_path / "b.splitload"
    assert cli.main(["train", str(path), "--device", "s20", "--split-points=1", "-o", str(bundle)]) == 0
    with ParallelLoader(bundle) as model:
        np.testing.assert_allclose(model.run(None, X)[0], ort.InferenceSession(path).run(None, X)[0], rtol=1e-5)
    assert opens_in_stock(with_new_head(Source.open(path, "m"), 3, tmp_path / "cache").path)


def test_data_is_refused_where_only_it_leads_elsewhere(stored, tmp_path):
    path = stored.parent / "model.onnx"
    path.write_bytes((stored / "11").read_bytes())
    other = tmp_path / "other.bin"
    os.link(stored / "22", other)
    (path.parent / "model.onnx_data").symlink_to(other)
    with pytest.raises(ModelError, match="outside its own folder; refused"):
        Source.open(path, "m")
    assert not opens_in_stock(path)


def test_data_is_refused_where_it_leads_elsewhere_than_the_model(snapshot, stored, tmp_path):
    other = tmp_path / "other.bin"
    os.link(stored / "22", other)
    (snapshot / "model.onnx_data").unlink()
    (snapshot / "model.onnx_data").symlink_to(other)
    with pytest.raises(ModelError, match="outside its own folder; refused"):
        Source.open(snapshot / "model.onnx", "m")
    assert not opens_in_stock(snapshot / "model.onnx")


def test_data_beside_what_is_linked_to_is_not_beside_the_link(snapshot, stored):
    (stored / "22").rename(stored / "model.onnx_data")
    (snapshot / "model.onnx_data").unlink()
    with pytest.raises(ModelError, match="missing beside it"):
        Source.open(snapshot / "model.onnx", "m")
    assert not opens_in_stock(snapshot / "model.onnx")


def test_a_name_that_climbs_out_is_refused_even_where_it_comes_back(snapshot):
    model = onnx.load(snapshot / "model.onnx", load_external_data=False)
    for tensor in model.graph.initializer:
        tensor.external_data[0].value = "../../../blobs/22"
    (snapshot / "climbs.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(ModelError, match="outside its own folder; refused"):
        Source.open(snapshot / "climbs.onnx", "m")
    assert not opens_in_stock(snapshot / "climbs.onnx")

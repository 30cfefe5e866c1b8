"""What a model says of itself is kept in its bundle, and told as a stock session tells it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models
from onnx import helper

from splitload import ParallelLoader
from splitload.base.errors import BundleError, ModelError
from splitload.build import assemble as build
from splitload.bundle.manifest import Metadata
from splitload.bundle.read import read_manifest
from splitload.bundle.validate import validate
from splitload.graphs.proto import defaults_of, metadata_of

FIELDS = ("producer_name", "graph_name", "domain", "description", "graph_description", "version", "custom_metadata_map")
NAMES = {"names": "{0: 'cat', 1: 'dog'}", "stride": "32", "character": "a\nb\n一"}


def described(full: bool) -> onnx.ModelProto:
    model = runtime_models.chain()
    if full:
        helper.set_model_props(model, NAMES)
        model.producer_name, model.domain, model.doc_string = "a trainer", "org.example", "reads x"
        model.model_version, model.graph.doc_string = -3, "six layers"
    return model


def train(model: onnx.ModelProto, folder: Path) -> tuple[Path, Path]:
    """Return the model's file, and its bundle as the command line makes it."""
    return train_telling(model, folder)[:2]


def train_telling(model: onnx.ModelProto, folder: Path) -> tuple[Path, Path, str]:
    """Return what `train` does, and what the command line says beside."""
    path, target = folder / "model.onnx", folder / "model.splitload"
    onnx.save(model, path)
    words = ["train", str(path), "--device", "s20", "--max-stages", "2", "-o", str(target)]
    done = subprocess.run([sys.executable, "-m", "splitload", *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return path, target, done.stderr


@pytest.mark.parametrize("full", [True, False], ids=["full", "bare"])
def test_a_bundle_tells_what_a_session_tells(tmp_path: Path, full: bool) -> None:
    path, bundle = train(described(full), tmp_path)
    stock = ort.InferenceSession(path, providers=["CPUExecutionProvider"]).get_modelmeta()
    with ParallelLoader(bundle) as model:
        told = model.get_modelmeta()
        told.custom_metadata_map["names"] = "changed"  # by a client; the next one is told the same
        told = model.get_modelmeta()
    assert {name: getattr(told, name) for name in FIELDS} == {name: getattr(stock, name) for name in FIELDS}
    assert set(FIELDS) == {name for name in dir(stock) if not name.startswith("_")}


def test_a_bundle_without_metadata_has_empty_fields(chain_bundle: Path) -> None:
    with ParallelLoader(chain_bundle) as model:
        assert model.get_modelmeta() == (*([""] * 5), (1 << 63) - 1, {})


def test_metadata_is_read_back_as_it_was_written(chain_bundle: Path) -> None:
    manifest = read_manifest(chain_bundle)
    kept = manifest._replace(metadata=metadata_of(described(True)), model_data=("a/b.bin", "c.bin"))
    again = validate(json.loads(json.dumps(kept.to_json())))
    assert (again.metadata, again.model_data) == (kept.metadata, kept.model_data)
    assert again.metadata is not None
    assert dict(again.metadata.custom_metadata_map) == NAMES
    assert not {"metadata", "model_data"} & manifest.to_json().keys()


WRONG: dict[str, tuple[str, Any, str]] = {
    "no object": ("metadata", [], "must be an object"),
    "unknown key": ("metadata", {"author": "me"}, "unknown keys"),
    "missing key": ("metadata", {"version": 1, "custom_metadata_map": {}}, "producer_name is missing"),
    "version": ("metadata", {"version": 1 << 63, "custom_metadata_map": {}}, "whole number of 64 bits"),
    "version, a flag": ("metadata", {"version": True, "custom_metadata_map": {}}, "whole number of 64 bits"),
    "values": ("metadata", {"version": 1, "custom_metadata_map": {"stride": 32}}, "must hold strings"),
    "files": ("model_data", [3], "must be names"),
    "absolute": ("model_data", ["/etc/passwd"], "refused"),
    "above": ("model_data", ["a/../../b"], "refused"),
    "backslash": ("model_data", ["..\\b"], "refused"),
    "empty": ("model_data", [""], "refused"),
}


@pytest.mark.parametrize(("key", "value", "message"), WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_an_error(chain_bundle: Path, key: str, value: Any, message: str) -> None:
    data = json.loads((chain_bundle / "manifest.json").read_bytes())
    data.pop("sha256", None)
    with pytest.raises(BundleError, match=message):
        validate(data | {key: value})


def test_more_than_a_manifest_should_hold_is_refused(
    chain_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "MAX_METADATA_BYTES", 100)
    with pytest.raises(ModelError, match="take entries out of its metadata_props"):
        build.build_bundle(tmp_path / "b.splitload", [], device="s20", metadata=Metadata(description="x" * 100))
    assert not (tmp_path / "b.splitload").exists()


def test_a_default_value_that_is_built_in_is_told(tmp_path: Path) -> None:
    model = described(False)
    model.graph.input.append(helper.make_tensor_value_info("w5", onnx.TensorProto.FLOAT, [16, 16]))
    path, bundle, told = train_telling(model, tmp_path)
    stock = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [each.name for each in stock.get_overridable_initializers()] == ["w5"]
    assert "the default value of w5 is built in" in " ".join(told.split())
    feeds = {**runtime_models.feeds(), "w5": np.zeros((16, 16), np.float32)}
    with ParallelLoader(bundle) as loader, pytest.raises(Exception, match="default value have it built in") as caught:
        loader.run(None, feeds)
    assert type(caught.value).__name__ == "InvalidArgument"


def test_weights_that_had_to_be_inputs_have_no_default() -> None:
    model = described(False)
    model.graph.input.append(helper.make_tensor_value_info("w5", onnx.TensorProto.FLOAT, [16, 16]))
    assert defaults_of(model) == ("w5",)
    model.ir_version = 3
    assert defaults_of(model) == ()


@pytest.mark.slow
def test_a_specialized_bundle_keeps_it(tmp_path: Path) -> None:
    _, bundle = train(described(True), tmp_path)
    before = read_manifest(bundle)
    done = subprocess.run(
        [sys.executable, "-m", "splitload", "specialize", str(bundle)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    after = read_manifest(bundle)
    assert (after.metadata, after.model_data, after.model_sha256) == (
        before.metadata, before.model_data, before.model_sha256
    )  # fmt: skip

"""`splitload specialize`: a bundle made elsewhere becomes one for this machine, or stays as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models

import splitload.variants
from splitload import ParallelLoader, PortableWarning
from splitload.bundle import MANIFEST, read_manifest
from splitload.cli import main
from splitload.sealed import KEY

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def specialize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))

    def run(bundle: Path, *words: str) -> tuple[int, str, str]:
        code = main(["specialize", str(bundle), *words])
        return code, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def session(chain_model: Path) -> Any:
    return ort.InferenceSession(chain_model, providers=["CPUExecutionProvider"])


def answers(bundle: Path) -> list[Any]:
    with ParallelLoader(bundle, verify="hashes") as model:
        return model.run(None, runtime_models.feeds())


def content(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def test_a_portable_bundle_gets_a_native_part(own_bundle: Path, specialize: Run, session: Any) -> None:
    before = read_manifest(own_bundle)
    code, out, err = specialize(own_bundle, "--json")
    assert (code, err) == (0, "")
    after = read_manifest(own_bundle, "hashes")
    assert [variant.kind for variant in after.variants] == ["native", "portable"]
    assert (after.model, after.model_sha256, after.model_bytes) == (
        before.model, before.model_sha256, before.model_bytes,
    )  # fmt: skip
    assert after.inputs == before.inputs
    assert after.outputs == before.outputs
    assert json.loads(out)["num_stages"] == len(after.variants[0].stages)
    for got, expected in zip(answers(own_bundle), session.run(None, runtime_models.feeds()), strict=True):
        assert np.allclose(got, expected, atol=1e-5)
    assert not [path for path in own_bundle.parent.iterdir() if path.name.startswith(".own")]


def test_it_still_loads_elsewhere_and_again(
    own_bundle: Path, specialize: Run, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert specialize(own_bundle)[0] == 0
    assert specialize(own_bundle)[0] == 0  # what was specialised can be
    monkeypatch.setattr(splitload.variants, "cpu_architecture", lambda: "other")
    with pytest.warns(PortableWarning, match="here is other with"), ParallelLoader(own_bundle) as model:
        assert model.variant.kind == "portable"
        for got, expected in zip(
            model.run(None, runtime_models.feeds()), session.run(None, runtime_models.feeds()), strict=True
        ):
            assert np.allclose(got, expected, atol=1e-5)


def test_a_damaged_bundle_stays_as_it_is(own_bundle: Path, specialize: Run) -> None:
    victim = next(own_bundle.glob("portable-00*.onnx"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    before = content(own_bundle)
    code, _, err = specialize(own_bundle)
    assert code == 1
    assert err.count("\n") == 1
    assert "SHA-256 differs" in err
    assert content(own_bundle) == before


def test_wrong_inputs_are_an_error_and_change_nothing(own_bundle: Path, specialize: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3), np.float32))
    before = content(own_bundle)
    code, _, err = specialize(own_bundle, "--input", f"x={tmp_path / 'x.npy'}")
    assert code == 1
    assert err.count("\n") == 1
    assert content(own_bundle) == before
    assert specialize(own_bundle)[0] == 0  # and nothing of it was kept


def test_weights_outside_the_bundle_are_refused(own_bundle: Path, specialize: Run) -> None:
    stage = next(own_bundle.glob("portable-00*.onnx"))
    model = onnx.load_model(stage, load_external_data=False)
    tensor = next(each for each in model.graph.initializer if each.external_data)
    next(entry for entry in tensor.external_data if entry.key == "location").value = "../../secret"
    rewrite(own_bundle, stage, model.SerializeToString())
    code, _, err = specialize(own_bundle)
    assert code == 1
    assert "reads weights from '../../secret', which its bundle does not name" in err


def test_a_graph_that_is_none_is_refused(own_bundle: Path, specialize: Run) -> None:
    rewrite(own_bundle, next(own_bundle.glob("portable-00*.onnx")), b"\xff no model")
    code, _, err = specialize(own_bundle)
    assert code == 1
    assert "is not an ONNX graph" in err


def rewrite(bundle: Path, file: Path, data: bytes) -> None:
    """Change a file of a bundle, and its manifest to match, as someone with bad intent would."""
    import hashlib

    file.write_bytes(data)
    manifest = json.loads((bundle / MANIFEST).read_text())
    for variant in manifest["variants"]:
        for stage in variant["stages"]:
            if stage["graph"]["name"] == file.name:
                stage["graph"] |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    del manifest[KEY]
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def test_a_file_may_have_any_name_the_format_allows(own_bundle: Path, specialize: Run) -> None:
    stage = next(own_bundle.glob("portable-00*.onnx"))
    stage.rename(own_bundle / "portable.onnx")
    manifest = json.loads((own_bundle / MANIFEST).read_text().replace(stage.name, "portable.onnx"))
    del manifest[KEY]
    (own_bundle / MANIFEST).write_text(json.dumps(manifest))
    assert specialize(own_bundle)[0] == 0
    assert len(answers(own_bundle)) == 2

"""`splitload specialize`: a bundle made elsewhere becomes one for this machine, or stays as it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models

import splitload.runtime.variants
from splitload import ParallelLoader
from splitload.base.errors import BundleError
from splitload.base.machine import cpu_architecture
from splitload.base.sealed import KEY
from splitload.build.fleet import keep_natives
from splitload.bundle.manifest import MANIFEST, Manifest
from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest
from splitload.cli import main

pytestmark = pytest.mark.filterwarnings("ignore::splitload.PortableWarning")  # test_variants.py sees to them
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all, as measuring this machine takes seconds."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def specialize(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], few_samples: None
) -> Run:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(cache))

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


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--add",)])
def test_the_portable_plan_and_its_device_stay(
    chain_model: Path, tmp_path: Path, specialize: Run, words: tuple[str, ...]
) -> None:
    bundle = tmp_path / "s20.splitload"
    train = ["train", str(chain_model), "--device", "s20", "--split-points", "1,3", "-o", str(bundle)]
    assert main(train) == 0
    before = read_manifest(bundle).variants[-1]
    assert (len(before.stages), before.threads) == (3, 8)
    for _ in range(2):  # what was specialised can be
        assert specialize(bundle, *words)[0] == 0
        manifest = read_manifest(bundle, "hashes")
        *natives, after = manifest.variants
        assert (manifest.device, len(natives), after.threads) == ("s20", 1, 8)
        for old, new in zip(before.stages, after.stages, strict=True):
            assert (old.name, old.inputs, old.outputs) == (new.name, new.inputs, new.outputs)


def test_it_still_loads_elsewhere(
    own_bundle: Path, specialize: Run, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert specialize(own_bundle)[0] == 0
    monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "other")
    with ParallelLoader(own_bundle) as model:
        assert model.variant.kind == "portable"
        for got, expected in zip(
            model.run(None, runtime_models.feeds()), session.run(None, runtime_models.feeds()), strict=True
        ):
            assert np.allclose(got, expected, atol=1e-5)


def foreign(bundle: Path) -> Manifest:
    """Let a bundle's native part be another processor's, and return its manifest."""
    manifest = read_manifest(bundle)
    first, *others = manifest.variants
    manifest = manifest._replace(variants=(first._replace(cpu="pdp11", threads=7), *others))
    write_manifest(bundle, manifest)
    return manifest


@pytest.fixture
def natively(native_bundle: Path, tmp_path: Path) -> Path:
    """A bundle with a native part, to change."""
    return Path(shutil.copytree(native_bundle, tmp_path / "native.splitload"))


def test_add_keeps_what_other_machines_have(natively: Path, specialize: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    before, expected = foreign(natively), answers(natively)
    assert specialize(natively, "--add")[0] == 0
    after = read_manifest(natively, "hashes")
    assert [variant.cpu for variant in after.variants] == [cpu_architecture(), "pdp11", None]
    assert after.variants[1] == before.variants[0]
    for cpu, place in ((cpu_architecture(), 0), ("pdp11", 1), ("abacus", 2)):
        monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda cpu=cpu: cpu)
        with ParallelLoader(natively) as model:
            assert model.variant == after.variants[place]
        for got, wanted in zip(answers(natively), expected, strict=True):
            assert np.allclose(got, wanted, atol=1e-5)


def test_without_add_it_goes(natively: Path, specialize: Run) -> None:
    foreign(natively)
    assert specialize(natively)[0] == 0
    assert [variant.cpu for variant in read_manifest(natively, "hashes").variants] == [cpu_architecture(), None]


def test_this_machines_own_is_replaced_and_what_reads_lost_weights_refused(natively: Path, tmp_path: Path) -> None:
    manifest = read_manifest(natively)
    assert keep_natives(natively, manifest, tmp_path, manifest.variants) == manifest.variants
    first = foreign(natively).variants[0]
    stage = first.stages[0]._replace(shares=("gone.bin",))
    old = manifest._replace(variants=(first._replace(stages=(stage, *first.stages[1:])), manifest.variants[-1]))
    with pytest.raises(BundleError, match=r"for pdp11 reads weights of \['gone\.bin'\], which goes"):
        keep_natives(natively, old, tmp_path, manifest.variants)


def test_the_portable_part_stays_last_where_this_machine_gets_none(natively: Path, tmp_path: Path) -> None:
    manifest = read_manifest(natively)
    *natives, portable = manifest.variants
    assert keep_natives(natively, manifest, tmp_path, (portable,)) == (*natives, portable)


def test_a_kept_native_part_ends_with_the_new_tail(native_bundle: Path, tmp_path: Path) -> None:
    manifest = read_manifest(native_bundle)
    first, last = manifest.variants
    old_tail = first.stages[-1]._replace(trainable=True)
    new_tail = old_tail._replace(name="new", blocks=(7, 8))
    old = manifest._replace(variants=(first._replace(cpu="pdp11", stages=(*first.stages[:-1], old_tail)), last))
    made = (first._replace(stages=(*first.stages[:-1], new_tail)), last)
    _, kept, _ = keep_natives(native_bundle, old, tmp_path, made)
    assert kept.stages[-1] == new_tail._replace(blocks=old_tail.blocks)
    other = (first._replace(stages=(*first.stages[:-1], new_tail._replace(inputs=("other",)))), last)
    with pytest.raises(BundleError, match="specialize without --add"):
        keep_natives(native_bundle, old, tmp_path, other)


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


@pytest.mark.slow
def test_a_file_may_have_any_name_the_format_allows(own_bundle: Path, specialize: Run) -> None:
    stage = next(own_bundle.glob("portable-00*.onnx"))
    stage.rename(own_bundle / "portable.onnx")
    manifest = json.loads((own_bundle / MANIFEST).read_text().replace(stage.name, "portable.onnx"))
    del manifest[KEY]
    (own_bundle / MANIFEST).write_text(json.dumps(manifest))
    assert specialize(own_bundle)[0] == 0
    assert len(answers(own_bundle)) == 2

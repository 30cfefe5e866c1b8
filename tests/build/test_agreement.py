"""A new bundle is run once beside a stock session, on the user's inputs or made-up ones, before it counts."""

import functools
import json
import shutil
from pathlib import Path

import models
import numpy as np
import onnxruntime as ort
import pytest
import runtime_models
from models import floats

from splitload import cli
from splitload.base.machine import cpu_architecture
from splitload.build.agreement import Agreement, compare_with_stock
from splitload.bundle.read import read_manifest
from splitload.graphs import here
from splitload.runtime.session import open_session


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))


def train(capsys, model, folder, *words):
    path = models.save(model, folder)
    code = cli.main(["train", str(path), "--device", "s20", "-o", str(folder / "b.splitload"), "--json", *words])
    out, err = capsys.readouterr()
    return code, json.loads(out)["agreement"] if code == 0 else None, err


def test_a_simulated_device_runs_the_model_once(tmp_path, capsys):
    code, found, _ = train(capsys, models.chain(4), tmp_path)
    assert code == 0
    assert found["difference"]["portable"] <= 1e-6
    assert (found["agrees"], found["made_up"], found["untried"]) == (True, ["x"], None)


def test_given_inputs_are_taken(tmp_path, capsys):
    np.save(tmp_path / "x.npy", floats(1, 4))
    code, found, _ = train(capsys, models.chain(4), tmp_path, "--input", f"x={tmp_path / 'x.npy'}")
    assert (code, found["made_up"], found["agrees"]) == (0, [], True)


def convolution():
    return models.text(
        "g (float[b,1,n] x) => (float[b,1,m] y) { y = Conv <kernel_shape=[3]> (x, w) }",
        w=np.ones((1, 1, 3), np.float32),
    )


def test_it_is_said_why_nothing_was_compared(tmp_path, capsys):
    code, found, err = train(capsys, convolution(), tmp_path)
    assert (code, found["agrees"]) == (0, False)
    assert "was not compared with a stock session: the model does not run on these inputs" in err
    assert "give fitting inputs with --input NAME=FILE.npy (made up: x)" in err
    assert cli.main(["run", str(tmp_path / "b.splitload")]) == 1
    assert "give fitting inputs with --input NAME=FILE.npy (made up: x)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "number", "cure"), [("bfloat16", 16, 'arrays="buffers"'), ("int4", 22, "Cast to int8")]
)
def test_an_output_that_the_python_module_cannot_return_is_named(tmp_path, capsys, word, number, cure):
    model = models.text(
        f"g (float[2,3] x) => ({word}[2,3] y) {{ t = MatMul(x, w) y = Cast <to={number}> (t) }}",
        opset=21,
        ir=10,
        w=floats(3, 3),
    )
    code, found, err = train(capsys, model, tmp_path)
    assert (code, found["agrees"]) == (0, False)
    assert f"cannot return the output 'y', a tensor({word}); " in " ".join(err.split())
    assert cure in err
    assert "--input" not in err


def test_run_names_an_output_that_it_cannot_return(tmp_path, capsys):
    model = models.text("g (float[2,3] x) => (int4[2,3] y) { y = Cast <to=22> (x) }", opset=21, ir=10)
    assert train(capsys, model, tmp_path)[0] == 0
    assert cli.main(["run", str(tmp_path / "b.splitload")]) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert err == (
        "splitload: onnxruntime's Python module cannot return the output 'y', a tensor(int4); let the model end in a "
        "Cast to int8"
    )


def test_a_bundle_that_answers_otherwise_is_told_of(tmp_path, capsys, monkeypatch):
    real = here.run_staged

    def wrong(*arguments):
        return [2 * value for value in real(*arguments)]

    monkeypatch.setattr(here, "run_staged", wrong)
    code, found, err = train(capsys, models.chain(2), tmp_path, "--split-points=")
    assert (code, found["agrees"], found["repeats"]) == (0, False, True)
    assert "the portable graph answers otherwise than a stock session: by 1 of the largest value" in err


def test_random_numbers_are_no_fault(tmp_path, capsys):
    body = "s = RandomNormalLike(x)\nr = RandomNormalLike(s)\ny = Add(x, r)"
    model = models.text(f"g (float[1000] x) => (float[1000] y) {{ {body} }}")
    code, found, err = train(capsys, model, tmp_path, "--split-points=1")
    assert (code, found["agrees"], found["repeats"]) == (0, False, False)
    assert "differ from run to run, in a stock session too" in err


def test_a_bundle_that_does_not_run_does_not_count(tmp_path, capsys, monkeypatch):
    real = here.run_stage

    def fails(ort, session, stage, *rest):
        if stage.path.suffix:  # of a bundle
            raise RuntimeError("no such kernel")
        return real(ort, session, stage, *rest)

    monkeypatch.setattr(here, "run_stage", fails)
    code, _, err = train(capsys, models.chain(2), tmp_path, "--split-points=")
    assert code == 1
    assert "stage 1 of 1 (portable graph) does not run on inputs that a stock session runs on: no such kernel" in err
    assert not (tmp_path / "b.splitload").exists()


@pytest.mark.parametrize("device", ["s20", pytest.param("host", marks=pytest.mark.slow)])
def test_an_output_of_another_size_than_declared_may_be_read_further_on(tmp_path, capsys, device):
    model = models.text(
        """g (float[N,8] x, int64[2] to) => (float[1,8] feat, float[N,8] y) {
            a = MatMul(x, v)
            feat = Reshape(a, to)
            b = MatMul(feat, w)
            y = Tanh(b)
        }""",
        v=floats(8, 8),
        w=floats(8, 8),
    )
    np.save(tmp_path / "x.npy", floats(3, 8))
    np.save(tmp_path / "to.npy", np.array([-1, 8]))
    words = [word for name in ("x", "to") for word in ("--input", f"{name}={tmp_path / name}.npy")]
    code, found, _ = train(capsys, model, tmp_path, "--split-points=1,2", f"--device={device}", *words)
    assert (code, found["agrees"]) == (0, True)
    assert cli.main(["run", str(tmp_path / "b.splitload"), "--json", *words]) == 0


def test_a_difference_that_is_no_number_is_null():
    assert Agreement({"native": float("inf")}).to_json()["difference"] == {"native": None}


def test_variants_that_fit_here_are_run_and_the_worst_of_a_kind_counts(tmp_path):
    body = "g (float[1,4] x) => (float[1,4] y) { y = MatMul(x, w) }"
    model = models.save(models.text(body, w=floats(4, 4)), tmp_path)
    other = models.save(models.text(body, w=2 * floats(4, 4)), tmp_path, "wrong.onnx")
    bundle = runtime_models.bundle(model, tmp_path / "b.splitload", 1, native=True)
    strange = runtime_models.bundle(other, tmp_path / "wrong.splitload", 1)
    manifest = read_manifest(bundle)
    native, portable = manifest.variants
    (wrong,) = (variant._replace(kind="native") for variant in read_manifest(strange).variants)
    shutil.copytree(strange, bundle, dirs_exist_ok=True, ignore=shutil.ignore_patterns("manifest.json"))
    here = {"cpu": cpu_architecture(), "runtime": ort.__version__}
    lost = native.stages[0]._replace(graph=native.stages[0].graph._replace(name="lost.ort"))
    elsewhere = native._replace(cpu="pdp11", stages=(lost,))
    variants = (elsewhere, wrong._replace(**here), native, portable)
    found = compare_with_stock(bundle, manifest._replace(variants=variants), model, {})
    assert found.difference["portable"] <= 1e-6
    assert found.difference["native"] > 0.01
    assert not found.agrees
    agreeing = compare_with_stock(bundle, manifest._replace(variants=(elsewhere, native, portable)), model, {})
    assert agreeing.agrees
    assert set(agreeing.difference) == {"native", "portable"}


@pytest.mark.parametrize("optimized", [True, False])
@pytest.mark.parametrize("reoptimize", [True, False])
@pytest.mark.parametrize("prepack", [True, False])
def test_a_stage_is_opened_as_a_loader_opens_it(tmp_path, monkeypatch, optimized, reoptimize, prepack):
    model = models.save(models.chain(2), tmp_path)
    bundle = runtime_models.bundle(model, tmp_path / "b.splitload", 1)
    manifest = read_manifest(bundle)
    (variant,) = manifest.variants
    ways = {"optimized": optimized, "reoptimize": reoptimize, "prepack": prepack, "mapped": False, "upgrade": False}
    manifest = manifest._replace(variants=(variant._replace(stages=(variant.stages[0]._replace(**ways),)),))
    (bundle / "manifest.json").write_text(json.dumps(manifest.to_json()))
    opened = []

    def opens(make, path, **settings):
        opened.append((Path(path).name, *(settings[key] for key in ("prepack", "mapped", "optimize"))))
        return make(path, **settings)

    with runtime_models.loader_with(open_session=opens)(bundle) as loaded:
        loaded.run(None, {"x": floats(1, 4)})
    monkeypatch.setattr(here, "open_session", functools.partial(opens, open_session))
    assert compare_with_stock(bundle, manifest, model, {}).agrees
    first, second = opened
    assert first == second

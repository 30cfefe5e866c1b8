"""A native variant is made after the first answer, and kept where it can be, if it answers as the portable one did."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import runtime_models
from forked import does_in_child
from runtime_models import feeds

import splitload.runtime.background
from splitload import ParallelLoader, PortableWarning
from splitload.base.errors import OutputError, StageError, UsageError
from splitload.base.machine import cpu_architecture
from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest

WAIT_S = 120


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bundle cannot be written."""

    def refuse(*_: object) -> None:
        raise OutputError("no permission")

    monkeypatch.setattr(splitload.runtime.background, "_writable", lambda _: None)
    monkeypatch.setattr(splitload.runtime.background, "_put_into_bundle", refuse)


def start(bundle: Path) -> tuple[str, list[Any]]:
    """Return which variant an application's start runs, and its first answer; what it makes meanwhile is made."""
    with ParallelLoader(bundle, specialize="background") as model:
        answers = model.run(None, feeds())
        assert model.wait("specialized", WAIT_S)
        return model.variant.kind, answers


def test_the_next_start_runs_it_from_the_bundle(own_bundle: Path, cache: Path) -> None:
    before = read_manifest(own_bundle)
    kind, first = start(own_bundle)
    assert kind == "portable"
    after = read_manifest(own_bundle, "hashes")
    native, portable = after.variants
    assert (native.kind, native.cpu, native.runtime) == ("native", cpu_architecture(), ort.__version__)
    assert native.needs is None  # of this very version: there is no canary
    assert portable == before.variants[0]
    assert [stage.blocks for stage in native.stages] == [stage.blocks for stage in portable.stages]
    kind, second = start(own_bundle)
    assert kind == "native"
    for left, right in zip(first, second, strict=True):
        assert np.allclose(left, right, atol=1e-5)
    assert read_manifest(own_bundle) == after  # and nothing is made again
    with ParallelLoader(own_bundle) as model:
        assert model.variant.kind == "native"
    assert not [path for path in own_bundle.parent.iterdir() if path.name.startswith(".")]
    assert not cache.exists()


def test_it_goes_into_the_cache_where_the_bundle_cannot_be_written(own_bundle: Path, cache: Path, fixed: None) -> None:
    before = read_manifest(own_bundle)
    assert start(own_bundle)[0] == "portable"
    assert read_manifest(own_bundle, "hashes") == before
    (place,) = (cache / "natives").iterdir()
    kind, answers = start(own_bundle)
    assert kind == "native"
    with ParallelLoader(own_bundle) as model:
        assert model.variant.kind == "portable"  # who did not ask does not get it
        for left, right in zip(answers, model.run(None, feeds()), strict=True):
            assert np.allclose(left, right, atol=1e-5)
    next(place.glob("*.ort")).write_bytes(b"")
    assert start(own_bundle)[0] == "portable"  # what is damaged is made anew
    assert start(own_bundle)[0] == "native"


def test_another_machine_does_not_take_it(own_bundle: Path, fixed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    start(own_bundle)
    monkeypatch.setattr(splitload.runtime.background, "cpu_architecture", lambda: "pdp11")
    assert start(own_bundle)[0] == "portable"


def test_one_for_another_machine_stays_and_who_asked_is_told_until_then(native_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(native_bundle, tmp_path / "other.splitload"))
    first, last = read_manifest(bundle).variants
    write_manifest(bundle, read_manifest(bundle)._replace(variants=(first._replace(cpu="pdp11"), last)))
    with pytest.warns(PortableWarning):
        assert start(bundle)[0] == "portable"
    assert [variant.cpu for variant in read_manifest(bundle, "hashes").variants] == [cpu_architecture(), "pdp11", None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert start(bundle)[0] == "native"


def test_one_that_answers_otherwise_is_not_kept(
    own_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = read_manifest(own_bundle)
    real = splitload.runtime.background.to_python
    monkeypatch.setattr(splitload.runtime.background, "to_python", lambda *value: real(*value) * 1.01)
    with caplog.at_level(logging.WARNING, "splitload"):
        assert start(own_bundle)[0] == "portable"
    assert "differs from the portable graph's" in caplog.text
    assert read_manifest(own_bundle, "hashes") == before
    assert not list(cache.rglob("*.ort"))


def test_one_that_grows_is_not_kept(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(splitload.runtime.background, "MAX_GROWTH", 0.5)
    monkeypatch.setattr(splitload.runtime.background, "_HEAD_BYTES", 0)
    with caplog.at_level(logging.WARNING, "splitload"):
        assert start(own_bundle)[0] == "portable"
    assert "0.5 of the portable graph is the limit" in caplog.text
    assert len(read_manifest(own_bundle, "hashes").variants) == 1


def test_the_callers_arrays_may_change_meanwhile(own_bundle: Path) -> None:
    given = feeds()
    with ParallelLoader(own_bundle, specialize="background") as model:
        for value in (*model.run(None, given), *given.values()):
            value.fill(9)
        assert model.wait("specialized", WAIT_S)
    assert read_manifest(own_bundle).variants[0].kind == "native"


def test_closing_ends_it_and_leaves_the_bundle_whole(own_bundle: Path) -> None:
    with ParallelLoader(own_bundle, specialize="background") as model:
        model.run(None, feeds())
    assert model._specializer is not None
    assert model._specializer.done.wait(WAIT_S)
    read_manifest(own_bundle, "hashes")
    assert not list(own_bundle.parent.glob(".native-*"))


def test_without_an_answer_there_is_nothing_to_wait_for(own_bundle: Path) -> None:
    with ParallelLoader(own_bundle, specialize="background") as model:
        assert not model.wait("specialized", 0.01)
    with ParallelLoader(own_bundle) as model:
        assert model.wait("specialized", 0.01)
    with pytest.raises(UsageError, match="specialize takes 'background' or None"):
        ParallelLoader(own_bundle, specialize="now")  # type: ignore[arg-type]


@pytest.mark.parametrize("what", ["another portable graph", "a tail", "another bundle, at the last moment"])
def test_what_was_put_into_the_bundle_meanwhile_stays(
    own_bundle: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    real = splitload.runtime.background.Specializer._check

    def change() -> None:
        manifest = read_manifest(own_bundle)
        (portable,) = manifest.variants
        write_manifest(own_bundle, manifest._replace(variants=(portable._replace(threads=portable.threads + 1),)))

    def check(*values: Any) -> None:
        real(*values)
        if what == "a tail":
            (own_bundle / "tails" / "ann").mkdir(parents=True)
        elif what == "another portable graph":
            change()

    @contextlib.contextmanager
    def alone(folder: Path) -> Iterator[None]:  # who has waited for the lock finds what its holder has installed
        if folder == own_bundle and what == "another bundle, at the last moment":
            change()
        yield

    monkeypatch.setattr(splitload.runtime.background.Specializer, "_check", check)
    monkeypatch.setattr(splitload.runtime.background, "alone", alone)
    threads = read_manifest(own_bundle).variants[-1].threads
    start(own_bundle)
    (portable,) = read_manifest(own_bundle, "hashes").variants
    assert portable.kind == "portable"
    assert portable.threads == threads + (what != "a tail")
    assert (own_bundle / "tails" / "ann").is_dir() == (what == "a tail")
    assert len(list((cache / "natives").iterdir())) == 1


@pytest.mark.parametrize(
    ("model", "values"),
    [
        (runtime_models.strings, {"words": np.array(["a", "b"], object)}),
        (runtime_models.sequences, {"x": np.ones((3, 2), np.float32)}),
    ],
)
def test_answers_that_are_no_numbers_are_compared_as_well(
    tmp_path: Path, model: Callable[[], onnx.ModelProto], values: dict[str, Any]
) -> None:
    onnx.save(model(), tmp_path / "model.onnx")
    made = runtime_models.bundle(tmp_path / "model.onnx", tmp_path / "model.splitload", 2)
    with ParallelLoader(made, specialize="background") as loader:
        loader.run(None, values)
        assert loader.wait("specialized", WAIT_S)
    assert read_manifest(made, "hashes").variants[0].kind == "native"


def test_ort_values_are_compared_as_well(own_bundle: Path) -> None:
    values = {name: ort.OrtValue.ortvalue_from_numpy(value) for name, value in feeds().items()}
    with ParallelLoader(own_bundle, specialize="background") as model:
        model.run_with_ort_values(None, values)
        assert model.wait("specialized", WAIT_S)
    assert read_manifest(own_bundle).variants[0].kind == "native"


def test_nobody_waits_for_what_will_not_be_made(own_bundle: Path) -> None:
    with ParallelLoader(own_bundle, specialize="background") as model, ThreadPoolExecutor() as pool:
        waiting = pool.submit(model.wait, "specialized", WAIT_S)
        model.close()
        with pytest.raises(StageError, match="closed"):
            waiting.result()
    graph = own_bundle / read_manifest(own_bundle).variants[-1].stages[-1].graph.name
    graph.chmod(0o644)
    graph.write_bytes(bytes(graph.stat().st_size))
    with (
        ParallelLoader(own_bundle, specialize="background") as model,
        pytest.raises(StageError, match="cannot be loaded"),
    ):
        model.wait("specialized", WAIT_S)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_what_its_parent_makes(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    real = splitload.runtime.background.Specializer._make

    def make(*values: Any) -> Path:
        assert go_on.wait(WAIT_S)
        return real(*values)

    monkeypatch.setattr(splitload.runtime.background.Specializer, "_make", make)
    with ParallelLoader(own_bundle, specialize="background") as model:
        model.run(None, feeds())

        def work() -> None:
            model.run(None, feeds())
            assert model.wait("specialized", WAIT_S / 10)

        assert does_in_child(work)
        go_on.set()
        assert model.wait("specialized", WAIT_S)

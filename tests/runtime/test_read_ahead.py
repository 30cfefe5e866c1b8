"""Files that are not cached are read ahead in the order of use, once, and no further than needed."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import runtime_models
from forked import does_in_child
from models import floats
from runtime_models import loader_with

import splitload.runtime.background
from splitload import PortableWarning
from splitload.base.errors import StageError
from splitload.base.machine import cpu_architecture
from splitload.bundle.manifest import MANIFEST, Variant
from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest
from splitload.measure import pagecache
from splitload.runtime.reading import fetch, is_cached

PAGE = 4096
WAIT_S = 30.0


def never() -> bool:
    return False


def test_samples_tell_whether_a_file_is_cached(evictable: Path) -> None:
    order = (4 * PAGE, 1_000_000, 2_000_000)
    assert any(not is_cached(evictable, order) or pagecache.evict([evictable]) for _ in range(20))  # it may be quick
    evictable.read_bytes()
    assert is_cached(evictable, order)
    assert is_cached(evictable.with_name("missing"), order)  # the load will say so


def test_systems_that_do_not_tell(evictable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "RWF_NOWAIT")
    assert is_cached(evictable, (PAGE,))


def test_what_is_fetched(evictable: Path) -> None:
    end = 250 * PAGE
    os.truncate(evictable, 64_000_000)
    fetch([(evictable, (8 * PAGE, 20 * PAGE, end))], never)
    assert end <= pagecache.resident_bytes([evictable]) < 32_000_000  # the kernel reads on, 8 MB on some machines
    fetch([(evictable.with_name("missing"), (PAGE, 2 * PAGE))], never)
    fetch([(evictable, (PAGE, 100_000_000))], never)  # a file that is shorter than it was


def test_nothing_is_fetched_for_nobody(evictable: Path) -> None:
    fetch([(evictable, (PAGE, 480 * PAGE))], lambda: True)
    assert pagecache.resident_bytes([evictable]) < 100 * PAGE


def lookup_bundle(folder: Path, stages: int = 1) -> Path:
    """A bundle of a model that looks rows of a table up and multiplies them."""
    model = models.text(
        "g (int64[n] i) => (float[n,64] y) { r = Gather(table, i) p = MatMul(r, v) y = MatMul(p, w) }",
        table=floats(5000, 64),
        v=floats(64, 64),
        w=floats(64, 64),
    )
    path = models.save(model, folder)
    return runtime_models.bundle(path, folder / "m.splitload", stages, native=True)


def test_tables_stand_behind_what_is_read_ahead(tmp_path: Path) -> None:
    bundle = lookup_bundle(tmp_path)
    (stage,) = read_manifest(bundle).variants[0].stages
    *starts, table, end = stage.read_order
    assert starts == sorted(starts)
    assert end <= table
    assert stage.graph.bytes == table + 5000 * 64 * 4


def test_a_cold_bundle_is_fetched_and_a_warm_one_is_not(tmp_path: Path) -> None:
    bundle = lookup_bundle(tmp_path)
    (stage,) = read_manifest(bundle).variants[0].stages
    fetched: list[Any] = []
    done = threading.Event()

    def record(files: Any, stopped: Any) -> None:
        fetched.extend(files)
        assert not stopped()
        done.set()

    feeds = {"i": np.array([3, 4999])}
    with loader_with(fetch=record, is_cached=lambda *_: False)(bundle) as model:
        expected = model.run(None, feeds)
        assert done.wait(WAIT_S)
    assert fetched == [(str(bundle / stage.graph.name), stage.read_order)]
    with loader_with(fetch=lambda *_: pytest.fail("it is cached"), is_cached=lambda *_: True)(bundle) as model:
        np.testing.assert_array_equal(model.run(None, feeds), expected)


def test_bundles_without_an_order_are_left_to_the_system(chain_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(chain_bundle, tmp_path / "m.splitload", copy_function=shutil.copyfile))
    with loader_with(is_cached=lambda *_: pytest.fail("no order is known"))(bundle) as model:
        assert model.run(None, runtime_models.feeds())


def test_stages_without_an_order_are_read_ahead_by_themselves(tmp_path: Path) -> None:
    bundle = lookup_bundle(tmp_path, 2)
    manifest = bundle / MANIFEST
    written = json.loads(manifest.read_text())
    first, second = written["variants"][0]["stages"]
    first["prefetch"], second["prefetch"], second["read_order"] = True, True, []
    manifest.chmod(0o644)  # files of a bundle are read-only
    manifest.write_text(json.dumps(written))
    fetched: list[str] = []
    read: list[str] = []
    done = threading.Event()
    loader = loader_with(
        is_cached=lambda *_: False,
        fetch=lambda files, _: fetched.extend(Path(path).name for path, _ in files),
        read_ahead=lambda path: (read.append(Path(path).name), done.set()),
    )
    with loader(bundle) as model:
        model.wait()
        assert done.wait(WAIT_S)
        assert [stage.graph.name for stage in model.variant.stages] == [*fetched, *read]


def test_a_load_that_failed_is_fetched_no_further(tmp_path: Path) -> None:
    stops: list[Any] = []
    done = threading.Event()
    loader = loader_with(
        is_cached=lambda *_: False,
        fetch=lambda _, stopped: (stops.append(stopped), done.set()),
        open_session=lambda *_, **__: [][0],
    )
    with loader(lookup_bundle(tmp_path)) as model:
        with pytest.raises(StageError, match="cannot be loaded"):
            model.wait()
        assert done.wait(WAIT_S)
        assert stops[0]()


def ordered(variant: Variant) -> Variant:
    """Return a variant each of whose stages has an order to be read in."""
    return variant._replace(stages=tuple(stage._replace(read_order=(1, 9)) for stage in variant.stages))


def at_once(thread: threading.Thread) -> bool:
    """Do what a thread would."""
    thread.run()
    return True


class Fetches:
    """Files that are fetched, of which none is cached.

    Attributes:
        paths: Those that were fetched.
        stops: What each fetch was given to ask whether it is still wanted.
        loader: A `ParallelLoader` that fetches by this.
    """

    def __init__(self) -> None:
        self.paths: list[Path] = []
        self.stops: list[Callable[[], bool]] = []
        self.loader = loader_with(start=at_once, is_cached=lambda *_: False, fetch=self._fetch)

    def _fetch(self, files: Sequence[tuple[Path, Any]], stopped: Callable[[], bool]) -> None:
        self.paths.extend(path for path, _ in files)
        self.stops.append(stopped)


@pytest.fixture
def fetches() -> Fetches:
    return Fetches()


def test_a_native_part_in_the_cache_is_fetched_and_the_portable_one_is_not(
    own_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetches: Fetches
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(splitload.runtime.background, "_writable", lambda _: None)  # the bundle stays as it is
    monkeypatch.setattr(
        splitload.runtime.background, "_native_stage", ordered_native(splitload.runtime.background._native_stage)
    )
    manifest = read_manifest(own_bundle)
    write_manifest(own_bundle, manifest._replace(variants=tuple(map(ordered, manifest.variants))))
    for kind in ("portable", "native"):
        fetches.paths.clear()
        with fetches.loader(own_bundle, upgrade=False, specialize="background") as model:
            model.run(None, runtime_models.feeds())
            assert model.wait("specialized", WAIT_S)
            assert model.variant.kind == kind
            folder = own_bundle if kind == "portable" else next((tmp_path / "cache" / "natives").iterdir())
            assert fetches.paths == [str(folder / stage.graph.name) for stage in model.variant.stages]


def ordered_native(real: Any) -> Any:
    return lambda *values: real(*values)._replace(read_order=(1, 9))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_reads_the_variant_that_its_parent_chose(
    native_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fetches: Fetches
) -> None:
    monkeypatch.setenv("SPLITLOAD_CACHE", str(tmp_path / "cache"))
    bundle = Path(shutil.copytree(native_bundle, tmp_path / "own.splitload", copy_function=shutil.copyfile))
    manifest = read_manifest(bundle)
    native, portable = map(ordered, manifest.variants)
    assert native.cpu == cpu_architecture()
    write_manifest(bundle, manifest._replace(variants=(native._replace(runtime="99.0"), portable)))
    assert native.needs is not None and native.needs.canary is not None
    np.full(native.needs.canary.answers.bytes // 4, np.nan, "<f4").tofile(bundle / native.needs.canary.answers.name)
    with pytest.warns(PortableWarning):
        model = fetches.loader(bundle, upgrade=False)
    with model:
        model.wait()
        expected = [str(bundle / stage.graph.name) for stage in portable.stages]
        assert fetches.paths[-len(expected) :] == expected  # the canary has died, whatever was fetched before
        fetches.paths.clear()

        def work() -> None:
            model.run(None, runtime_models.feeds())
            assert fetches.paths == expected

        assert does_in_child(work)


def test_what_was_fetched_of_another_variant_stops(native_bundle: Path, fetches: Fetches) -> None:
    with fetches.loader(native_bundle, upgrade=False) as model:
        fetches.stops.clear()
        for variant in map(ordered, model.manifest.variants):
            model._files.read(variant)
        assert [stopped() for stopped in fetches.stops] == [True, False]
    assert [stopped() for stopped in fetches.stops] == [True, True]

"""Loaders under a ceiling: the same answers, weights that leave and come again, and what cannot be is refused."""

from __future__ import annotations

import gc
import mmap
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import runtime_models
from forked import does_in_child
from onnx import helper, numpy_helper

from splitload import ParallelLoader
from splitload.base.errors import BundleError, StageError, UsageError
from splitload.bundle.read import read_manifest
from splitload.bundle.write import write_manifest
from splitload.runtime import mapped, residency

WIDTH, LAYERS = 256, 6
WEIGHTS = 4 * WIDTH * WIDTH  # of one layer, which is a stage
WORKING, SESSION = 8192, 10_000
LEAST = WEIGHTS + 2 * WORKING + LAYERS * SESSION  # the arena may take twice what tensors do


def wide() -> onnx.ModelProto:
    """Six layers of 256 KiB each."""
    rng = np.random.default_rng(0)
    nodes, weights = [], []
    for layer in range(LAYERS):
        values = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) / 16
        weights.append(numpy_helper.from_array(values, f"w{layer}"))
        before, after = ("x" if not layer else f"t{layer - 1}"), ("y" if layer == LAYERS - 1 else f"t{layer}")
        nodes.append(helper.make_node("MatMul", [before, f"w{layer}"], [f"m{layer}"], name=f"layer{layer}/matmul"))
        nodes.append(helper.make_node("Tanh", [f"m{layer}"], [after], name=f"layer{layer}/tanh"))
    of = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "wide", [of("x", 1, ["n", WIDTH])], [of("y", 1, ["n", WIDTH])], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def said(folder: Path, **of_variants: Any) -> Path:
    """Have the manifest of a bundle say what its stages take."""
    manifest = read_manifest(folder)
    variants = []
    for variant in manifest.variants:
        stages = [
            stage._replace(mapped_bytes=WEIGHTS, working_bytes=WORKING, passing_bytes=0, session_bytes=SESSION)
            for stage in variant.stages
        ]
        variants.append(variant._replace(stages=tuple(stages), **of_variants))
    write_manifest(folder, manifest._replace(variants=tuple(variants)))
    return folder


@pytest.fixture(scope="module")
def unsaid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that does not say what its stages take; do not change it."""
    folder = tmp_path_factory.mktemp("wide")
    onnx.save(wide(), folder / "wide.onnx")
    return runtime_models.bundle(folder / "wide.onnx", folder / "wide.splitload", LAYERS, native=True)


@pytest.fixture(scope="module")
def bundle(unsaid: Path) -> Path:
    """One that does; do not change it."""
    copy = Path(shutil.copytree(unsaid, unsaid.with_name("said.splitload")))
    return said(copy, input_bytes=4 * WIDTH)


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "own.splitload"))


def feeds(rows: int = 1, seed: int = 0) -> dict[str, Any]:
    return {"x": np.random.default_rng(seed).normal(size=(rows, WIDTH)).astype(np.float32)}


def expected(bundle: Path, rows: int = 1, seed: int = 0) -> Any:
    with ParallelLoader(bundle, upgrade=False, residency="all") as model:
        return model.run(None, feeds(rows, seed))[0]


def in_memory(model: ParallelLoader) -> set[int]:
    """Return the stages of which more than the graph is in memory, as the system sees it."""
    found = set()
    for index, paths in enumerate(model._staged.residency._paths):  # type: ignore[union-attr]
        spans, resident, inside = set(mapped.spans(mapped.identities(paths))), 0, False
        for line in Path("/proc/self/smaps").read_text(errors="surrogateescape").splitlines():
            words = line.split()
            if "-" in words[0] and not words[0].endswith(":"):
                begin, end = (int(word, 16) for word in words[0].split("-"))
                inside = (begin, end) in spans
            elif inside and words[0] == "Rss:":
                resident += int(words[1]) * 1024
        if resident > WEIGHTS // 2:
            found.add(index)
    return found


@pytest.mark.filterwarnings("ignore::splitload.base.errors.PortableWarning")
@pytest.mark.parametrize("kind", ["native", "portable"])
@pytest.mark.parametrize("ceiling", ["stage", LEAST, LEAST + WEIGHTS, "12MB"])
def test_answers_are_the_same_and_weights_leave(own: Path, kind: str, ceiling: str | int, engine: Any) -> None:
    if kind == "portable":  # whose weights lie in the files of the native one
        manifest = read_manifest(own)
        native = manifest.variants[0]._replace(cpu="sparc")
        write_manifest(own, manifest._replace(variants=(native, *manifest.variants[1:])))
    with ParallelLoader(own, residency=ceiling, engine=engine) as model:
        assert model.variant.kind == kind
        for seed in range(3):
            np.testing.assert_allclose(
                model.run(None, feeds(seed=seed))[0], expected(own, seed=seed), rtol=1e-6, atol=1e-6
            )
        staged = model._staged.residency
        assert staged is not None
        assert in_memory(model) <= staged.ledger.resident
        most = {"stage": 1, "12MB": LAYERS, LEAST: 1, LEAST + WEIGHTS: 2}[ceiling]
        assert len(staged.ledger.resident) == most
        assert model.residency == (12_000_000 if ceiling == "12MB" else ceiling)
        assert model.wait("upgraded", 10)


def test_the_least_that_would_do_is_said_and_does(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"residency 0.3MB is too low: stage 1, '.*', has 0.3 MB of weights") as caught:
        ParallelLoader(bundle, residency=LEAST - 1)
    least = str(caught.value).partition("the least that would do is ")[2].partition(",")[0]
    with ParallelLoader(bundle, residency=least) as model:
        model.run(None, feeds())


@pytest.mark.parametrize("word", ["48", "0", "some", "", "-1MB", 0, -5, True, 1.5, b"48MB"])
def test_what_is_no_residency_is_refused(bundle: Path, word: Any) -> None:
    with pytest.raises(UsageError, match="residency"):
        ParallelLoader(bundle, residency=word)


def test_a_bundle_that_does_not_say_what_it_takes_has_one_stage_at_a_time_and_no_ceiling(unsaid: Path) -> None:
    with pytest.raises(UsageError, match="does not say what its native stages take in memory; make it again"):
        ParallelLoader(unsaid, residency="48MB")
    with ParallelLoader(unsaid, residency="stage") as model:
        np.testing.assert_array_equal(model.run(None, feeds())[0], expected(unsaid))
        assert len(in_memory(model)) <= 1


def test_the_execution_scheme_says_it_where_the_caller_does_not(own: Path) -> None:
    said(own, residency=LEAST, input_bytes=4 * WIDTH)
    with ParallelLoader(own) as model:
        model.run(None, feeds())
        assert model.residency == LEAST
        assert len(in_memory(model)) <= 1
    with ParallelLoader(own, residency="all") as model:
        assert model.residency == "all"


def test_callers_share_a_ceiling(bundle: Path) -> None:
    wanted = {seed: expected(bundle, seed=seed) for seed in range(6)}
    failures: list[BaseException] = []
    with ParallelLoader(bundle, residency=LEAST + 3 * WORKING) as model:

        def work(seed: int) -> None:
            try:
                for _ in range(5):
                    np.testing.assert_allclose(model.run(None, feeds(seed=seed))[0], wanted[seed], rtol=1e-6, atol=1e-6)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in wanted]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures


def test_inputs_that_are_too_large_are_refused_and_others_run(bundle: Path) -> None:
    with ParallelLoader(bundle, residency=LEAST + 2 * WORKING) as model:
        np.testing.assert_allclose(model.run(None, feeds(2))[0], expected(bundle, 2), rtol=1e-6, atol=1e-6)
        with pytest.raises(UsageError, match="give smaller inputs or more residency"):
            model.run(None, feeds(3))
        np.testing.assert_allclose(model.run(None, feeds())[0], expected(bundle), rtol=1e-6, atol=1e-6)


def test_where_memory_is_scarce_files_are_read_ahead_and_forgotten(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, engine: Any
) -> None:
    forgotten: list[str] = []
    fetched: list[str] = []
    monkeypatch.setattr(residency, "left_bytes", lambda: 0)
    monkeypatch.setattr(mapped, "forget", lambda paths: forgotten.extend(map(os.path.basename, paths)))
    fetch = residency.reading.fetch
    monkeypatch.setattr(
        residency.reading,
        "fetch",
        lambda files, stopped: (fetched.extend(path for path, _ in files), fetch(files, stopped)),
    )
    with ParallelLoader(bundle, residency=LEAST + 2 * WEIGHTS, engine=engine) as model:
        for seed in range(3):
            np.testing.assert_allclose(
                model.run(None, feeds(seed=seed))[0], expected(bundle, seed=seed), rtol=1e-6, atol=1e-6
            )
        graphs = {stage.graph.name for stage in model.variant.stages}
    assert forgotten
    assert fetched
    assert {*forgotten, *map(os.path.basename, fetched)} <= graphs
    assert all(
        thread.name != "splitload-reader" or not thread.is_alive() or thread.join(10) is None
        for thread in threading.enumerate()
    )


@pytest.mark.filterwarnings("ignore::splitload.base.errors.PortableWarning")
def test_a_portable_table_of_which_rows_are_read_is_not_read_ahead(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = read_manifest(own)
    native, portable = manifest.variants
    table = portable.stages[2]._replace(mapped_bytes=WEIGHTS // 4)
    portable = portable._replace(stages=(*portable.stages[:2], table, *portable.stages[3:]))
    write_manifest(own, manifest._replace(variants=(native._replace(cpu="sparc"), portable)))
    fetched: set[str] = set()
    monkeypatch.setattr(residency, "left_bytes", lambda: 0)
    monkeypatch.setattr(
        residency.reading, "fetch", lambda files, stopped: fetched.update(Path(path).name for path, _ in files)
    )
    with ParallelLoader(own, residency="stage") as model:
        while table.graph.name not in fetched or portable.stages[3].graph.name not in fetched:
            model.run(None, feeds())
    assert fetched.isdisjoint(table.shares)
    assert fetched.issuperset(portable.stages[3].shares)


def test_a_runtime_that_does_not_map_weights_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "spans", lambda paths: [])
    with ParallelLoader(bundle, residency="stage") as model, pytest.raises(StageError, match="does not map"):
        model.run(None, feeds())


def test_another_system_is_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped.sys, "platform", "darwin")
    with pytest.raises(UsageError, match="residency needs Linux"):
        ParallelLoader(bundle, residency="stage")


def test_no_native_part_is_made_beside_a_ceiling(bundle: Path) -> None:
    with pytest.raises(UsageError, match="takes as much memory as the model"):
        ParallelLoader(bundle, residency="stage", specialize="background")


def test_one_that_is_closed_lets_go_of_who_waits(bundle: Path) -> None:
    model = ParallelLoader(bundle, residency="stage")
    model.run(None, feeds())
    errors: list[BaseException] = []

    def answer() -> None:
        with pytest.raises(StageError) as caught:
            model.run(None, feeds())
        errors.append(caught.value)

    ledger = model._staged.residency.ledger  # type: ignore[union-attr]
    with ledger.loading(0):
        thread = threading.Thread(target=answer)
        thread.start()
        while not ledger._takers:
            ledger.changed().wait(0.001)
        model.close()
        thread.join()
    assert "was closed" in str(errors[0])
    with pytest.raises(StageError, match="was closed"):
        model.run(None, feeds())


def test_a_forked_child_has_a_ceiling_of_its_own(bundle: Path) -> None:
    wanted = expected(bundle)
    with ParallelLoader(bundle, residency="stage") as model:
        model.run(None, feeds())

        def work() -> None:
            np.testing.assert_allclose(model.run(None, feeds())[0], wanted, rtol=1e-6, atol=1e-6)
            assert len(in_memory(model)) <= 1

        assert does_in_child(work)
        np.testing.assert_allclose(model.run(None, feeds())[0], wanted, rtol=1e-6, atol=1e-6)


def test_a_stage_that_cannot_be_loaded_is_said(own: Path) -> None:
    stage = read_manifest(own).variants[0].stages[2]
    (own / stage.graph.name).write_bytes(b"\0" * stage.graph.bytes)
    with ParallelLoader(own, residency="stage") as model, pytest.raises(StageError, match="stage 3 of"):
        model.run(None, feeds())


def test_stages_that_are_used_by_the_module_later_keep_the_ceiling(bundle: Path) -> None:
    import onnxruntime

    with ParallelLoader(bundle, residency="stage", engine="auto") as model:
        model.run(None, feeds())
        answer = model.run(None, feeds(), onnxruntime.RunOptions())[0]
        np.testing.assert_allclose(answer, expected(bundle), rtol=1e-6, atol=1e-6)
        assert len(model._staged.residency.ledger.resident) <= 1  # type: ignore[union-attr]


def test_what_another_loader_has_mapped_is_left_alone(bundle: Path, engine: Any) -> None:
    with ParallelLoader(bundle, residency="all", upgrade=False, engine=engine) as other:
        other.run(None, feeds())
        with ParallelLoader(bundle, residency="stage", engine=engine) as model:
            model.run(None, feeds())
            of_model = {span for pages in model._staged.residency._pages for span in pages.spans}  # type: ignore[union-attr]
    paths = [os.fspath(bundle / stage.graph.name) for stage in model.variant.stages]
    assert len(of_model) == LAYERS
    assert not of_model & set(mapped.spans(mapped.identities(paths)))


def test_a_session_may_be_mapped_where_one_was_that_has_gone_meanwhile(bundle: Path) -> None:
    with ParallelLoader(bundle, residency="stage") as model:
        model.run(None, feeds())
        kept = model._staged.residency
        assert kept is not None
        spans = kept._pages[0].spans
        kept.opened(0, lambda: model._loading.values[0])  # mapped before and behind at one address
        assert kept._pages[0].spans == spans


def test_a_ceiling_that_is_far_too_low_is_said_in_bytes(bundle: Path) -> None:
    with pytest.raises(UsageError, match=r"residency 48 is too low.*by 'splitload train --residency 48'"):
        ParallelLoader(bundle, residency=48)


def test_memory_that_has_taken_the_place_of_a_file_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\1" * 65536)
    path = os.fspath(tmp_path / "file")
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        ((begin, end),) = where = mapped.spans(mapped.identities([path]))
        files = mapped.files_at(where)
        known = mapped.identities([path])
        assert mapped.kept(where, where, files, known) == where
        part = [(begin + 4096, end)]
        assert mapped.kept(part, [(begin, end + 4096)], [None], known) == part  # now two pieces were one
    assert mapped.kept(where, where, files, known) == []


def test_a_loader_that_is_gone_gives_nothing_back(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = ParallelLoader(bundle, residency="stage")
    model.run(None, feeds())
    kept = model._staged.residency
    assert kept is not None
    del model
    gc.collect()
    monkeypatch.setattr(mapped, "drop", lambda where: pytest.fail("who has this memory now?"))
    for index in range(LAYERS):
        kept._drop(index)


def test_files_may_be_links(own: Path, tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    for number, file in enumerate(sorted(own.glob("*.ort"))):
        blob = file.rename(tmp_path / "blobs" / f"{number}")
        file.symlink_to(blob)
    with ParallelLoader(own, residency=LEAST) as model:
        np.testing.assert_allclose(model.run(None, feeds())[0], expected(own), rtol=1e-6, atol=1e-6)
        assert len(in_memory(model)) == 1


def test_a_bundle_that_is_removed_while_it_runs_answers_on(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = expected(own)
    monkeypatch.setattr(residency, "left_bytes", lambda: 0)
    with ParallelLoader(own, residency=LEAST) as model:
        model.wait()
        shutil.rmtree(own)
        for _ in range(2):
            np.testing.assert_allclose(model.run(None, feeds())[0], wanted, rtol=1e-6, atol=1e-6)


def test_no_bundle_means_no_residency(tmp_path: Path) -> None:
    with pytest.raises(BundleError):
        ParallelLoader(tmp_path / "none.splitload", residency="48MB")

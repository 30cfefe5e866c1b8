"""Stage files come out of a store as they would be written, by whatever name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest

from splitload.build.assemble import VariantPlan, build_bundle
from splitload.frontends.onnx import Source, load_graph
from splitload.graphs import stages
from splitload.graphs.stage_store import StageStore
from splitload.graphs.stages import StageWriter
from splitload.plan.graph import GraphKind
from splitload.plan.partition import Partition


@pytest.fixture
def plan(tmp_path: Path) -> Any:
    """Return what makes a plan of a chain of the given kind, cut at the given blocks."""
    source = Source.open(models.save(models.chain(8, width=40), tmp_path), "chain")
    graphs = {kind: load_graph(source, kind, tmp_path / "cache") for kind in ("native", "portable")}

    def make(kind: GraphKind, *cuts: int) -> VariantPlan:
        return VariantPlan(graphs[kind], Partition(len(graphs[kind].blocks), cuts), 1)

    return make


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StageStore]:
    (tmp_path / "store").mkdir()
    with StageStore(tmp_path / "store") as store:
        yield store
    assert not list((tmp_path / "store").iterdir())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list of the large files that are made from now on, in place of those that are taken."""
    names: list[str] = []
    for function in ("lay_out", "write_pieces"):
        original = getattr(stages, function)

        def noted(*args: Any, original: Any = original) -> Any:
            names.append(next(each.name for each in reversed(args) if isinstance(each, Path)))
            return original(*args)

        monkeypatch.setattr(stages, function, noted)
    return names


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def write(folder: Path, plans: list[VariantPlan], store: StageStore | None = None) -> dict[str, bytes]:
    build_bundle(folder, plans, device="host", store=store)
    return files(folder)


def test_a_bundle_of_kept_files_is_the_same_byte_for_byte(
    plan: Any, store: StageStore, made: list[str], tmp_path: Path
) -> None:
    plans = [plan("native", 2), plan("portable")]
    plain = write(tmp_path / "plain.splitload", plans)
    assert write(tmp_path / "first.splitload", plans, store) == plain
    made.clear()
    assert write(tmp_path / "second.splitload", plans, store) == plain
    assert made == []
    assert write(tmp_path / "whole.splitload", [plan("native"), plan("portable")], store) != plain
    assert made == ["native-00.part.ort"]


def test_portable_stages_are_kept_too(plan: Any, store: StageStore, made: list[str], tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.splitload", [plan("portable", 2)])
    assert write(tmp_path / "first.splitload", [plan("portable", 2)], store) == plain
    made.clear()
    assert write(tmp_path / "second.splitload", [plan("portable", 2)], store) == plain
    assert made == []


def test_a_stage_is_taken_by_another_name(plan: Any, store: StageStore, made: list[str], tmp_path: Path) -> None:
    graph = plan("native").graph
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, stem in ((first, "blocks-0-2"), (second, "native-00")):
        folder.mkdir()
        StageWriter(graph, store=store).write(*graph.node_range(0, 2), folder, stem)
    assert made == ["blocks-0-2.part.ort"]
    assert list(files(first).values()) == list(files(second).values())
    assert [name.rpartition("-")[0] for name in files(second)] == ["native-00"]


def test_other_weights_of_the_same_shape_are_other_files(store: StageStore, tmp_path: Path) -> None:
    model = models.text("a (float[1,40] x) => (float[1,40] y) { y = MatMul(x, w) }", w=np.ones((40, 40), np.float32))
    other = models.text("a (float[1,40] x) => (float[1,40] y) { y = MatMul(x, w) }", w=np.zeros((40, 40), np.float32))
    written = []
    for number, each in enumerate((model, other)):
        source = Source.open(models.save(each, tmp_path, f"{number}.onnx"), "a")
        graph = load_graph(source, "native", tmp_path / "cache")
        folder = tmp_path / str(number)
        folder.mkdir()
        StageWriter(graph, store=store).write(0, len(graph.nodes), folder, "native-00")
        written.append(files(folder))
    assert written[0].keys() != written[1].keys()


def test_without_links_files_are_copied_and_none_is_kept(
    plan: Any, store: StageStore, made: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = [plan("native", 2), plan("portable")]
    plain = write(tmp_path / "first.splitload", plans, store)

    def refuse(*_: Path) -> None:
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    made.clear()
    assert write(tmp_path / "second.splitload", plans, store) == plain
    assert made == []
    with StageStore(tmp_path / "missing") as empty:
        assert write(tmp_path / "third.splitload", plans, empty) == plain
    assert not (tmp_path / "missing").exists()

"""The portable part of a bundle under a ceiling: cut so that it keeps it, or said to keep none."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from models import chain, qdq, save

import splitload.runtime.variants
from splitload import ParallelLoader, PortableWarning
from splitload.base.errors import UsageError
from splitload.base.sizes import read_bytes
from splitload.build.assemble import VariantPlan
from splitload.build.residency import ResidencyScheme
from splitload.bundle.manifest import Manifest
from splitload.bundle.read import read_manifest
from splitload.devices.host import HostDevice
from splitload.devices.runs import WorkingMemory
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.planner.portable import Beside, with_opened, with_portable
from splitload.planner.report import LogReport
from splitload.planner.residency import MemoryLimit
from splitload.planner.write_bundle import write_bundle
from splitload.runtime.residency import Needs

WEIGHT = 4 * 400 * 400  # of each of four layers
CEILING = 2_200_000
X = {"x": np.linspace(-1, 1, 400, dtype=np.float32)[None]}


class Told(LogReport):
    """Keeps the notes."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def report() -> Told:
    return Told()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return open_source(str(save(chain(8, width=400), tmp_path)), tmp_path)


def native(source: Source, cache: Path, residency: int | str) -> VariantPlan:
    """Return a plan of four native stages under a ceiling."""
    limits = residency if isinstance(residency, int) else None
    graph = load_graph(source, "native", cache, max_weight_bytes=limits and limits // 4)
    plan, memory = MemoryLimit(None, None, graph, {}, LogReport()).least()
    return VariantPlan(graph, plan, 1, None, memory.scheme(residency))  # type: ignore[arg-type]


def written(source: Source, plan: VariantPlan, report: Told, folder: Path) -> Manifest:
    target = folder / "b.splitload"
    return write_bundle(
        target, source, plan, report, folder, device="host", tuner=HostDevice(folder), notes={}, feeds=X
    )


@pytest.mark.parametrize("residency", [CEILING, "stage"])
def test_it_keeps_the_ceiling_with_weights_of_its_own(
    source: Source, residency: int | str, report: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = written(source, native(source, tmp_path, residency), report, tmp_path)
    here, portable = manifest.variants
    assert (here.kind, here.residency, portable.residency) == ("native", residency, residency)
    assert len(portable.stages) > 1
    assert re.search(f"keeps the ceiling as well, in {len(portable.stages)} stages .* more on disk", report.notes[-1])
    own = {file.name for stage in portable.stages for file in (stage.graph, stage.weights) if file is not None}
    for stage in portable.stages:
        assert (stage.mapped, stage.optimized, stage.upgrade) == (True, True, False)
        assert own.issuperset(stage.shares)
    monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "pdp11")
    expected = ort.InferenceSession(source.path).run(None, X)
    with (
        pytest.warns(PortableWarning, match=r"for this machine$"),
        ParallelLoader(tmp_path / "b.splitload") as model,
    ):
        np.testing.assert_allclose(
            model.run(None, X)[0], expected[0], atol=1e-3
        )  # each layer makes what rounding does larger
        assert model.residency == residency
        if residency == CEILING:
            assert Needs(portable).least <= CEILING < 4 * WEIGHT
    again = with_portable(Beside(native(source, tmp_path, residency), source, report, tmp_path, X))[-1]
    kept = with_portable(Beside(native(source, tmp_path, residency), source, report, tmp_path, X, cut_as=portable))[-1]
    assert kept == again


def test_its_working_memory_is_measured_where_that_of_the_native_part_was(
    source: Source, report: Told, tmp_path: Path
) -> None:
    plan = native(source, tmp_path, CEILING)
    assert plan.scheme is not None

    class Measured:
        def runs(self, graph: Any, feeds: Any) -> Any:
            return contextlib.nullcontext(self)

        def working_memory(self, plan: Any, reserve_bytes: int) -> WorkingMemory:
            return WorkingMemory(123_456, 1600)

    measuring: Any = Measured()
    predicted = with_portable(Beside(plan, source, report, tmp_path, X, measuring))[-1].scheme
    assert predicted is not None and predicted.arena_bytes is None
    scheme = ResidencyScheme(CEILING, plan.scheme.stages, 1000, 1600)
    plan = VariantPlan(plan.graph, plan.partition, 1, None, scheme)
    found = with_portable(Beside(plan, source, report, tmp_path, X, measuring))[-1].scheme
    assert found is not None and (found.arena_bytes, found.input_bytes) == (123_456, 1600)


def test_where_none_fits_the_least_is_said_and_does(
    source: Source, report: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = written(source, native(source, tmp_path, 300_000), report, tmp_path)
    assert manifest.variants[-1].residency is None
    (note,) = report.notes
    assert "the portable part for other machines keeps no ceiling and is loaded as a whole: no plan of up to" in note
    least = read_bytes(note.rpartition(" is ")[2])
    assert with_portable(Beside(native(source, tmp_path, least), source, report, tmp_path, X))[-1].scheme is not None
    monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "pdp11")
    bundle = tmp_path / "b.splitload"
    with pytest.warns(PortableWarning, match="It keeps no ceiling on memory, as a native one does"):
        ParallelLoader(bundle).close()
    with pytest.raises(UsageError, match=r"does not say what its portable stages take .* 'splitload specialize'"):
        ParallelLoader(bundle, residency="64MB")
    assert read_manifest(bundle).variants[-1].stages[0].shares, "weights of the native part"


def test_what_is_trained_stays_a_stage_of_its_own(source: Source, report: Told, tmp_path: Path) -> None:
    plans, opened = with_opened(Beside(native(source, tmp_path, CEILING), source, report, tmp_path, X), "1")
    portable, last = plans[-1], len(opened.graph.blocks) - 1
    assert portable.scheme is not None
    assert portable.partition.num_stages > 2
    assert portable.partition.bounds[-2] == portable.trainable_from == last
    assert len(portable.scheme.stages) == portable.partition.num_stages


def test_a_graph_that_has_to_be_optimised_at_load_keeps_none(report: Told, tmp_path: Path) -> None:
    source = open_source(str(save(qdq(), tmp_path)), tmp_path)
    plan = with_portable(Beside(native(source, tmp_path, CEILING), source, report, tmp_path))[-1]
    assert (plan.scheme, plan.partition.num_stages) == (None, 1)
    assert "keeps no ceiling and is loaded as a whole: it computes with quantised" in report.notes[0]

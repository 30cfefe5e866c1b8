"""Bundles whose portable stage restores weights: made before, optimised at load, and now, taken as it is at first."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

import splitload.runtime.variants
from splitload import ParallelLoader
from splitload.bundle.read import read_manifest

GOLDEN = Path(__file__).parent / "golden"
WAIT_S = 60


@pytest.mark.filterwarnings("ignore::splitload.PortableWarning")
@pytest.mark.parametrize("engine", ["library", "python"])
@pytest.mark.parametrize(("name", "optimized"), [("v2-filters-at-load", False), ("v2-filters", True)])
def test_both_answer_before_and_after_the_upgrade(
    name: str, optimized: bool, engine: Literal["library", "python"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never made anew: their native parts are of x86-64 with AVX-512F, and neither is to run here."""
    monkeypatch.setattr(splitload.runtime.variants, "cpu_architecture", lambda: "abacus")
    bundle = GOLDEN / f"{name}.splitload"
    native, portable = read_manifest(bundle, "hashes").variants
    (stage,) = portable.stages
    assert (stage.optimized, stage.reoptimize) == (optimized, optimized)
    assert stage.upgrade
    assert [*stage.shares] == [native.stages[0].graph.name]
    assert stage.weights is None
    expected = json.loads((GOLDEN / "expected-filters.json").read_text())
    feeds = {name: np.array(value, np.float32) for name, value in expected["feeds"].items()}
    with ParallelLoader(bundle, engine=engine) as model:
        assert model.variant.kind == "portable"
        for _ in range(2):
            (got,) = model.run(None, feeds)
            assert np.allclose(got, np.array(expected["outputs"]["y"], np.float32), atol=1e-5)
            assert model.wait("upgraded", WAIT_S)

"""The execution scheme under a ceiling: weights stay mapped, nothing is tuned, and what needs more is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitload.base.errors import ModelError
from splitload.build.residency import needs_of_stages, with_residency
from splitload.bundle.manifest import Variant
from splitload.bundle.read import read_manifest
from splitload.plan.memory import StageNeeds


@pytest.fixture
def variant(chain_bundle: Path) -> Variant:
    return read_manifest(chain_bundle).variants[0]


def test_what_it_says_reads_back(variant: Variant) -> None:
    tuned = variant._replace(
        stages=tuple(stage._replace(mapped=False, prefetch=True, upgrade=True) for stage in variant.stages)
    )
    needs = [StageNeeds(number, 2, 3, 4) for number in range(len(tuned.stages))]
    made = with_residency(tuned, 40_000_000, needs, arena_bytes=5, input_bytes=6)
    assert (made.residency, made.arena_bytes, made.input_bytes) == (40_000_000, 5, 6)
    assert needs_of_stages(made) == needs
    assert needs_of_stages(variant) is None
    for stage in made.stages:
        assert (stage.mapped, stage.prefetch, stage.prepack, stage.upgrade) == (True, False, False, False)
    assert with_residency(tuned, "stage", needs).arena_bytes is None


def test_rearranged_weights_cannot_leave_memory(variant: Variant) -> None:
    first, *others = variant.stages
    packed = variant._replace(stages=(first._replace(prepack=True), *others))
    with pytest.raises(ModelError, match=f"stage 1, '{first.name}', computes with rearranged weights, .* --residency"):
        with_residency(packed, 40_000_000, [])

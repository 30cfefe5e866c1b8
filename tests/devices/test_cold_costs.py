"""Costs of cold files: reading is told from preparing, in samples, in their medians and in estimates."""

from __future__ import annotations

import pytest

from splitload.devices.estimate import estimate
from splitload.devices.ledger import median_cost
from splitload.devices.runs import _cost
from splitload.plan.partition import Partition
from splitload.plan.profile import BlockProfile, Cost, Profile
from splitload.plan.schedule import Contention

ROW = {"load_s": 1.0, "first_inference_s": 0.5, "inference_s": 0.25, "load_wait_s": 0.75, "first_wait_s": 0.125}


def test_what_a_first_inference_reads_counts_as_loading_where_files_are_cold() -> None:
    assert _cost(ROW, is_cold=False) == Cost(1.0, 0.5, 0.25)
    assert _cost(ROW, is_cold=True) == Cost(1.125, 0.375, 0.25, 0.875)


def test_medians_have_what_was_read() -> None:
    assert median_cost([Cost(1.0, 1.0, 1.0, read) for read in (0.1, 0.3, 0.2)]).read_s == 0.2


def test_an_estimate_shares_reading_out_by_bytes() -> None:
    blocks = tuple(
        BlockProfile(f"b{number}", weights, Cost(0.01, 0.01, 0.01)) for number, weights in enumerate((100, 300))
    )
    prior = Profile("m", "a" * 64, "native", "dev", "simulated", blocks, 0.0, Contention(2))
    measured = {
        (0, 2): Cost(4.2, 0.1, 0.1, 4.0), (0, 1): Cost(1.1, 0.05, 0.05, 1.0), (1, 2): Cost(3.1, 0.05, 0.05, 3.0),
    }  # fmt: skip
    made = estimate(prior, [Partition(2), Partition(2, (1,))], measured)
    assert [block.cost.read_s for block in made.blocks] == pytest.approx([1.0, 3.0])
    assert [block.cost.load_s for block in made.blocks] == pytest.approx([1.1, 3.1], abs=0.02)
    assert made.whole() == measured[0, 2]
    # two stages read one after the other, and what storage does not do goes on beside it
    assert made.schedule(Partition(2, (1,))).ttfo_s < made.schedule(Partition(2)).ttfo_s

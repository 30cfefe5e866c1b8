"""What a benchmark measured is a gain, and what of it the cut makes."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from splitload.base.errors import ModelError
from splitload.bundle.manifest import TensorSpec
from splitload.planner.gain import gain_of, measure_gain


def test_what_stock_cannot_return_is_not_measured() -> None:
    graph = cast(Any, SimpleNamespace(output_tensors=lambda: [TensorSpec("y", "tensor(bfloat16)", None)]))
    with pytest.raises(ModelError, match="cannot return the output 'y', a tensor"):
        measure_gain(cast(Any, None), cast(Any, None), graph, Path("b.splitload"), 1, {}, None)


def test_a_benchmark_says_what_it_measured() -> None:
    def arm(ttfo_s: float) -> dict[str, dict[str, float]]:
        return {"ttfo_s": {"median": ttfo_s}, "process_s": {"median": 2 * ttfo_s}}

    arms = {"stock": arm(0.8), "tuned": arm(0.3), "splitload": arm(0.2)}
    trial = {"num_stages": 2, "split_ttfo_s": 0.25, "whole_ttfo_s": 0.5}
    assert gain_of({"stock": arm(1.0), "tuned": arm(1.0)}, 2, 9) is None
    for stages, of_trial, cut in ((1, trial, None), (2, trial, 2.0), (2, None, 1.5), (3, trial, 1.5)):
        gain = gain_of(arms, stages, 9, of_trial)
        assert gain is not None
        assert gain.ratio == pytest.approx(4.0)
        assert gain.cut_ratio == (cut if cut is None else pytest.approx(cut))
        assert gain.layout_ratio == pytest.approx(4.0 / (cut or 1.0))

"""Inputs for a crowd, and whether its answers are those of the bundle on one machine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import runtime_models

from splitload import ParallelLoader


def inputs(count: int) -> list[dict[str, Any]]:
    return [runtime_models.feeds(seed=seed) for seed in range(count)]


def check(bundle: Path, given: Sequence[Mapping[str, Any]], got: Sequence[Any]) -> None:
    with ParallelLoader(bundle, upgrade=False) as model:
        names = [spec.name for spec in model.get_outputs()]
        for feeds, outputs in zip(given, got, strict=True):
            for name, expected in zip(names, model.run(None, feeds), strict=True):
                np.testing.assert_array_equal(outputs[name], expected)

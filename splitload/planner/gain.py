"""What a bundle gains, and what of it comes from layout and mapping, what from the cut."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from splitload.base.errors import ModelError
from splitload.devices import Measuring
from splitload.frontends.onnx import Source
from splitload.measure.sampling import Arm, Sample
from splitload.plan.graph import ModelGraph
from splitload.runtime.answers import unreturned

GAIN_RUNS = 3  # fresh processes of each arm, at the end of `splitload train`


@dataclass(frozen=True, slots=True)
class Gain:
    """Times of a bundle beside those of a stock session, or of one stage where no stock session can be asked.

    Attributes:
        source: "measured", "simulated" or "predicted".
        num_stages: Stages of the bundle.
        here: Seconds of the bundle: "ttfo_s", and "process_s" from the start of the interpreter where measured.
        other: The same of a stock session where measured; else of the whole model as one stage on the same device.
        runs: Fresh processes behind each median; 0 where nothing was measured.
        cut_ratio: How many times as long one stage of the same layout takes to its first output; None where there is no
            cut, or where nobody knows.
    """

    source: str
    num_stages: int
    here: Mapping[str, float]
    other: Mapping[str, float]
    runs: int = 0
    cut_ratio: float | None = None

    @property
    def ratio(self) -> float:
        """How many times as long the other takes to its first output."""
        return self.other["ttfo_s"] / self.here["ttfo_s"]

    @property
    def layout_ratio(self) -> float | None:
        """What layout and mapping alone make of `ratio`; None where that is not known."""
        if self.source != "measured":
            return None
        if self.num_stages == 1:
            return self.ratio
        return None if self.cut_ratio is None else self.ratio / self.cut_ratio

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` prints of it; None where something is not known."""
        measured = self.source == "measured"
        return {
            "source": self.source,
            "runs": self.runs,
            "splitload": dict(self.here),
            "stock": dict(self.other) if measured else None,
            "one_stage": None if measured else dict(self.other),
            "ratio": self.ratio,
            "layout_ratio": self.layout_ratio,
            "cut_ratio": self.cut_ratio,
        }


def measure_gain(
    device: Measuring,
    source: Source,
    graph: ModelGraph,
    bundle: Path,
    num_stages: int,
    feeds: Mapping[str, Any],
    cut_ratio: float | None,
) -> Gain:
    """Measure a bundle beside a stock session on a device, `GAIN_RUNS` times each, in turns, with its page cache.

    Raises:
        ModelError: If a stock session cannot return what the model computes.
        StageError: If one of the two fails.
    """
    if reason := unreturned(graph.output_tensors()):
        raise ModelError(reason)
    arms = [Arm("stock", source.path), Arm("splitload", bundle)]
    samples: dict[str, list[Sample]] = {arm.name: [] for arm in arms}
    for turn in range(GAIN_RUNS):
        for arm in arms if turn % 2 == 0 else reversed(arms):
            samples[arm.name].append(device.first_output(arm, graph.input_tensors(), feeds))
    stock, here = (
        {key: statistics.median(sample[key] for sample in samples[arm.name]) for key in ("ttfo_s", "process_s")}
        for arm in arms
    )
    return Gain("measured", num_stages, here, stock, GAIN_RUNS, cut_ratio)


def gain_of(
    arms: Mapping[str, Mapping[str, Mapping[str, float]]], num_stages: int, runs: int, trial: Any = None
) -> Gain | None:
    """Return the gain that a benchmark measured.

    What one stage takes is known from the trial that chose the plan; otherwise a tuned single session stands for it.

    Args:
        arms: What `summarize` returns, by the name of the arm.
        num_stages: Stages of the bundle.
        runs: Samples of each arm.
        trial: The trial in the notes of the bundle's plan, if there was one.

    Returns:
        None where stock or splitload was not among the arms.
    """
    if not {"stock", "splitload"} <= arms.keys():
        return None
    stock, here = (
        {key: arms[name][key]["median"] for key in ("ttfo_s", "process_s")} for name in ("stock", "splitload")
    )
    cut_ratio = None
    if num_stages > 1 and isinstance(trial, dict) and trial.get("num_stages") == num_stages:
        cut_ratio = trial["whole_ttfo_s"] / trial["split_ttfo_s"]
    elif num_stages > 1 and "tuned" in arms:
        cut_ratio = arms["tuned"]["ttfo_s"]["median"] / here["ttfo_s"]
    return Gain("measured", num_stages, here, stock, runs, cut_ratio)

"""What `planner.train` came to: the plan, what was measured of it, and the bundle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from splitload.build.agreement import Agreement
from splitload.bundle.manifest import Training
from splitload.plan.graph import ModelGraph
from splitload.plan.profile import Profile
from splitload.planner.crowd_plan import prediction
from splitload.planner.found_plan import FoundPlan
from splitload.planner.gain import Gain
from splitload.planner.make_plan import Planned
from splitload.planner.request import TrainRequest
from splitload.planner.trial import Trial
from splitload.training.division import Division


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A plan, the bundle made of it, and what is known of both.

    Attributes:
        request: What was asked for.
        graph: The model on the device.
        planned: What the search came to.
        found: The plan that was built: what was found, the whole model where a cut did not pay, with a cut before what
            is trained.
        trial: How the plan was measured beside the whole model before it was taken, if it was.
        division: What is trained on the device, if anything is.
        training: What trains it, as the manifest has it; None where it cannot be trained.
        stages: What each stage costs.
        agreement: How far the bundle's outputs are from a stock session's.
        gain: What the bundle gains; None where that could not be measured.
        replaced: Whether a bundle was there, which this one took the place of.
    """

    request: TrainRequest
    graph: ModelGraph
    planned: Planned
    found: FoundPlan
    trial: Trial | None
    division: Division | None
    training: Training | None
    stages: Profile
    agreement: Agreement
    gain: Gain | None
    replaced: bool

    @property
    def profile(self) -> Profile:
        """What the plan was found by."""
        return self.planned.profile

    @property
    def predicted_ttfo_s(self) -> float:
        """Predicted time to first output, in seconds."""
        return self.profile.schedule(self.found.partition).ttfo_s

    @property
    def measured_ttfo_s(self) -> float | None:
        """Measured time to first output, in seconds; None where it was not measured."""
        return self.gain.here["ttfo_s"] if self.gain is not None and self.gain.source == "measured" else None

    @property
    def streamed_bytes(self) -> int | None:
        """Predicted bytes of weights that come again in each inference; None where no size limits memory."""
        memory = self.planned.memory
        if memory is None or memory.ceiling is None:
            return None
        return memory.ceiling.streamed_bytes(list(self.found.partition.stages()))

    def to_json(self) -> dict[str, Any]:
        """Return what `splitload train --json` prints."""
        partition, gain = self.found.partition, self.gain
        result: dict[str, Any] = {
            "model": self.request.model,
            "device": self.request.device,
            "objective": self.request.objective,
            "plan": {
                "num_stages": partition.num_stages,
                "split_points": list(partition.split_points),
                "num_blocks": self.profile.num_blocks,
            },
            "found_by": self.found.found_by,
            "value": {**self.found.values_s, "exact_bound": self.found.exact_bound_s},
            "ttfo_s": {"predicted": self.predicted_ttfo_s, "measured": self.measured_ttfo_s},
            "gain": None if gain is None else gain.to_json(),
            "trial": None if self.trial is None else self.trial.to_json(),
            "trained": None if self.division is None else _trained(self.division, self.training),
            "episodes": self.found.episodes,
            "search_s": self.found.search_s,
            "agreement": self.agreement.to_json(),
            "bundle": str(self.request.target),
            "replaced": self.replaced,
        }
        if (memory := self.planned.memory) is not None:
            result["memory"] = {
                "residency": self.planned.residency(self.request),
                **memory.to_json(self.streamed_bytes),
            }
        if (crowd := self.planned.crowd) is not None:
            result["crowd"] = prediction(crowd, self.profile, partition)
        if self.planned.runs:
            result["seeds"] = [run.to_json() for run in self.planned.runs]
        if self.planned.measured_loads is not None:
            result["measured_loads"] = self.planned.measured_loads
        return result


def _trained(division: Division, training: Training | None) -> dict[str, Any]:
    """Return what is said of what is trained; without steps or output where it cannot be."""
    layers = [
        {"name": each.name, "weights": list(each.weights), "num_weights": each.num_weights} for each in division.layers
    ]
    return {
        "layers": layers,
        "num_weights": sum(each.num_weights for each in division.layers),
        "output": None if training is None else training.output,
        "output_kind": None if training is None else training.output_kind,
        "output_doubt": None if training is None else training.output_doubt,
        "steps": [] if training is None else [[each.loss, each.optimizer] for each in training.steps],
    }

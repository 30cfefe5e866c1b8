"""What trains a tail on a device: its weights, and the graph that changes them by one batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from splitload.base.errors import BundleError, UsageError
from splitload.base.regular import read_checked
from splitload.bundle.manifest import Loss, OutputKind, StageEntry, Step, Training
from splitload.deploy.arguments import Settings
from splitload.runtime.stock import stock_session

OURS = "splitload/"  # what names in a step that are not the model's begin with; in version 1 nothing
Array = np.ndarray[Any, Any]


class AnyLearner(Protocol):
    """What changes the weights of a tail: `Learner`, or one that needs more than a device has.

    Attributes:
        learning_rate: What each step is taken with.
        output_kind: What the output is taken as, see `Training`; in version 1 known from the first step on.
    """

    learning_rate: float
    output_kind: OutputKind | None

    def step(self, features: Mapping[str, Array], target: Array) -> float: ...  # noqa: D102
    def look(  # noqa: D102
        self, features: Mapping[str, Array], target: Array, weights: Mapping[str, Array] | None = None
    ) -> tuple[float, Array]: ...
    def weights(self) -> dict[str, Array]: ...  # noqa: D102


def step_for(training: Training, loss: str, optimizer: str) -> Step | None:
    """Return the training step of a bundle for a loss and an optimiser, None if it has none."""
    return next((each for each in training.steps if (each.loss, each.optimizer) == (loss, optimizer)), None)


class Learner:
    """The weights of a tail and the graph that changes them; everything stays in the runtime from step to step.

    Args:
        folder: The bundle.
        stage: Its last stage.
        training: Which graphs there are.
        loss: Which loss.
        settings: Which optimiser, and its numbers.
        weights: To begin with.

    Raises:
        UsageError: If there is no training step for that loss and optimiser.
        BundleError: If the step is damaged, or does not fit the weights.
    """

    def __init__(
        self,
        folder: Path,
        stage: StageEntry,
        training: Training,
        loss: Loss,
        settings: Settings,
        weights: Mapping[str, Array],
    ) -> None:
        import onnxruntime as ort

        step = step_for(training, loss, settings.optimizer)
        if step is None:
            there = ", ".join(f"{each.loss} with {each.optimizer}" for each in training.steps) or "none"
            raise UsageError(
                f"the bundle has no training step for {loss} with {settings.optimizer}; it has: {there}; "
                "'splitload finetune' trains without one where torch is installed"
            )
        options = ort.SessionOptions()
        options.log_severity_level = 4
        # a step takes as long without them, and less memory
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        self._ort = ort
        data = read_checked(folder / step.file.name, step.file)
        try:
            self._session = stock_session(data, options)
        except Exception as error:  # onnxruntime has no common root for its errors
            raise BundleError(
                f"the training step '{folder / step.file.name}' does not load: {' '.join(str(error).split())[:200]}"
            ) from error
        self._only_forward = ort.RunOptions()
        self._only_forward.only_execute_path_to_fetches = True
        self._output = training.output
        self._names = [weight.name for weight in training.weights]
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        outputs = [value.name for value in self._session.get_outputs()]
        self._ours = OURS if f"{OURS}loss" in outputs else ""
        new = f"{self._ours}new/"
        self._changed = [name.removeprefix(new) for name in outputs if name.startswith(new)]
        states = {name: self._weight_of(name) for name in self._changed if name not in weights}
        fits = all(inputs.get(weight.name) == list(weight.shape) for weight in training.weights)
        fits = fits and {f"{self._ours}target", *training.features, *self._changed} <= inputs.keys()
        if (
            not fits
            or not {f"{self._ours}loss", self._output} <= {*outputs}
            or not weights.keys() >= {*states.values()}
        ):
            raise BundleError(f"the training steps of '{folder}' do not fit its weights; copy the bundle again")
        self.learning_rate, self.output_kind = settings.rate, training.output_kind
        numbers = {
            "learning_rate": self.learning_rate,
            "weight_decay": settings.weight_decay,
            "momentum": settings.momentum,
            "step": 0.0,
        }
        self._numbers = {name: value for name, value in numbers.items() if f"{self._ours}{name}" in inputs}
        # what is no weight is a state of the optimiser, which begins with zeros
        begin = {**weights, **{name: np.zeros_like(weights[of]) for name, of in states.items()}}
        self._values = {name: self._held(begin[name]) for name in self._changed}

    def _weight_of(self, state: str) -> str:
        """Return the name of the weight that a state, `STATE/NAME`, is of."""
        return state.removeprefix(self._ours).partition("/")[2]

    def step(self, features: Mapping[str, Array], target: Array) -> float:
        """Change the weights by one batch, and return its loss before that."""
        if "step" in self._numbers:
            self._numbers["step"] += 1
        names = [f"{self._ours}loss", *(f"{self._ours}new/{name}" for name in self._changed)]
        loss, *changed = self._session.run_with_ort_values(names, self._feeds(features, target))
        self._values = dict(zip(self._changed, changed, strict=True))
        return float(loss.numpy())

    def look(
        self, features: Mapping[str, Array], target: Array, weights: Mapping[str, Array] | None = None
    ) -> tuple[float, Array]:
        """Return the loss and the output of a batch, by other weights where they are given; nothing changes."""
        feeds = self._feeds(features, target)
        if weights is not None:
            feeds |= {name: self._held(weights[name]) for name in self._names}
        names = [f"{self._ours}loss", self._output]
        loss, output = self._session.run_with_ort_values(names, feeds, self._only_forward)
        return float(loss.numpy()), output.numpy()

    def weights(self) -> dict[str, Array]:
        """Return the weights as they are, by name."""
        return {name: self._values[name].numpy() for name in self._names}

    def _feeds(self, features: Mapping[str, Array], target: Array) -> dict[str, Any]:
        numbers = {f"{self._ours}{name}": np.array(each, "f4") for name, each in self._numbers.items()}
        arrays = {**features, f"{self._ours}target": target, **numbers}
        return {name: self._held(array) for name, array in arrays.items()} | self._values

    def _held(self, array: Array) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))

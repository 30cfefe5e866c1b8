"""On-device personalization: `python -m splitload.deploy.personalize BUNDLE --data train.npz`, or `splitload finetune`.

The frozen stages run as they always do, once for each sample, when it is first needed; what they give, the features, is
kept. The last stage alone is trained, by the steps that lie in the bundle, and written beside the original. Neither
torch nor onnx is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from splitload.bundle import read_manifest
from splitload.deploy.arguments import Settings, add_arguments, settings_of
from splitload.deploy.features import Features
from splitload.deploy.samples import Samples, read_samples
from splitload.errors import BundleError, OutputError, SplitloadError, TrainingError, UsageError
from splitload.manifest import DEFAULT_TAIL, StageEntry, Step, Training
from splitload.scratch import scratch_folder
from splitload.tails import current_version, open_tail, read_weights, revert, write_tail

Array = np.ndarray[Any, Any]


class AnyLearner(Protocol):
    """What changes the weights of a tail: `Learner`, or one that needs more than a device has."""

    learning_rate: float

    def step(self, features: Mapping[str, Array], target: Array) -> float: ...  # noqa: D102
    def look(self, features: Mapping[str, Array], target: Array) -> tuple[float, Array]: ...  # noqa: D102
    def weights(self) -> dict[str, Array]: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Epoch:
    """One time through the samples.

    Attributes:
        number: Counts from 1.
        loss: Mean over the training samples, each before its step.
        loss_after: Mean after the epoch, by which epochs are compared: over the validation samples, or over the
            training samples where there are none.
        valid_loss: Mean over the validation samples after the epoch, None without such.
        valid_accuracy: Share of them whose class is right, None where there are no classes.
    """

    number: int
    loss: float
    loss_after: float
    valid_loss: float | None
    valid_accuracy: float | None


@dataclass(frozen=True, slots=True)
class Personalized:
    """What came of it.

    Attributes:
        tail: Name of the new last stage.
        version: Its version.
        best: The epoch whose weights were kept.
        epochs: All of them.
    """

    tail: str
    version: int
    best: Epoch
    epochs: tuple[Epoch, ...]


def personalize(
    bundle: str | Path,
    data: str | Path,
    valid: str | Path | None = None,
    *,
    settings: Settings | None = None,
    tail: str = DEFAULT_TAIL,
    threads: int | None = None,
    on_features: Callable[[int, int], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    make_learner: Callable[..., AnyLearner] | None = None,
) -> Personalized:
    """Train the last stage of a bundle and write it as a new version of a tail; training goes on where that one stands.

    Args:
        bundle: The `NAME.splitload` folder, built with trainable layers.
        data: An .npz file: an array for each input of the model, by its name (or "x" for the only one), and "y":
            classes, or wanted outputs.
        valid: The same, of samples that are not trained on.
        settings: How it is trained.
        tail: Whose it is.
        threads: Loading threads, see `ParallelLoader`.
        on_features: Called as `on_features(samples, total)` while the frozen stages run: before the first step on
            its batch, before the second on all other samples.
        on_step: Called as `on_step(steps, loss)` after each step, with the mean loss of its samples before it.
        on_epoch: Called after each epoch.
        make_learner: What trains the last stage, called as `Learner` is, which is the default.

    Raises:
        UsageError: If the bundle has no trainable stage, or data or settings do not fit.
        BundleError: If the bundle is damaged.
        TrainingError: If the loss is no number any more; the bundle is as it was.
        OutputError: If the tail cannot be written; it is as it was.
    """
    settings = settings or Settings()
    folder = Path(bundle).resolve()
    manifest = read_manifest(folder)
    training = manifest.training
    if training is None:
        raise UsageError(
            f"'{bundle}' has no trainable stage; 'splitload train MODEL --trainable SPEC' makes one that has"
        )
    stage = manifest.variants[-1].stages[-1]
    current_version(folder, tail)  # the name, before any work is done
    samples = read_samples(Path(data), manifest, settings.loss)
    others = None if valid is None else read_samples(Path(valid), manifest, samples.loss)
    sets = [samples] if others is None else [samples, others]
    with _scratch(folder) as made:
        features = Features(
            folder, training.features, sets, made,
            batch_size=settings.batch_size, threads=threads, on_features=on_features,
        )  # fmt: skip
        learner = (make_learner or Learner)(
            folder, stage, training, samples.loss, settings, _start(folder, tail, stage, training)
        )
        epochs = []
        best: Epoch | None = None
        weights: dict[str, Array] = {}
        for epoch in _epochs(learner, features, sets, settings, on_step):
            epochs.append(epoch)
            if on_epoch is not None:
                on_epoch(epoch)
            if best is None or epoch.loss_after < best.loss_after:
                best, weights = epoch, learner.weights()
            elif epoch.number - best.number >= settings.patience:
                break
    assert best is not None  # noqa: S101 - there is at least one epoch
    notes = {"settings": asdict(settings), "loss": samples.loss, "samples": samples.count, "epoch": asdict(best)}
    written = write_tail(folder, tail, stage, training, weights, notes)
    return Personalized(tail, written.version, best, tuple(epochs))


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder in the bundle for features.

    Raises:
        OutputError: If the bundle cannot be written to, or there is no room for them.
    """
    try:
        with scratch_folder(folder, ".features-") as made:
            yield made
    except OSError as error:
        if isinstance(error, SplitloadError):
            raise
        raise OutputError(f"cannot write to '{folder}': {error.strerror or error}; the tail is as it was") from error


def _start(folder: Path, tail: str, stage: StageEntry, training: Training) -> dict[str, Array]:
    """Return the weights to begin with: those of the tail as it is, or as built."""
    assert stage.weights is not None  # noqa: S101 - `validate` saw to it
    now = open_tail(folder, tail, stage, verify="hashes")
    return read_weights((folder if now is None else now.graph.parent) / stage.weights.name, training)


def _epochs(
    learner: AnyLearner,
    features: Features,
    sets: Sequence[Samples],
    settings: Settings,
    on_step: Callable[[int, float], None] | None,
) -> Iterator[Epoch]:
    """Train on the first set, and yield each epoch when it is over, judged by the second if there is one."""
    samples = sets[0]
    rng = np.random.default_rng(settings.seed)
    steps = 0
    for number in range(1, settings.epochs + 1):
        order = rng.permutation(samples.count)
        total = 0.0
        for start in range(0, samples.count, settings.batch_size):
            rows = np.sort(order[start : start + settings.batch_size])
            loss = learner.step(features.of(0, rows), samples.target[rows])
            _check_finite(loss, number, learner)
            total += loss * len(rows)
            steps += 1
            if on_step is not None:
                on_step(steps, loss)
        after, accuracy = _judge(learner, features, len(sets) - 1, sets[-1], settings.batch_size)
        _check_finite(after, number, learner)
        known = (None, None) if len(sets) == 1 else (after, accuracy)
        yield Epoch(number, total / samples.count, after, *known)


def _check_finite(loss: float, epoch: int, learner: AnyLearner) -> None:
    if not np.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} in epoch {epoch}: nothing was written; give a smaller --lr than "
            f"{learner.learning_rate:g}"
        )


def _judge(
    learner: AnyLearner, features: Features, place: int, samples: Samples, batch_size: int
) -> tuple[float, float | None]:
    """Return the loss of a set of samples, and the share of right classes."""
    total, right = 0.0, 0
    for start in range(0, samples.count, batch_size):
        rows = np.arange(start, min(start + batch_size, samples.count))
        target = samples.target[rows]
        loss, output = learner.look(features.of(place, rows), target)
        total += loss * len(target)
        right += int((output.argmax(axis=-1) == target).sum()) if samples.loss == "cross-entropy" else 0
    return total / samples.count, right / samples.count if samples.loss == "cross-entropy" else None


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
    """

    def __init__(
        self,
        folder: Path,
        stage: StageEntry,
        training: Training,
        loss: str,
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
        self._session = ort.InferenceSession(str(folder / step.file.name), options, providers=["CPUExecutionProvider"])
        self._only_forward = ort.RunOptions()
        self._only_forward.only_execute_path_to_fetches = True
        self._output = training.output
        self._names = [weight.name for weight in training.weights]
        self.learning_rate = settings.rate
        numbers = {
            "learning_rate": self.learning_rate,
            "weight_decay": settings.weight_decay,
            "momentum": settings.momentum,
            "step": 0.0,
        }
        inputs = {value.name: value.shape for value in self._session.get_inputs()}
        for weight in training.weights:
            if inputs.get(weight.name) != list(weight.shape):
                raise BundleError(f"the training steps of '{folder}' do not fit its weights; copy the bundle again")
        self._numbers = {name: value for name, value in numbers.items() if name in inputs}
        outputs = [value.name for value in self._session.get_outputs()]
        self._changed = [name.removeprefix("new/") for name in outputs if name.startswith("new/")]
        if missing := [name for name in self._changed if name not in weights and name.partition("/")[2] not in weights]:
            raise BundleError(f"'{folder}' has training steps for '{missing[0]}', and no such weight; copy it again")
        # what is no weight is a state of the optimiser, STATE/NAME, which begins with zeros
        states = {
            name: np.zeros(weights[name.partition("/")[2]].shape, "f4") for name in self._changed if name not in weights
        }
        values = {name: {**weights, **states}[name] for name in self._changed}
        self._values = {name: self._held(value) for name, value in values.items()}

    def step(self, features: Mapping[str, Array], target: Array) -> float:
        """Change the weights by one batch, and return its loss before that."""
        if "step" in self._numbers:
            self._numbers["step"] += 1
        names = ["loss", *(f"new/{name}" for name in self._changed)]
        loss, *changed = self._session.run_with_ort_values(names, self._feeds(features, target))
        self._values = dict(zip(self._changed, changed, strict=True))
        return float(loss.numpy())

    def look(self, features: Mapping[str, Array], target: Array) -> tuple[float, Array]:
        """Return the loss and the output of a batch; nothing changes."""
        names = ["loss", self._output]
        loss, output = self._session.run_with_ort_values(names, self._feeds(features, target), self._only_forward)
        return float(loss.numpy()), output.numpy()

    def weights(self) -> dict[str, Array]:
        """Return the weights as they are, by name."""
        return {name: self._values[name].numpy() for name in self._names}

    def _feeds(self, features: Mapping[str, Array], target: Array) -> dict[str, Any]:
        arrays = {**features, "target": target, **{name: np.array(each, "f4") for name, each in self._numbers.items()}}
        return {name: self._held(array) for name, array in arrays.items()} | self._values

    def _held(self, array: Array) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


def main(words: Sequence[str] | None = None) -> int:
    """Personalize from the command line, printing one JSON object a line: an epoch each, and then the result."""
    parser = argparse.ArgumentParser(prog="personalize", description="Train the last stage of a bundle on this device.")
    add_arguments(parser)
    options = parser.parse_args(words)
    try:
        if options.revert:
            version = revert(Path(options.bundle).resolve(), options.tail)
            print(json.dumps({"tail": options.tail, "version": version}))  # noqa: T201
            return 0
        if options.data is None:
            raise UsageError("--data is missing; give an .npz file to train on")
        result = personalize(
            options.bundle,
            options.data,
            options.valid,
            settings=settings_of(options),
            tail=options.tail,
            threads=options.threads,
            on_epoch=lambda epoch: print(json.dumps(asdict(epoch)), flush=True),  # noqa: T201
        )
    except SplitloadError as error:
        print(f"personalize: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("personalize: interrupted; nothing was written", file=sys.stderr)  # noqa: T201
        return 130
    print(json.dumps({"tail": result.tail, "version": result.version, "best": asdict(result.best)}))  # noqa: T201
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

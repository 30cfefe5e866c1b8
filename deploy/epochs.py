"""Goes through the samples again and again, tells how good the tail is after each time, and keeps the best."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from splitload.base.errors import TrainingError
from splitload.bundle.manifest import Loss
from splitload.deploy.arguments import Settings
from splitload.deploy.features import Features
from splitload.deploy.learner import AnyLearner
from splitload.deploy.samples import Samples

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One time through the samples.

    Attributes:
        number: Counts from 1; 0 is the tail as it was before.
        loss: Mean over the training samples, each before its step; None for 0, which makes none.
        loss_after: Mean after the epoch, by which epochs are compared: over the validation samples, or over the
            training samples where there are none.
        valid_loss: Mean over the validation samples after the epoch, None without such.
        valid_accuracy: Share of them whose class is right, None where there are no classes.
    """

    number: int
    loss: float | None
    loss_after: float
    valid_loss: float | None
    valid_accuracy: float | None


@dataclass(frozen=True, slots=True)
class Personalized:
    """What came of it.

    Attributes:
        tail: Name of the last stage.
        version: Its version that counts now; 0 for the last stage as the bundle was built.
        before: How good it was before training, as epoch 0.
        best: The epoch whose weights count now.
        epochs: All epochs of training.
    """

    tail: str
    version: int
    before: Epoch
    best: Epoch
    epochs: tuple[Epoch, ...]

    @property
    def improved(self) -> bool:
        """Whether an epoch became better than the tail was before; otherwise nothing was written."""
        return self.best.number > 0


@dataclass(slots=True)
class Course:
    """How training went so far; an interrupt may come between any two lines.

    Attributes:
        epochs: All of them, epoch 0 first.
        best: The one with the smallest loss, and its weights: together, as one is nothing without the other.
        saved: The version that was written; None before.
        interrupted: Whether an interrupt came.
    """

    epochs: list[Epoch] = field(default_factory=list)
    best: tuple[Epoch, Mapping[str, Array]] | None = None
    saved: int | None = None
    interrupted: bool = False

    def run(
        self,
        epochs: Iterator[Epoch],
        learner: AnyLearner,
        begin: Mapping[str, Array],
        settings: Settings,
        on_epoch: Callable[[Epoch], None] | None,
    ) -> None:
        """Go through the epochs until none was better for `settings.patience` of them, or an interrupt comes."""
        try:
            for epoch in epochs:
                if self.best is None or epoch.loss_after < self.best[0].loss_after:
                    self.best = (epoch, learner.weights() if epoch.number else begin)
                self.epochs.append(epoch)
                if on_epoch is not None:
                    on_epoch(epoch)
                if epoch.number - self.best[0].number >= settings.patience:
                    break
        except KeyboardInterrupt:
            self.interrupted = True

    def write(
        self, write: Callable[[Mapping[str, Array], Mapping[str, Any]], tuple[int | None, bool]], notes: dict[str, Any]
    ) -> None:
        """Write the best epoch, where it is better than the tail was.

        Args:
            write: Given weights and notes, returns the version that was written, and whether an interrupt came.
            notes: What the tail's record says besides of its training, as JSON values.
        """
        if self.best is None or not self.best[0].number:
            return
        epochs = {"before": asdict(self.epochs[0]), "epoch": asdict(self.best[0])}
        self.saved, again = write(self.best[1], {**notes, **epochs})
        self.interrupted |= again

    def outcome(self, tail: str, version: int) -> Personalized:
        """Return what came of it.

        Args:
            tail: Whose tail it is.
            version: Its version before training.

        Raises:
            KeyboardInterrupt: After an interrupt; the message says what was saved.
        """
        if self.best is None or (self.saved is None and self.interrupted):
            better = self.best is not None and self.best[0].number
            when = (
                f"while the tail '{tail}' was written" if better else f"before an epoch made the tail '{tail}' better"
            )
            raise KeyboardInterrupt(f"interrupted {when}; nothing was saved")
        best, before = self.best[0], self.epochs[0]
        if self.saved is not None and self.interrupted:
            raise KeyboardInterrupt(
                f"interrupted; the best epoch so far, {best.number}, is saved as version {self.saved} of the tail "
                f"'{tail}': its loss is {best.loss_after:.4f}, and was {before.loss_after:.4f} before training"
            )
        return Personalized(tail, version if self.saved is None else self.saved, before, best, tuple(self.epochs[1:]))


def epochs(
    learner: AnyLearner,
    features: Features,
    sets: Sequence[Samples],
    begin: Mapping[str, Array],
    settings: Settings,
    on_step: Callable[[int, float], None] | None,
) -> Iterator[Epoch]:
    """Train on the first set, and yield each epoch when it is over.

    Epoch 0 is judged when the first is over, by the weights that training began with: no step waits for that.
    """
    judge, samples = Judge(learner, features, sets, settings.batch_size), sets[0]
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
        if number == 1:
            before = judge.epoch(0, None, begin)
            if not np.isfinite(before.loss_after):
                raise TrainingError(f"the loss of the tail as it stands is {before.loss_after}: nothing was written")
            yield before
        epoch = judge.epoch(number, total / samples.count)
        _check_finite(epoch.loss_after, number, learner)
        yield epoch


def _check_finite(loss: float, epoch: int, learner: AnyLearner) -> None:
    if not np.isfinite(loss):
        raise TrainingError(
            f"the loss is {loss} in epoch {epoch}: nothing was written; give a smaller --lr than "
            f"{learner.learning_rate:g}"
        )


@dataclass(frozen=True, slots=True)
class Judge:
    """Tells how good the weights of a tail are, by the last set of samples.

    Attributes:
        learner: What holds them.
        features: Of the samples.
        sets: The samples that are trained on, and others if there are.
        batch_size: Samples at a time.
    """

    learner: AnyLearner
    features: Features
    sets: Sequence[Samples]
    batch_size: int

    def epoch(self, number: int, loss: float | None, weights: Mapping[str, Array] | None = None) -> Epoch:
        """Return an epoch that ended with the weights as they are, or with other ones."""
        place = len(self.sets) - 1
        samples = self.sets[place]
        total, right = 0.0, 0
        for start in range(0, samples.count, self.batch_size):
            rows = np.arange(start, min(start + self.batch_size, samples.count))
            target = samples.target[rows]
            one, output = self.learner.look(self.features.of(place, rows), target, weights)
            total += one * len(target)
            right += self._right(samples.loss, output, target)
        after = total / samples.count
        accuracy = None if samples.loss == "mse" else right / samples.count
        return Epoch(number, loss, after, *((None, None) if place == 0 else (after, accuracy)))

    def _right(self, loss: Loss, output: Array, target: Array) -> int:
        """Return how many classes are right: that of the largest output, or by a probability of a half."""
        if loss == "mse":
            return 0
        if loss == "cross-entropy":
            return int((output.argmax(axis=-1) == target).sum())
        half = 0.5 if self.learner.output_kind == "probabilities" else 0.0
        return int(((output.reshape(len(target)) > half) == target).sum())

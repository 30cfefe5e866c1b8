"""On-device personalization: `python -m splitload.deploy.personalize BUNDLE --data train.npz`, or `splitload finetune`.

The frozen stages run as they always do, once for each sample, when it is first needed; what they give, the features, is
kept. The last stage alone is trained, by the steps that lie in the bundle, and written beside the original if it became
better. Neither torch nor onnx is needed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from splitload.base import interrupts
from splitload.base.errors import OutputError, SplitloadError, TrainingError, UsageError
from splitload.base.regular import check_regular
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import DEFAULT_TAIL, Loss, StageEntry, Training
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import current_version, open_tail, read_weights, revert, write_tail
from splitload.deploy.arguments import TARGET, Settings, add_arguments, settings_of
from splitload.deploy.features import Features
from splitload.deploy.learner import AnyLearner, Learner
from splitload.deploy.samples import Samples, read_samples

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


def personalize(
    bundle: str | Path,
    data: str | Path,
    valid: str | Path | None = None,
    *,
    settings: Settings | None = None,
    tail: str = DEFAULT_TAIL,
    labels: str = TARGET,
    threads: int | None = None,
    on_features: Callable[[int, int], None] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    make_learner: Callable[..., AnyLearner] | None = None,
) -> Personalized:
    """Train the last stage of a bundle and write it as a new version of a tail; training goes on where that one stands.

    The tail as it was before counts as epoch 0: where no epoch has a smaller loss, it stays the one that counts.
    Everything that is read of the bundle is compared with the hashes of its manifest first, and links are not followed.

    Args:
        bundle: The `NAME.splitload` folder, built with trainable layers.
        data: An .npz file: an array for each input of the model, by its name (or "x" for the only one), and "y":
            classes, or wanted outputs.
        valid: The same, of samples that are not trained on.
        settings: How it is trained.
        tail: Whose it is.
        labels: What the array of classes or wanted outputs is called in the files.
        threads: Loading threads, see `ParallelLoader`.
        on_features: Called as `on_features(samples, total)` while the frozen stages run: before the first step on
            its batch, before the second on all other samples.
        on_step: Called as `on_step(steps, loss)` after each step, with the mean loss of its samples before it.
        on_epoch: Called after each epoch; before that of epoch 1 with epoch 0.
        make_learner: What trains the last stage, called as `Learner` is, which is the default.

    Raises:
        UsageError: If the bundle has no trainable stage, or data or settings do not fit.
        BundleError: If the bundle is damaged.
        TrainingError: If the loss is no number any more; the bundle is as it was.
        OutputError: If the tail cannot be written; it is as it was.
        KeyboardInterrupt: After an interrupt; the best epoch so far is written, if it is better than the tail was, and
            the message says what was saved.
    """
    settings = settings or Settings()
    folder = Path(bundle).resolve()
    manifest = read_manifest(folder, "none")
    training = manifest.training
    if training is None:
        raise UsageError(
            f"'{bundle}' has no trainable stage; 'splitload train MODEL --trainable SPEC' makes one that has"
        )
    stage = manifest.variants[-1].stages[-1]
    version = current_version(folder, tail)  # the name, before any work is done
    samples = read_samples(Path(data), manifest, settings.loss, labels)
    others = None if valid is None else read_samples(Path(valid), manifest, samples.loss, labels)
    sets = [samples] if others is None else [samples, others]
    for file in manifest.files():
        check_regular(folder / file.name)
    read_manifest(folder, "hashes")
    epochs: list[Epoch] = []
    best: tuple[Epoch, Mapping[str, Array]] | None = None  # in one: an interrupt may come between any two lines
    saved: int | None = None
    interrupted = False
    try:
        with _scratch(folder) as made:
            features = Features(
                folder, training.features, sets, made,
                batch_size=settings.batch_size, threads=threads, on_features=on_features,
            )  # fmt: skip
            begin = _start(folder, tail, stage, training)
            learner = (make_learner or Learner)(folder, stage, training, samples.loss, settings, begin)
            judge = Judge(learner, features, sets, settings.batch_size)
            try:
                for epoch in _epochs(learner, features, judge, begin, settings, on_step):
                    if best is None or epoch.loss_after < best[0].loss_after:
                        best = (epoch, learner.weights() if epoch.number else begin)
                    epochs.append(epoch)
                    if on_epoch is not None:
                        on_epoch(epoch)
                    if epoch.number - best[0].number >= settings.patience:
                        break
            except KeyboardInterrupt:
                interrupted = True
            if best is not None and best[0].number:
                notes = {
                    "settings": asdict(settings),
                    "loss": samples.loss,
                    "samples": samples.count,
                    "before": asdict(epochs[0]),
                    "epoch": asdict(best[0]),
                }
                saved, again = _write(folder, tail, stage, training, best[1], notes)
                interrupted |= again
    except KeyboardInterrupt:  # perhaps a second one, while the features are removed
        interrupted = True
    if best is None or saved is None:
        if best is None or interrupted:
            better = best is not None and best[0].number
            when = (
                f"while the tail '{tail}' was written" if better else f"before an epoch made the tail '{tail}' better"
            )
            raise KeyboardInterrupt(f"interrupted {when}; nothing was saved")
        return Personalized(tail, version, epochs[0], best[0], tuple(epochs[1:]))
    if interrupted:
        raise KeyboardInterrupt(
            f"interrupted; the best epoch so far, {best[0].number}, is saved as version {saved} of the tail '{tail}': "
            f"its loss is {best[0].loss_after:.4f}, and was {epochs[0].loss_after:.4f} before training"
        )
    return Personalized(tail, saved, epochs[0], best[0], tuple(epochs[1:]))


def _write(
    folder: Path,
    tail: str,
    stage: StageEntry,
    training: Training,
    weights: Mapping[str, Array],
    notes: Mapping[str, Any],
) -> tuple[int | None, bool]:
    """Write a version of a tail; return its number, None if a second interrupt came first, and whether one came.

    The first begins the writing anew: whoever ends the training may have asked for that twice.
    """
    before = current_version(folder, tail)
    for interrupted in (False, True):
        try:
            return write_tail(folder, tail, stage, training, weights, notes).version, interrupted
        except KeyboardInterrupt:
            version = current_version(folder, tail)
            if version != before:  # it was written
                return version, True
    return None, True


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder for features: beside the bundle, in whose place another may be put, or in it if need be.

    Raises:
        OutputError: If neither can be written to, or there is no room for them.
    """
    place = folder.parent if os.access(folder.parent, os.W_OK) else folder
    try:
        with scratch_folder(place, ".features-") as made:
            yield made
    except OSError as error:
        if isinstance(error, SplitloadError):
            raise
        raise OutputError(f"cannot write to '{place}': {error.strerror or error}; the tail is as it was") from error


def _start(folder: Path, tail: str, stage: StageEntry, training: Training) -> dict[str, Array]:
    """Return the weights to begin with: those of the tail as it is, or as built."""
    assert stage.weights is not None  # noqa: S101 - `validate` saw to it
    now = open_tail(folder, tail, stage, verify="hashes")
    return read_weights((folder if now is None else now.graph.parent) / stage.weights.name, training)


def _epochs(
    learner: AnyLearner,
    features: Features,
    judge: Judge,
    begin: Mapping[str, Array],
    settings: Settings,
    on_step: Callable[[int, float], None] | None,
) -> Iterator[Epoch]:
    """Train on the first set, and yield each epoch when it is over.

    Epoch 0 is judged when the first is over, by the weights that training began with: no step waits for that.
    """
    samples = judge.sets[0]
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


def main(words: Sequence[str] | None = None) -> int:
    """Personalize from the command line, printing one JSON object a line: an epoch each, and then the result."""
    interrupts.work()
    return interrupts.ending(lambda: _main(words))


def _main(words: Sequence[str] | None) -> int:
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
            labels=options.labels,
            threads=options.threads,
            on_epoch=lambda epoch: print(json.dumps(asdict(epoch)), flush=True),  # noqa: T201
        )
    except SplitloadError as error:
        print(f"personalize: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt as interrupt:
        print(f"personalize: {interrupt or 'interrupted; nothing was saved'}", file=sys.stderr)  # noqa: T201
        return interrupts.EXIT_CODE
    if not result.improved:
        print(f"personalize: {not_improved(result)}", file=sys.stderr)  # noqa: T201
    row = {"tail": result.tail, "version": result.version, "improved": result.improved, "best": asdict(result.best)}
    print(json.dumps(row))  # noqa: T201
    return 0


def not_improved(result: Personalized) -> str:
    """Return a line for people: that no epoch was better, and what to do."""
    least = min(result.epochs, key=lambda epoch: epoch.loss_after)
    return (
        f"no epoch made the tail '{result.tail}' better: the loss was {result.before.loss_after:.4f} before and "
        f"{least.loss_after:.4f} at best, in epoch {least.number}; it stays as it was; a smaller --lr or more samples "
        "may help"
    )


if __name__ == "__main__":
    raise SystemExit(main())

"""On-device personalization: `python -m splitload.deploy.personalize BUNDLE --data train.npz`, or `splitload finetune`.

The frozen stages run as they always do, once for each sample, when it is first needed; what they give, the features, is
kept. The last stage alone is trained, by the steps that lie in the bundle, and written beside the original if it became
better. Neither torch nor onnx is needed. The frozen stages are on their way before numpy, which reads the samples,
and onnxruntime's Python module, which trains, are imported.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base import interrupts
from splitload.base.errors import OutputError, SplitloadError, UsageError
from splitload.base.regular import check_regular
from splitload.base.scratch import scratch_folder
from splitload.bundle.manifest import DEFAULT_TAIL, Manifest, StageEntry, Training
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import current_version, open_tail, read_weights, revert, write_tail
from splitload.deploy.arguments import TARGET, Settings, add_arguments, settings_of
from splitload.deploy.frozen import FrozenStages
from splitload.runtime.warmup import warm_up

if TYPE_CHECKING:
    import numpy as np

    from splitload.deploy.epochs import Epoch, Personalized
    from splitload.deploy.features import Features
    from splitload.deploy.learner import AnyLearner
    from splitload.deploy.samples import Samples

    Array = np.ndarray[Any, Any]


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
        data: An .npz file: an array for each input by its name (or "x" for the only one), and "y", what is wanted.
        valid: The same, of samples that are not trained on.
        settings: How it is trained.
        tail: Whose it is.
        labels: What the array of classes or wanted outputs is called in the files.
        threads: Loading threads, see `ParallelLoader`.
        on_features: Called as `on_features(samples, total)` while the frozen stages run.
        on_step: Called as `on_step(steps, loss)` after each step, with the mean loss of its samples before it.
        on_epoch: Called after each epoch; before that of epoch 1 with epoch 0.
        make_learner: What trains the last stage; called as `Learner` is, which is the default.

    Raises:
        UsageError: If the bundle has no trainable stage, or data or settings do not fit.
        BundleError: If the bundle is damaged.
        TrainingError: If the loss is NaN or infinite; the bundle is as it was.
        OutputError: If the tail cannot be written; it is as it was.
        KeyboardInterrupt: After an interrupt; an epoch that is better than the tail was is written, see the message.
    """
    warm_up()
    settings = settings or Settings()
    folder = Path(bundle).resolve()
    manifest, stage, training = _trainable(folder, bundle)
    version = current_version(folder, tail)  # the name, before any work is done
    with _frozen(folder, manifest, threads) as frozen:
        from splitload.deploy.epochs import Course, epochs

        sets = _samples(manifest, data, valid, settings.loss, labels)
        course = Course()
        try:
            with _features(folder, frozen, training, sets, settings, on_features) as features:
                begin = _start(folder, tail, stage, training)
                learner = (make_learner or _learner)(folder, stage, training, sets[0].loss, settings, begin)
                steps = epochs(learner, features, sets, begin, settings, on_step)
                course.run(steps, learner, begin, settings, on_epoch)
                notes = {"settings": asdict(settings), "loss": sets[0].loss, "samples": sets[0].count}
                course.write(partial(_write, folder, tail, stage, training), notes)
        except KeyboardInterrupt:  # perhaps a second one, while the features are removed
            course.interrupted = True
    return course.outcome(tail, version)


def _trainable(folder: Path, bundle: str | Path) -> tuple[Manifest, StageEntry, Training]:
    """Return what a bundle says, its last stage, and how that is trained.

    Raises:
        BundleError: If it cannot be read.
        UsageError: If it has no trainable stage.
    """
    manifest = read_manifest(folder, "none")
    if manifest.training is None:
        raise UsageError(
            f"'{bundle}' has no trainable stage; 'splitload train MODEL --trainable SPEC' makes one that has"
        )
    return manifest, manifest.variants[-1].stages[-1], manifest.training


@contextlib.contextmanager
def _frozen(folder: Path, manifest: Manifest, threads: int | None) -> Iterator[FrozenStages]:
    """Yield the frozen stages of a bundle whose files are whole, on their way."""
    _check_files(folder, manifest)
    frozen = FrozenStages(folder, threads)
    try:
        yield frozen
    finally:
        frozen.close()


def _learner(*arguments: Any) -> AnyLearner:
    """Return what trains the last stage; imports onnxruntime."""
    from splitload.deploy.learner import Learner

    return Learner(*arguments)


def _check_files(folder: Path, manifest: Manifest) -> None:
    """Make sure that every file is one, no link, and what the manifest says.

    Raises:
        BundleError: If one is not.
    """
    for file in manifest.files():
        check_regular(folder / file.name)
    read_manifest(folder, "hashes")


def _samples(
    manifest: Manifest, data: str | Path, valid: str | Path | None, loss: str | None, labels: str
) -> list[Samples]:
    """Return the samples to train on and, where they are given, those to judge by."""
    from splitload.deploy.samples import read_samples

    samples = read_samples(Path(data), manifest, loss, labels)
    return [samples] if valid is None else [samples, read_samples(Path(valid), manifest, samples.loss, labels)]


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
def _features(
    folder: Path,
    frozen: FrozenStages,
    training: Training,
    sets: Sequence[Samples],
    settings: Settings,
    on_features: Callable[[int, int], None] | None,
) -> Iterator[Features]:
    """Yield the features of samples, which are kept for as long as the block runs."""
    from splitload.deploy.features import Features

    with _scratch(folder) as made:
        yield Features(frozen, training.features, sets, made, batch_size=settings.batch_size, on_features=on_features)


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
    except ImportError as error:
        if not interrupts.is_interrupt(error):
            raise
        print("personalize: interrupted; nothing was saved", file=sys.stderr)  # noqa: T201
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

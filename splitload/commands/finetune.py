"""`splitload finetune`: personalize the last stage of a bundle on this device, or go back."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.errors import UsageError
from splitload.bundle.manifest import DEFAULT_TAIL, Loss, StageEntry, Training
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import revert
from splitload.commands.console import Console
from splitload.deploy.arguments import Settings, settings_of
from splitload.deploy.personalize import not_improved, personalize

if TYPE_CHECKING:  # numpy is imported once the frozen stages are on their way
    from splitload.deploy.epochs import Epoch
    from splitload.deploy.learner import AnyLearner


def finetune(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train and write a better version of a tail, or go back to the one before; return what `--json` prints.

    Raises:
        SplitloadError: If bundle, data or settings do not fit; the bundle is as it was.
    """
    bundle = Path(options.bundle)
    if options.revert:
        if options.data is not None:
            raise UsageError("--revert goes back to the version before and trains nothing; leave --data out")
        read_manifest(bundle)
        version = revert(bundle, options.tail)
        what = f"version {version}" if version else "the last stage as it was built"
        console.print(f"{bundle}: the tail '{options.tail}' is {what} now")
        return {"bundle": options.bundle, "tail": options.tail, "version": version}
    if options.data is None:
        raise UsageError("--data is missing; give an .npz file to train on")
    settings = settings_of(options)
    with console.progress("running the frozen stages", unit="samples") as show:

        def report(epoch: Epoch) -> None:
            name = f"epoch {epoch.number}" if epoch.number else "before training"
            judged = "loss" if epoch.valid_loss is None else "validation loss"  # it stands first, on every line
            parts = [f"{judged} {epoch.loss_after:.4f}"]
            parts += [] if epoch.valid_accuracy is None else [f"accuracy {epoch.valid_accuracy:.1%}"]
            parts += [] if epoch.loss is None else [f"running loss {epoch.loss:.4f}"]
            console.print(f"{name}: {', '.join(parts)}")

        result = personalize(
            bundle,
            options.data,
            options.valid,
            settings=settings,
            tail=options.tail,
            labels=options.labels,
            threads=options.threads,
            on_features=show,
            on_epoch=report,
            make_learner=partial(_learner, console),
        )
    if result.improved:
        whose = "" if result.tail == DEFAULT_TAIL else f" --tail {result.tail}"
        console.print(
            f"{bundle}: version {result.version} of the tail '{result.tail}', of epoch {result.best.number}; "
            f"'splitload finetune --revert{whose}' goes back"
        )
    else:
        console.note(not_improved(result))
    return {
        "bundle": options.bundle,
        "tail": result.tail,
        "version": result.version,
        "improved": result.improved,
        "before": asdict(result.before),
        "best": asdict(result.best),
        "epochs": [asdict(epoch) for epoch in result.epochs],
    }


def _learner(
    console: Console,
    folder: Path,
    stage: StageEntry,
    training: Training,
    loss: Loss,
    settings: Settings,
    weights: Mapping[str, Any],
) -> AnyLearner:
    """Return what trains the last stage: its own training step, or torch where it has none."""
    from splitload.deploy.learner import Learner, step_for

    if step_for(training, loss, settings.optimizer) is not None:
        return Learner(folder, stage, training, loss, settings, weights)
    from splitload.training.torch_learner import TorchLearner

    console.note(f"the bundle has no training step for {loss} with {settings.optimizer}: torch trains it")
    return TorchLearner(
        folder,
        stage,
        training,
        loss,
        weights,
        optimizer=settings.optimizer,
        learning_rate=settings.rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )

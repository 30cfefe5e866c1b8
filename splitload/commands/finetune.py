"""`splitload finetune`: personalize the last stage of a bundle on this device, or go back."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from splitload.bundle import read_manifest
from splitload.commands.console import Console
from splitload.deploy.arguments import settings_of
from splitload.deploy.personalize import Epoch, personalize
from splitload.errors import UsageError
from splitload.tails import revert


def finetune(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Train and write a new version of a tail, or revert to the one before; return what `--json` prints.

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
            parts = [f"epoch {epoch.number}: loss {epoch.loss:.4f}"]
            parts += [] if epoch.valid_loss is None else [f"validation loss {epoch.valid_loss:.4f}"]
            parts += [] if epoch.valid_accuracy is None else [f"accuracy {epoch.valid_accuracy:.1%}"]
            console.print(", ".join(parts))

        result = personalize(
            bundle,
            options.data,
            options.valid,
            settings=settings,
            tail=options.tail,
            threads=options.threads,
            on_features=lambda done, total: show(done, total),
            on_epoch=report,
        )
    console.print(
        f"{bundle}: version {result.version} of the tail '{result.tail}', of epoch {result.best.number}; "
        "'splitload finetune --revert' goes back"
    )
    return {
        "bundle": options.bundle,
        "tail": result.tail,
        "version": result.version,
        "best": asdict(result.best),
        "epochs": [asdict(epoch) for epoch in result.epochs],
    }

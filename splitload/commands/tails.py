"""`splitload tails`: the personalized last stages of a bundle, their versions, and how good they are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitload.base.errors import UsageError
from splitload.bundle.read import read_manifest
from splitload.bundle.tails import Reached, names, reached
from splitload.commands.console import Console


def tails(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the tails; return what `--json` prints.

    Raises:
        SplitloadError: If it is no bundle, or one without a trainable stage, or a tail is damaged.
    """
    bundle = Path(options.bundle).resolve()
    manifest = read_manifest(bundle)
    if manifest.training is None:
        raise UsageError(
            f"'{options.bundle}' has no trainable stage, and so no tails; 'splitload train MODEL --trainable SPEC' "
            "makes one that has"
        )
    stage = manifest.variants[-1].stages[-1]
    found = [reached(bundle, name, stage) for name in names(bundle)]
    if found:
        console.table(
            f"tails of {options.bundle}",
            ("tail", "version", "goes back to", "loss", "came to", "on", "accuracy"),
            [_row(each) for each in found],
        )
    else:
        console.print(f"{options.bundle} has no tails yet; 'splitload finetune' makes one")
    return {
        "bundle": options.bundle,
        "tails": [{**each._asdict(), "versions": list(each.versions)} for each in found],
    }


def _row(each: Reached) -> tuple[str, ...]:
    unknown = "" if each.version == 0 else "unknown"
    judged = each.valid_loss if each.loss_after is None else each.loss_after
    samples = "training samples" if each.valid_loss is None else "validation samples"
    return (
        each.name,
        str(each.version) if each.version else "as built",
        ", ".join(map(str, each.versions[-2::-1])) + (", " if len(each.versions) > 1 else "") + "as built"
        if each.version
        else "",
        each.loss or unknown,
        unknown if judged is None else f"{judged:.4f}",
        unknown if judged is None else samples,
        f"{each.valid_accuracy:.1%}" if each.valid_accuracy is not None else unknown if judged is None else "–",
    )

"""`splitload devices` and `splitload zoo`: what is built in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitload.commands.console import Console
from splitload.devices import names, open_device

_PAPER = "Reinforcement Learning Based Asymmetrical DNN Modularization for Optimal Loading"


def devices(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the devices; return what `--json` prints."""
    known = [open_device(name, Path()) for name in names()]  # no cache: nothing is measured
    console.table(
        "devices",
        ("name", "times are", "description"),
        [(each.name, each.source, each.description) for each in known],
    )
    console.print(f'Table 1 is that of "{_PAPER}" (ICLR 2021 submission).')
    return {"devices": [{"name": each.name, "source": each.source, "description": each.description} for each in known]}


def zoo(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the models; return what `--json` prints."""
    from splitload.frontends import zoo

    models = zoo.names()
    console.table("models", ("name", "description"), [(f"zoo:{name}", text) for name, text in models.items()])
    return {"models": [{"name": f"zoo:{name}", "description": text} for name, text in models.items()]}

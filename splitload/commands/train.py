"""`splitload train`: search a partition on a device, then write the bundle."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from splitload.commands.console import Console
from splitload.commands.show_plan import show_plan, show_search
from splitload.planner.request import SETTINGS, TrainRequest
from splitload.planner.train import train as search_and_build
from splitload.runtime.inputs import read_feeds


def train(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Search, write the bundle, show both; return what `--json` prints.

    Raises:
        SplitloadError: Whatever went wrong; nothing half-written is left.
    """
    settings = {name: getattr(options, name) for name in SETTINGS}
    request = TrainRequest(cache=cache, feed_words=tuple(options.input), **settings)  # refused before files are read
    result = search_and_build(replace(request, feeds=read_feeds(options.input)), console)
    show_search(console, result.planned)
    if result.division is not None:
        console.print(f"to be trained on the device: {result.division}")
    show_plan(console, result)
    return result.to_json()

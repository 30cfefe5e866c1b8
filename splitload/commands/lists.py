"""`splitload devices` and `splitload zoo`: what is built in, and which devices are known."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.cache import user_cache
from splitload.base.errors import SplitloadError
from splitload.base.phrases import count_of, milliseconds
from splitload.commands.console import Console
from splitload.devices import names, open_device

if TYPE_CHECKING:
    from splitload.devices.acquaintances import Acquaintance
    from splitload.devices.measured import Measurement

_PAPER = "Reinforcement Learning Based Asymmetrical DNN Modularization for Optimal Loading"

_SERVED = ("name", "address", "processor", "memory", "storage", "onnxruntime", "reached")
_MEASURED = ("device", "model", "graph", "page cache", "blocks", "load", "first inference", "on")


def devices(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the devices that are built in, those that were served, and what was measured; return what `--json` prints.

    Raises:
        MissingPackageError: If the network is to be asked, and the package for that is not installed.
    """
    known = [open_device(name, Path()) for name in names()]  # no cache: nothing is measured
    served, measured = _kept()
    told: dict[str, Any] = {
        "devices": [{"name": each.name, "source": each.source, "description": each.description} for each in known],
        "served": [each.to_json() for each in served],
        "measured": [each.to_json() for each in measured],
    }
    console.table(
        "devices",
        ("name", "times are", "description"),
        [(each.name, each.source, each.description) for each in known],
    )
    console.print(f'Table 1 is that of "{_PAPER}" (ICLR 2021 submission).')
    if served:
        console.table(
            "served devices, as they were when they were reached last", _SERVED, [_row(each) for each in served]
        )
    if measured:
        console.table("measured so far, the whole model", _MEASURED, [_measured_row(each) for each in measured])
    if options.discover:
        told["found"] = _found(console)
    return told


def _kept() -> tuple[list[Acquaintance], list[Measurement]]:
    """Return the served devices that are known, and what was measured; nothing where there is no cache."""
    from splitload.devices.acquaintances import acquaintances
    from splitload.devices.measured import measurements

    try:
        cache = user_cache()
    except SplitloadError:
        return [], []
    return acquaintances(cache), measurements(cache)


def _row(each: Acquaintance) -> tuple[str, ...]:
    """Return what is shown of a served device; what it does not say is a dash."""
    speed, memory = each.storage_read_bytes_per_s, each.memory_bytes
    return (
        each.name,
        each.url,
        f"{each.cpu_model}, {count_of(each.threads, 'thread')}",
        "–" if memory is None else f"{memory / 1e9:.1f} GB",
        "–" if speed is None else f"{speed / 1e6:.0f} MB/s",
        each.onnxruntime,
        _day(each.opened_s),
    )


def _measured_row(each: Measurement) -> tuple[str, ...]:
    """Return what is shown of a measurement."""
    return (
        each.device,
        each.model,
        each.graph,
        each.page_cache,
        str(each.num_blocks),
        milliseconds(each.load_s),
        milliseconds(each.first_inference_s),
        _day(each.measured_s),
    )


def _day(seconds: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(seconds))


def _found(console: Console) -> list[dict[str, str]]:
    """Show the devices that announce themselves; return them as JSON values."""
    from splitload.devices.discovery import discover

    with console.status("asking the local network"):
        found = discover()
    if not found:
        console.print("No device announces itself; 'splitload serve --announce' does, with a --host that is reached.")
        return []
    console.table("found on the local network", ("name", "address"), [tuple(each) for each in found])
    console.print("To measure on one, give --device its address and, after /#, the code that it shows.")
    return [each._asdict() for each in found]


def zoo(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Show the models; return what `--json` prints."""
    from splitload.frontends import zoo

    models = zoo.names()
    console.table("models", ("name", "description"), [(f"zoo:{name}", text) for name, text in models.items()])
    return {"models": [{"name": f"zoo:{name}", "description": text} for name, text in models.items()]}

"""`splitload crowd run`: stream the inputs in a file through a bundle on a crowd, and say what each device did."""

from __future__ import annotations

import argparse
import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.errors import SplitloadError, UsageError
from splitload.base.machine import available_threads
from splitload.base.phrases import count_of, milliseconds
from splitload.base.sizes import megabytes, read_bytes, read_residency
from splitload.base.words import at_least_one, one_of
from splitload.commands.argument_types import reading, some_of
from splitload.commands.console import Console

if TYPE_CHECKING:  # a worker's options are read beside these, and it has no memory for what this imports
    from splitload.crowd.crowd import Crowd
    from splitload.crowd.report import CrowdReport

_MODES = ("streaming", "barrier")
_SHOWN_ERRORS = 5
_SWITCHES: dict[str, dict[str, Any]] = {
    "deferred-loading": {"deferred_loading": False},
    "affinity": {"affinity": "off"},
    "compression": {"compression": "off"},
    "recovery": {"recovery": False},
    "stage-cache": {"stage_cache": False},
}


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Run a bundle on a crowd; return what `--json` prints.

    Raises:
        SplitloadError: If the crowd cannot be had, or no input succeeds.
    """
    from splitload.crowd.batches import Batches, check_output, joined, save
    from splitload.crowd.chain import read_bundle

    _check_where(options)
    target = None if options.output is None else Path(options.output)
    if target is not None:
        check_output(target)
    batches = Batches(Path(options.data), read_bundle(options.bundle).inputs)
    with _ended_by_sigterm(), _client(options) as client, _crowd(options, client) as crowd:
        start_s = time.perf_counter()
        outputs: list[Any] = []
        with console.progress("crowd", "inputs") as show:
            for each in crowd.map(batches):
                outputs.append(each)
                show(len(outputs), batches.count)
        batch_s = time.perf_counter() - start_s
        report = crowd.report()
    errors = {place: str(each) for place, each in enumerate(outputs) if isinstance(each, SplitloadError)}
    if len(errors) == len(outputs):
        raise outputs[0]
    if target is not None:
        save(target, joined(outputs))
    _show(console, report, len(outputs), batch_s)
    _note_errors(console, errors, target)
    if target is not None:
        console.print(f"outputs: {target}")
    return {
        "bundle": options.bundle,
        "mode": options.mode,
        "num_inputs": len(outputs),
        "batch_s": batch_s,
        "inputs_per_s": len(outputs) / batch_s,
        **report.to_json(),
        "errors": {str(place): error for place, error in errors.items()},
        "saved": None if target is None else str(target),
    }


def run_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of `splitload crowd run`."""
    sub.add_argument("bundle", metavar="BUNDLE", help="the folder NAME.splitload that 'splitload train' writes")
    sub.add_argument(
        "--data",
        required=True,
        metavar="FILE.npz",
        help="an array for each input of the model, all inputs one behind the other along its first axis",
    )
    where = sub.add_mutually_exclusive_group()
    where.add_argument(
        "--scheduler", metavar="ADDRESS", help="tls://HOST:PORT or tcp://HOST:PORT of a crowd's scheduler"
    )
    where.add_argument(
        "--workers",
        type=reading(at_least_one),
        metavar="N",
        help=f"processes of a crowd on this machine (default: {available_threads()}, as many as it has processors)",
    )
    sub.add_argument(
        "--certificates",
        metavar="DIR",
        help="with --scheduler: the folder that 'splitload crowd certificates' made, or what was copied",
    )
    sub.add_argument(
        "--insecure",
        action="store_true",
        help="with --scheduler: do without certificates, where every machine in the network is trusted",
    )
    sub.add_argument(
        "--mode",
        type=reading(one_of("mode", _MODES)),
        default=_MODES[0],
        metavar="{streaming,barrier}",
        help="whether an input goes on at once, or waits until all have left a stage (default: %(default)s)",
    )
    sub.add_argument(
        "--residency",
        type=reading(read_residency),
        default="stage",
        metavar="{stage,all,SIZE}",
        help="what a worker may hold in memory: one stage, all that fit, or one stage of at most SIZE, such as 48MB "
        "(default: %(default)s)",
    )
    sub.add_argument(
        "--max-in-flight",
        type=reading(at_least_one),
        metavar="N",
        help="inputs on their way at a time (default: 4 a worker)",
    )
    sub.add_argument(
        "--without",
        type=some_of("mechanism", list(_SWITCHES)),
        default=[],
        metavar="A,B,...",
        help=f"mechanisms to do without, to measure what they are worth: {', '.join(_SWITCHES)}",
    )
    sub.add_argument(
        "--cache-size",
        type=reading(read_bytes),
        metavar="SIZE",
        help="with --workers: how much of the disk the stages that each keeps may take (default: 1GB)",
    )
    sub.add_argument("-o", "--output", metavar="OUT.npz", help="save the outputs, joined as the inputs are")


def _check_where(options: argparse.Namespace) -> None:
    """Refuse what a crowd of this kind would ignore: its workers or its scheduler say it.

    Raises:
        UsageError: If something is given that has no meaning.
    """
    if options.scheduler is None:
        for option, given in (("--certificates", options.certificates is not None), ("--insecure", options.insecure)):
            if given:
                raise UsageError(f"{option} is for a crowd that is there: give --scheduler ADDRESS, or leave it out")
    elif options.cache_size is not None:
        raise UsageError("--cache-size is for workers that this command starts: give it to 'splitload crowd worker'")


@contextlib.contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Have a SIGTERM end the run as a Ctrl-C does: stages of this machine's workers would stay in a folder."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _client(options: argparse.Namespace) -> Iterator[Any]:
    """Yield a client of the crowd that is asked for."""
    if options.scheduler is None:
        from splitload.crowd.local import LocalCrowd

        with LocalCrowd(options.workers or available_threads(), cache_bytes=options.cache_size) as local:
            yield local.client
    else:
        from splitload.crowd.remote import connected

        certificates = None if options.certificates is None else Path(options.certificates)
        with connected(options.scheduler, certificates, insecure=options.insecure) as client:
            yield client


def _crowd(options: argparse.Namespace, client: Any) -> Crowd:
    from splitload.crowd.crowd import Crowd
    from splitload.crowd.mechanisms import Mechanisms

    settings: dict[str, Any] = {"streaming": options.mode == "streaming", "one_resident": options.residency is not None}
    for name in options.without:
        settings |= _SWITCHES[name]
    return Crowd(
        options.bundle,
        client,
        mechanisms=replace(Mechanisms(), **settings),
        max_in_flight=options.max_in_flight,
        ceiling_bytes=options.residency if isinstance(options.residency, int) else None,
    )


def _show(console: Console, report: CrowdReport, num_inputs: int, batch_s: float) -> None:
    """Print what the crowd did: a table of its devices, what was sent, and the timeline of each."""
    console.print(
        f"{count_of(num_inputs, 'input')} through {count_of(len(report.stages), 'stage')} on "
        f"{count_of(len(report.devices), 'device')} in {milliseconds(batch_s)}, measured once"
    )
    rows = [
        [
            device.name,
            device.variant or "–",
            str(device.tasks),
            f"{device.run_s:.2f}",
            f"{device.load_s:.2f}",
            f"{device.cpu_s:.2f}",
            "–" if device.peak_bytes is None else f"{device.peak_bytes / 2**20:.1f}",
            "–" if device.idle_bytes is None else f"{device.idle_bytes / 2**20:.1f}",
        ]
        for device in report.devices
    ]
    columns = ["device", "graph", "tasks", "run s", "load s", "cpu s", "peak MiB\nabove idle", "idle\nMiB"]
    console.table("devices, measured", columns, rows)
    traffic = report.traffic
    console.print(
        f"sent: stages {megabytes(report.stages_from_client_bytes)} from here and "
        f"{megabytes(report.stages_between_bytes)} between workers, inputs {megabytes(traffic.inputs_bytes)}, tensors "
        f"between stages {megabytes(traffic.between_bytes)} ({megabytes(traffic.saved_bytes)} saved by compressing), "
        f"outputs {megabytes(traffic.outputs_bytes)}"
    )
    for device in report.devices:
        console.print(f"{device.name}:")
        console.drawing(device.timeline)
    for name, note in report.notes.items():
        console.note(f"worker '{name}': {note}")


def _note_errors(console: Console, errors: dict[int, str], target: Path | None) -> None:
    """Say which inputs failed."""
    for place, error in list(errors.items())[:_SHOWN_ERRORS]:
        console.note(f"input {place} failed: {error}")
    if errors:
        more = f", {len(errors) - _SHOWN_ERRORS} of them not shown" if len(errors) > _SHOWN_ERRORS else ""
        filled = "" if target is None else "; their outputs are NaN, or 0 where those are no floats"
        console.note(f"{count_of(len(errors), 'input')} failed{more}{filled}")

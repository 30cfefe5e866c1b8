"""`splitload collaborate`: a device and a server share every inference."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitload.base.errors import UsageError
from splitload.base.machine import available_threads
from splitload.base.packages import need
from splitload.base.words import at_least_one
from splitload.bundle.collaboration import SHARED, beside
from splitload.commands.argument_types import Parser, reading, takes_port
from splitload.commands.console import Console
from splitload.deploy.greeting import PORT, SCHEME
from splitload.devices import open_device

if TYPE_CHECKING:
    from splitload.collaborative.search import Saving
    from splitload.collaborative.store import Planned

_MODEL = "an .onnx file, zoo:NAME, or package.module:factory"
_MOST_MS, _MOST_WATTS = 10_000, 10_000
_SHOWN = (1, 2, 5, 9, 12, 25, 50)  # MB/s of the links in the table


def add_commands(collaborate: argparse.ArgumentParser) -> None:
    """Add what `splitload collaborate` can do."""
    from splitload.commands.parser import takes_input, takes_output

    commands = collaborate.add_subparsers(
        metavar="COMMAND", dest="collaborate_command", required=True, parser_class=Parser
    )

    def add(name: str, function: str, what: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=what, description=what, allow_abbrev=False)
        sub.set_defaults(function=f"collaborate:{function}", takes_cache=True)
        takes_output(sub, default=argparse.SUPPRESS)  # what was said before the command's name holds
        return sub

    sub = add("operators", "operators", "count the operators of a model that two machines can share, and the others")
    sub.add_argument("model", metavar="MODEL", help=_MODEL)
    takes_input(sub)
    sub = add("plan", "plan", "measure a bundle's model on a device and a server, and plan how they share it")
    sub.add_argument("bundle", metavar="BUNDLE", help="folder of the bundle; both machines need a copy")
    sub.add_argument("model", metavar="MODEL", help=f"what it was made of: {_MODEL}")
    sub.add_argument("--device", required=True, metavar="DEVICE", help="that has the inputs: host, or a served device")
    sub.add_argument("--server", required=True, metavar="DEVICE", help="that helps: host, or a served device")
    sub.add_argument(
        "--latency-ms",
        type=float,
        default=0.5,
        metavar="MS",
        help="of the link, in each direction (default: %(default)s)",
    )
    sub.add_argument(
        "--power",
        metavar="W,W,W",
        help="spare the device's battery: what it draws while it computes, communicates and waits, in watts",
    )
    sub.add_argument("--deadline-ms", type=float, metavar="MS", help="with --power: how long an inference may take")
    sub.add_argument("--seed", type=int, default=0, metavar="S", help="of the search (default: %(default)s)")
    sub.add_argument("-o", "--output", metavar="FOLDER", help="where to write (default: NAME.collaboration beside it)")
    takes_input(sub)
    sub = add("bench", "bench", "compare with the device alone, the server alone and the best cut between layers")
    sub.add_argument("bundle", metavar="BUNDLE", help="folder of the bundle")
    sub.add_argument("--server", required=True, metavar="ADDRESS", help="as 'splitload collaborate serve' shows it")
    sub.add_argument("--collaboration", metavar="FOLDER", help="where the plans are (default: beside the bundle)")
    sub.add_argument(
        "--runs", type=reading(at_least_one), default=9, metavar="N", help="inferences of each (default: %(default)s)"
    )
    takes_input(sub)
    sub = add("serve", "serve", "help devices with their inferences, over TLS, until it is ended")
    sub.add_argument("bundle", metavar="BUNDLE", help="folder of the bundle")
    sub.add_argument("--collaboration", metavar="FOLDER", help="where the plans are (default: beside the bundle)")
    sub.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="where to listen (default: %(default)s, this machine)"
    )
    takes_port(sub, PORT, "0 for any that is free (default: %(default)s)")
    sub.add_argument("--new-code", action="store_true", help="make a new token and certificate")


def operators(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Show how many operators of a model are local and global; return what `--json` prints."""
    from splitload.collaborative.operators import count_operators
    from splitload.frontends import open_source
    from splitload.frontends.onnx import load_graph
    from splitload.frontends.torch_calls import calls_of
    from splitload.runtime.inputs import read_feeds

    feeds = read_feeds(options.input)
    with console.status(f"reading {options.model}"):
        source = open_source(options.model, cache)
        graph = load_graph(source, "portable", cache, feeds={**source.examples, **feeds})
        found = count_operators(graph)
    kinds = sorted({*found.local, *found.whole}, key=lambda kind: (-found.local.get(kind, 0), kind))
    console.table(
        f"operators of {source.name}",
        ("operator", "local", "global"),
        [(kind, str(found.local.get(kind, 0)), str(found.whole.get(kind, 0))) for kind in kinds],
    )
    console.print(
        f"{sum(found.local.values())} local, {sum(found.whole.values())} global operators; {found.local_share:.1%} of "
        "the floating-point operations are local"
    )
    calls = calls_of(options.model)
    counted: dict[str, int] = {}
    if calls is not None:
        counted = {"local_calls": sum(calls.local.values()), "global_calls": sum(calls.whole.values())}
        console.print(
            f"as PyTorch calls them: {counted['local_calls']} local, {counted['global_calls']} global; there each call "
            "is an operator, and global is what gives one place only"
        )
    if not found.local:
        console.note("no operator can be shared: a device and a server can only take turns between layers")
    return {"model": source.name, **found.to_json(), **counted}


def plan(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Measure, plan and write; return what `--json` prints.

    Raises:
        SplitloadError: If a machine cannot be measured, or the bundle not be shared.
    """
    from splitload.collaborative.planning import plan_collaboration
    from splitload.frontends import open_source
    from splitload.runtime.inputs import read_feeds

    need("'splitload collaborate plan'", "scipy")
    device, server = (_measuring(word, cache) for word in (options.device, options.server))
    if not 0 <= options.latency_ms < _MOST_MS:
        raise UsageError(f"--latency-ms takes milliseconds from 0 to {_MOST_MS}, not {options.latency_ms:g}")
    saving = _saving(options.power, options.deadline_ms)
    source = open_source(options.model, cache)
    found = plan_collaboration(
        Path(options.bundle), source, device, server, console, cache,
        feeds={**source.examples, **read_feeds(options.input)}, latency_s=options.latency_ms / 1e3, seed=options.seed,
        saving=saving,
        target=None if options.output is None else Path(options.output),
    )  # fmt: skip
    shown = [each for each in found.plans if each.bytes_per_s / 1e6 in _SHOWN]
    names, joules = ("device", "server", "layer cut"), () if saving is None else ("energy J",)
    console.table(
        f"{source.name}: predicted latency by what the link carries",
        ("MB/s", *(f"{name} ms" for name in names), "shared ms", "÷ best of those", "of a grid ms", *joules),
        [
            (
                f"{each.bytes_per_s / 1e6:g}",
                *(f"{1e3 * each.baselines_s[name]:.1f}" if name in each.baselines_s else "–" for name in names),
                f"{1e3 * each.predicted_s:.1f}",
                f"{each.predicted_s / min(each.baselines_s.values()):.3f}",
                _of_grid(each),
                *(f"{each.energy_j or 0:.3f}" for _ in joules),
            )
            for each in shown
        ],
    )
    console.print(
        "of a grid: the exact optimum of plans whose rows are eighths; ≥ where none is sooner than a known one"
    )
    console.print(f"{found.local_share:.1%} of the floating-point operations can be shared, at {found.levels} levels")
    if found.is_whole:
        console.note("nothing can be exchanged by rows in this model: plans are cuts between layers")
    if saving is not None and any(each.predicted_s > saving.deadline_s for each in found.plans):
        console.note(f"on some links no plan is within {options.deadline_ms:g} ms; there the least late one is taken")
    if all(each.plan == found.plans[0].plan for each in found.plans):
        console.note("on no link up to 50 MB/s does the server help: the device is quicker alone")
    console.print(f"collaboration: {found.folder}")
    return {
        "collaboration": str(found.folder),
        "levels": found.levels,
        "plans": [
            {
                "bytes_per_s": each.bytes_per_s,
                "predicted_s": each.predicted_s,
                "energy_j": each.energy_j,
                "baselines_s": dict(each.baselines_s),
                "exchanges": list(each.plan.exchanges),
                "device_rows": list(each.plan.device_rows),
                "strips": list(each.plan.strips),
            }
            for each in found.plans
        ],
    }


def _of_grid(planned: Planned) -> str:
    """Return when the best plan of the grid answers, for people."""
    optimum = planned.optimum
    if optimum is None or (optimum.plan is None and not optimum.is_exact):
        return "–"
    sign = "≥ " if optimum.plan is None else "" if optimum.is_exact else "≤ "
    return f"{sign}{1e3 * optimum.latency_s:.1f}"


def _saving(power: str | None, deadline_ms: float | None) -> Saving | None:
    """Return how energy counts by `--power` and `--deadline-ms`; None where latency does.

    Raises:
        UsageError: If they are not what they should be, or one is given alone.
    """
    if (power is None) != (deadline_ms is None):
        raise UsageError("--power and --deadline-ms go together: energy is spared as long as inferences are in time")
    if power is None or deadline_ms is None:
        return None
    try:
        watts = [float(each) for each in power.split(",")]
    except ValueError:
        watts = []
    if len(watts) != 3 or not all(0 <= each < _MOST_WATTS for each in watts) or not 0 < deadline_ms < _MOST_MS:
        raise UsageError("--power takes three numbers of watts such as 13.35,4.25,4.04, --deadline-ms milliseconds")
    from splitload.collaborative.energy import Power
    from splitload.collaborative.search import Saving

    return Saving(Power(*watts), deadline_ms / 1e3)


def _measuring(word: str, cache: Path) -> Any:
    """Return the device of a word, which must measure.

    Raises:
        UsageError: If it does not.
    """
    measuring = open_device(word, cache).measuring
    if measuring is None:
        raise UsageError(f"'{word}' is not measured; an inference is planned for host, or for a device that is served")
    return measuring


def bench(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Compare the arms of a collaboration in turns; return what `--json` prints.

    Raises:
        SplitloadError: If an arm cannot be opened, or the server does not help.
    """
    import statistics

    from splitload.bundle.read import read_manifest
    from splitload.commands.show_shared import picture
    from splitload.deploy.share_bench import ARMS, compare
    from splitload.runtime.inputs import example_inputs, read_feeds

    feeds = example_inputs(read_manifest(options.bundle).inputs, read_feeds(options.input))
    with console.progress("sharing inferences", unit="rounds") as show:
        found = compare(
            options.bundle, options.server, feeds, options.runs, collaboration=options.collaboration, show=show
        )
    medians_s = {name: statistics.median(each.latency_s for each in found.samples[name]) for name in ARMS}
    best_s = min(seconds for name, seconds in medians_s.items() if name != SHARED)
    console.table(
        f"latency of {options.runs} inferences each, in turns",
        ("arm", "median ms", "least", "most", "predicted ms", "by the device alone"),
        [
            (
                name,
                *(f"{1e3 * each:.1f}" for each in (medians_s[name], min(taken), max(taken))),
                f"{1e3 * found.predicted_s[name]:.1f}",
                f"{sum(each.by == 'device' for each in found.samples[name])} of {options.runs}",
            )
            for name in ARMS
            for taken in [[each.latency_s for each in found.samples[name]]]
        ],
    )
    if found.moments:
        console.print("what was done in one shared inference, and when:")
        for text in picture(found.moments):
            console.as_it_is(text)
    link = "" if found.bytes_per_s is None else f", on a link of {8e-6 * found.bytes_per_s:.0f} Mbit/s"
    console.print(f"shared ÷ best of those that share nothing: {medians_s[SHARED] / best_s:.3f}{link}")
    return {
        "samples": {name: [each._asdict() for each in rows] for name, rows in found.samples.items()},
        "predicted_s": dict(found.predicted_s),
        "bytes_per_s": found.bytes_per_s,
        "moments": [each._asdict() for each in found.moments],
    }


def serve(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Serve until a Ctrl-C or SIGTERM; return what `--json` prints.

    Raises:
        SplitloadError: If it cannot.
    """
    import signal

    from splitload.deploy.credentials import credentials
    from splitload.deploy.share_server import ShareServer

    bundle = Path(options.bundle)
    folder = beside(bundle) if options.collaboration is None else Path(options.collaboration)
    known = credentials(cache / "collaborate", tls=True, anew=options.new_code)
    server = ShareServer(
        folder, bundle, known, host=options.host, port=options.port, processors=available_threads(), tell=console.note
    )
    host = f"[{options.host}]" if ":" in options.host else options.host
    console.note("shares the inferences of whoever has this address:")
    console.as_it_is(f"  {SCHEME}{host}:{server.port}/#{known.code.text()}")
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        server.run()
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, before)
        server.close()
    return {"served": True}

"""The command line: words in, one command run, exit code out. Commands live in `splitload.commands`."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from splitload.cache import cache_folder
from splitload.commands import AGENTS, ARMS, OBJECTIVES
from splitload.errors import SplitloadError, UsageError, unknown_name
from splitload.graph import DEFAULT_MAX_BLOCKS

DEFAULT_MODEL = "zoo:mobilenet_v1"


class _Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, with near matches."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:  # argparse calls it for commands too
        commands = next((action.choices for action in self._actions if action.dest == "command_name"), None)
        if commands is not None and args and not args[0].startswith("-") and args[0] not in commands:
            raise unknown_name("command", args[0], commands)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if message.endswith("required: COMMAND"):
            message = "no command given"
        raise UsageError(f"{message} (see '{self.prog} --help')")


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: The command line without the program's name; by default this process's.

    Returns:
        0, 1 if it failed, or 2 if the request was wrong.
    """
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    try:
        try:
            options = parser().parse_args(words)
        except SystemExit:  # --help and --version
            sys.stdout.flush()
            raise
        options.words = words
        result = _run(options)
        if options.json:
            print(json.dumps(result))  # noqa: T201
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader went away: so do we
        return 1
    except KeyboardInterrupt as error:
        return _failed(str(error) or "interrupted; nothing was written", 1)
    except SplitloadError as error:
        if debug:
            traceback.print_exc()
        return _failed(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        if debug:
            traceback.print_exc()
        with contextlib.suppress(OSError):  # what is left of the output goes nowhere
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        where = f" '{error.filename}'" if error.filename else " the output"
        return _failed(f"cannot read or write{where}: {error.strerror or error}", 1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _failed(f"{text} (this should not happen; --debug shows where)", 1)
    return 0


def user_cache() -> Path:
    """Return the user's cache folder, see `cache_folder`.

    Raises:
        UsageError: If there is no place for one.
    """
    folder = cache_folder()
    if folder is None:
        raise UsageError("there is no home folder to keep a cache in; set SPLITLOAD_CACHE to a folder")
    return folder


def _failed(message: str, code: int) -> int:
    print(f"splitload: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code


def _run(options: argparse.Namespace) -> Any:
    """Run the command of `options`; commands import what they need and no more."""
    from splitload.commands.console import Console

    console = Console(json=options.json)
    command: Callable[[argparse.Namespace, Console, Path], Any] = options.command
    return command(options, console, user_cache())


def _train(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.commands.train import train

    return train(options, console, cache)


def _profile(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.commands.measure import profile

    return profile(options, console, cache)


def _bench(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.commands.measure import bench

    return bench(options, console, cache)


def _run_bundle(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.commands.run import run

    return run(options, console)


def _inspect(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.commands.bundles import inspect

    return inspect(options, console)


def _verify(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.commands.bundles import verify

    return verify(options, console)


def _specialize(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.commands.specialize import specialize

    return specialize(options, console, cache)


def _finetune(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.commands.finetune import finetune

    return finetune(options, console)


def _devices(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.devices import names, open_device

    devices = [open_device(name, cache) for name in names()]
    console.table(
        "devices",
        ("name", "times are", "description"),
        [(each.name, each.source, each.description) for each in devices],
    )
    return {
        "devices": [{"name": each.name, "source": each.source, "description": each.description} for each in devices]
    }


def _zoo(options: argparse.Namespace, console: Any, cache: Path) -> Any:
    from splitload.frontends import zoo

    models = zoo.names()
    console.table("models", ("name", "description"), [(f"zoo:{name}", text) for name, text in models.items()])
    return {"models": [{"name": f"zoo:{name}", "description": text} for name, text in models.items()]}


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; what it refuses is a `UsageError`."""
    parser = _Parser(prog="splitload", description="Load a neural network in parallel stages, and answer meanwhile.")
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(metavar="COMMAND", dest="command_name", required=True, parser_class=_Parser)

    def add(name: str, command: Callable[..., Any], text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(command=command)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object on stdout, if it succeeds, and nothing else"
        )
        sub.add_argument("--debug", action="store_true", help="show a traceback where something fails")
        return sub

    def takes_model(sub: argparse.ArgumentParser, **default: Any) -> None:
        sub.add_argument("model", metavar="MODEL", help=".onnx file, zoo:NAME or package.module:factory", **default)
        sub.add_argument(
            "--max-blocks",
            type=_at_least_one,
            default=DEFAULT_MAX_BLOCKS,
            metavar="N",
            help="divide the model into at most this many blocks (default: %(default)s)",
        )
        takes_input(sub)

    def takes_input(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--input",
            action="append",
            default=[],
            metavar="NAME=FILE.npy",
            help="a model input; made up where none is given",
        )

    def takes_device(sub: argparse.ArgumentParser) -> None:
        sub.add_argument(
            "--device", required=True, help="host, a simulated device's name (see 'splitload devices'), or a file"
        )

    train = add("train", _train, "search a partition on a device and write the bundle")
    takes_model(train, nargs="?", default=DEFAULT_MODEL)
    takes_device(train)
    train.add_argument("-o", "--output", metavar="BUNDLE", help="where the bundle goes (default: NAME.splitload)")
    train.add_argument(
        "--agent",
        type=_one_of("agent", AGENTS),
        default="q-learning",
        metavar="AGENT",
        help=f"who searches: {', '.join(AGENTS)} (default: %(default)s)",
    )
    train.add_argument(
        "--objective",
        type=_one_of("objective", OBJECTIVES),
        default="balance",
        metavar="OBJECTIVE",
        help="balance: equal load times; ttfo: the shortest time to first output (default: %(default)s)",
    )
    train.add_argument(
        "--episodes", type=_at_least_one, metavar="N", help="most episodes in all (default: agent's rule)"
    )
    train.add_argument("--seed", type=_count, default=0, help="seed of the search (default: %(default)s)")
    train.add_argument(
        "--seeds",
        type=_at_least_one,
        default=1,
        metavar="N",
        help="search with N seeds from --seed on, and take the best plan (default: %(default)s)",
    )
    train.add_argument(
        "--jobs", type=_at_least_one, metavar="J", help="searches at a time (default: one for each available thread)"
    )
    train.add_argument(
        "--cluster", metavar="tcp://HOST:PORT", help="search on the workers of this Dask cluster, which is trusted"
    )
    train.add_argument(
        "--max-stages",
        type=_at_least_one,
        metavar="K",
        help="the most stages (default: 8, or 16 where so many promise a twentieth)",
    )
    train.add_argument(
        "--budget",
        type=_at_least_one,
        metavar="N",
        help="search with at most N measured stage loads, in place of a profile of every block (host only); what is "
        "measured of the plan that was found comes on top",
    )
    train.add_argument(
        "--trainable",
        metavar="SPEC",
        help="layers that stay together in the last stage: a count of last layers, or a pattern of their names",
    )
    train.add_argument(
        "--new-head",
        type=_at_least_one,
        metavar="CLASSES",
        help="replace the last linear layer by a fresh one of so many classes, to be trained on the device; without "
        "--trainable it alone is trainable",
    )
    train.add_argument(
        "--split-points",
        type=_split_points,
        metavar="P,P,…",
        help="build this plan instead of searching: the ends of all stages but the last, in blocks",
    )

    train.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="keep the search in FILE, Q-table and all, and go on with what it holds; by default an interrupted search "
        "is kept in the cache, for the same command to resume. With several seeds none is kept",
    )
    train.add_argument(
        "--curve", metavar="FILE.csv", help="write the learning curve: each episode's return, and the best value so far"
    )

    profile = add("profile", _profile, "measure or simulate what loading each block costs")
    takes_model(profile)
    takes_device(profile)
    profile.add_argument("-o", "--output", metavar="FILE", help="write the profile here, for --device FILE")

    add("devices", _devices, "list the devices")
    add("zoo", _zoo, "list the models that are built in")

    for name, command, text in (
        ("inspect", _inspect, "show what a bundle holds"),
        ("verify", _verify, "check every file of a bundle"),
    ):
        add(name, command, text).add_argument("bundle", metavar="BUNDLE")

    specialize = add("specialize", _specialize, "make the part of a bundle that is for one machine anew, for this one")
    specialize.add_argument("bundle", metavar="BUNDLE")
    takes_input(specialize)

    run = add("run", _run_bundle, "load a bundle in parallel, infer once, show the timeline")
    run.add_argument("bundle", metavar="BUNDLE")
    takes_input(run)
    run.add_argument("--threads", type=_at_least_one, metavar="N", help="loading threads (default: the bundle's)")
    run.add_argument("-o", "--output", metavar="FOLDER", help="save each output as FOLDER/NAME.npy")

    from splitload.deploy.arguments import add_arguments

    add_arguments(add("finetune", _finetune, "train the last stage of a bundle on this device"))

    bench = add("bench", _bench, "compare with what a user would do otherwise, in fresh processes")
    takes_model(bench, nargs="?")
    bench.add_argument(
        "--deep", type=_at_least_one, metavar="N", help="instead of MODEL: a synthetic chain of N small nodes"
    )
    bench.add_argument(
        "--runs", type=_at_least_one, default=9, metavar="N", help="samples of each arm (default: %(default)s)"
    )
    bench.add_argument(
        "--arms",
        type=_some_of("arm", ARMS),
        metavar="A,B,…",
        help=f"what is compared, of {', '.join(ARMS)} (default: all that apply and are installed)",
    )
    bench.add_argument("--cold", action="store_true", help="evict the files an arm reads before each of its samples")
    bench.add_argument(
        "--storage-mbps",
        type=_above_zero,
        metavar="X",
        help="cap what is read from storage at X million bytes per second; needs --cold, root and cgroups",
    )
    bench.add_argument("--bundle", metavar="BUNDLE", help="take this bundle instead of making one for this host")
    return parser


def _one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """Return an argument type that takes the known names."""

    def check(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(str(unknown_name(kind, word, known)))
        return word

    return check


def _some_of(kind: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return an argument type that takes known names with commas between."""
    one = _one_of(kind, known)
    return lambda word: [one(part) for part in word.split(",")]


def _above_zero(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"it must be a number above 0, not '{word}'")
    return value


def _at_least_one(word: str) -> int:
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"it must be a whole number of at least 1, not '{word}'")
    return int(word)


def _count(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"it must be a whole number of at least 0, not '{word}'")
    return int(word)


def _split_points(word: str) -> list[int]:
    parts = [part for part in word.split(",") if part]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"it must be block numbers with commas between, not '{word}'")
    return [int(part) for part in parts]


def _version() -> str:
    from splitload import __version__

    return f"splitload {__version__}"


if __name__ == "__main__":
    raise SystemExit(main())

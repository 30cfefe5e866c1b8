"""The options of every command, and which function does it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from splitload import __version__
from splitload.base.words import above_zero, at_least_one, one_of
from splitload.bundle.manifest import DEFAULT_TAIL
from splitload.commands.argument_types import Parser, reading, some_of
from splitload.deploy.arguments import add_arguments
from splitload.measure.arm_names import ARM_NAMES
from splitload.planner.request import DEFAULTS, SETTINGS

_OF_MODEL = ("model", "max_blocks")  # settings that every command with a model takes
_AT_LEAST_ONE = reading(at_least_one)
_Add = Callable[..., argparse.ArgumentParser]  # adds a command: its name, its function, what it does


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; what it refuses is a `UsageError`."""
    parser = Parser(prog="splitload", description="Load a neural network in parallel stages, and answer meanwhile.")
    parser.add_argument("-V", "--version", action="version", version=f"splitload {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command_name", required=True, parser_class=Parser)

    def add(name: str, function: str, text: str, *, cache: bool = False) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function, takes_cache=cache)
        sub.add_argument(
            "--json", action="store_true", help="print one JSON object on stdout, if it succeeds, and nothing else"
        )
        sub.add_argument("--debug", action="store_true", help="show a traceback where something fails")
        return sub

    _add_planning(add)
    _add_bundles(add)
    _add_running(add)
    return parser


def _add_planning(add: _Add) -> None:
    """Add what searches and measures, and what it does that on."""
    train = add("train", "train:train", "search a partition on a device and write the bundle", cache=True)
    _takes_model(train, nargs="?", default=DEFAULTS["model"])
    _takes_setting(train, *(name for name in SETTINGS if name not in _OF_MODEL))

    profile = add("profile", "profile:profile", "measure or simulate what loading each block costs", cache=True)
    _takes_model(profile)
    _takes_setting(profile, "device")
    profile.add_argument("-o", "--output", metavar="FILE", help="write the profile here, for --device FILE")

    add("devices", "lists:devices", "list the devices")
    add("zoo", "lists:zoo", "list the models that are built in")
    add("cache", "cache:cache", "show what the user's cache folder holds, or clear it", cache=True).add_argument(
        "action",
        nargs="?",
        default="list",
        type=reading(one_of("action", ("list", "clear"))),
        metavar="{list,clear}",
        help="(default: %(default)s)",
    )


def _add_bundles(add: _Add) -> None:
    """Add what shows, checks, places and adapts a bundle."""
    inspect = add("inspect", "bundles:inspect", "show what a bundle holds")
    inspect.add_argument("bundle", metavar="BUNDLE")
    inspect.add_argument("--why", action="store_true", help="show what decided about its plan")
    add("verify", "bundles:verify", "check every byte of a bundle").add_argument("bundle", metavar="BUNDLE")
    install = add("install", "bundles:install", "put a copy of a bundle where another one may be in use, and check it")
    install.add_argument("source", metavar="SOURCE", help="the bundle to copy")
    install.add_argument("target", metavar="TARGET", help="where it goes; a bundle there is replaced in one step")

    specialize = add(
        "specialize",
        "specialize:specialize",
        "make the part of a bundle that is for one machine anew, for this one",
        cache=True,
    )
    specialize.add_argument("bundle", metavar="BUNDLE")
    specialize.add_argument(
        "--add",
        action="store_true",
        help="keep the parts for other machines, each with its own weights: a bundle for a mixed fleet",
    )
    _takes_input(specialize)


def _add_running(add: _Add) -> None:
    """Add what loads bundles, personalizes them, and compares them with others."""
    run = add("run", "run:run", "load a bundle in parallel, infer once, show the timeline")
    run.add_argument("bundle", metavar="BUNDLE")
    _takes_input(run)
    run.add_argument("--threads", type=_AT_LEAST_ONE, metavar="N", help="loading threads (default: the bundle's)")
    run.add_argument("--tail", default=DEFAULT_TAIL, metavar="NAME", help="whose last stage (default: %(default)s)")
    run.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="save each output as FOLDER/NAME.npy; outputs.json there says which is which",
    )

    tails = add("tails", "tails:tails", "list the personalized last stages of a bundle, and how good they are")
    tails.add_argument("bundle", metavar="BUNDLE")

    add_arguments(add("finetune", "finetune:finetune", "train the last stage of a bundle on this device"))

    bench = add("bench", "bench:bench", "compare with what a user would do otherwise, in fresh processes", cache=True)
    _takes_model(bench, nargs="?")
    _bench_options(bench)


def _takes_model(sub: argparse.ArgumentParser, **default: Any) -> None:
    model, *others = _OF_MODEL
    setting = SETTINGS[model]
    text = setting.help + (" (default: %(default)s)" if "default" in default else "")
    sub.add_argument(model, metavar=setting.metavar, help=text, **default)
    _takes_setting(sub, *others)
    _takes_input(sub)


def _takes_setting(sub: argparse.ArgumentParser, *names: str) -> None:
    """Add settings of a `TrainRequest` as options; those without a default are required."""
    for name in names:
        setting = SETTINGS[name]
        given: dict[str, Any] = {"default": DEFAULTS[name]} if name in DEFAULTS else {"required": True}
        sub.add_argument(
            *setting.flags, type=reading(setting.read), metavar=setting.metavar, help=setting.help, **given
        )


def _takes_input(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE.npy",
        help="a model input; made up where none is given",
    )


def _bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "--deep", type=_AT_LEAST_ONE, metavar="N", help="instead of MODEL: a synthetic chain of N small nodes"
    )
    bench.add_argument(
        "--runs", type=_AT_LEAST_ONE, default=9, metavar="N", help="samples of each arm (default: %(default)s)"
    )
    bench.add_argument(
        "--arms",
        type=some_of("arm", ARM_NAMES),
        metavar="A,B,...",
        help=f"what is compared, of {', '.join(ARM_NAMES)} (default: all that apply and are installed)",
    )
    bench.add_argument("--cold", action="store_true", help="evict the files an arm reads before each of its samples")
    bench.add_argument(
        "--storage-mbps",
        type=reading(above_zero),
        metavar="X",
        help="cap what is read from storage at X million bytes per second; needs --cold, root and cgroups",
    )
    bench.add_argument("--bundle", metavar="BUNDLE", help="take this bundle instead of making one for this host")

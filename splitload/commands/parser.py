"""The options of every command, and which function does it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from splitload import __version__
from splitload.base.words import above_zero, at_least_one, one_of
from splitload.commands.argument_types import Parser, reading, some_of

_AT_LEAST_ONE = reading(at_least_one)
_Sub = argparse.ArgumentParser
_Add = Callable[..., None]  # adds a command: its name, its function, what it does, and what adds its options


def parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of all commands; what it refuses is a `UsageError`.

    Args:
        command: The command whose options are wanted, as importing what those of others are made of takes longer than
            most bundles load; None for those of all.
    """
    parser = Parser(prog="splitload", description="Load a neural network in parallel stages, and answer meanwhile.")
    parser.add_argument("-V", "--version", action="version", version=f"splitload {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command_name", required=True, parser_class=Parser)

    def add(
        name: str, function: str, text: str, options: Callable[[_Sub], None] | None = None, *, cache: bool = False
    ) -> None:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function, takes_cache=cache)
        takes_output(sub)
        if options is not None and command in (None, name):
            options(sub)

    _add_planning(add)
    _add_bundles(add)
    _add_running(add)
    return parser


def takes_output(sub: _Sub, **default: Any) -> None:
    """Add the options of every command: how it shows what it did, and where it failed."""
    sub.add_argument(
        "--json",
        action="store_true",
        help="print one JSON object on stdout, if it succeeds, and nothing else",
        **default,
    )
    sub.add_argument("--debug", action="store_true", help="show a traceback where something fails", **default)


def _add_planning(add: _Add) -> None:
    """Add what searches and measures, and what it does that on."""
    add("train", "train:train", "search a partition on a device and write the bundle", _train_options, cache=True)
    add("profile", "profile:profile", "measure or simulate what loading each block costs", _profile_options, cache=True)
    add("devices", "lists:devices", "list the devices, and what served ones said", _devices_options)
    add("zoo", "lists:zoo", "list the models that are built in")
    add("cache", "cache:cache", "show what the user's cache folder holds, or clear it", _cache_options, cache=True)


def _add_bundles(add: _Add) -> None:
    """Add what shows, checks, places and adapts a bundle."""
    add("inspect", "bundles:inspect", "show what a bundle holds", _inspect_options)
    add("verify", "bundles:verify", "check every byte of a bundle", _takes_bundle)
    what = "put a copy of a bundle where another one may be in use, and check it"
    add("install", "bundles:install", what, _install_options)
    what = "make the part of a bundle that is for one machine anew, for this one or a served device"
    add("specialize", "specialize:specialize", what, _specialize_options, cache=True)


def _add_running(add: _Add) -> None:
    """Add what loads bundles, personalizes them, and compares them with others."""
    add("run", "run:run", "load a bundle in parallel, infer once, show the timeline", _run_options)
    what = "list the personalized last stages of a bundle, and how good they are"
    add("tails", "tails:tails", what, _takes_bundle)
    add("finetune", "finetune:finetune", "train the last stage of a bundle on this device", _finetune_options)
    what = "compare with what a user would do otherwise, in fresh processes"
    add("bench", "bench:bench", what, _bench_options, cache=True)
    what = "let a desk measure on this device, over HTTP"
    add("serve", "serve:serve", what, _serve_options, cache=True)
    add("crowd", "crowd:crowd", "run a bundle on a crowd of small devices", _crowd_options)
    what = "share every inference between a device and a server"
    add("collaborate", "collaborate:collaborate", what, _collaborate_options)


def _train_options(train: _Sub) -> None:
    from splitload.planner.request import DEFAULTS, SETTINGS

    _takes_model(train, nargs="?", default=DEFAULTS["model"])
    _takes_setting(train, *(name for name in SETTINGS if name not in _OF_MODEL))


def _profile_options(profile: _Sub) -> None:
    _takes_model(profile)
    _takes_setting(profile, "device", "page_cache")
    profile.add_argument("-o", "--output", metavar="FILE", help="write the profile here, for --device FILE")


def _devices_options(devices: _Sub) -> None:
    devices.add_argument(
        "--discover", action="store_true", help="look for devices on the local network that announce themselves (mDNS)"
    )


def _cache_options(cache: _Sub) -> None:
    cache.add_argument(
        "action",
        nargs="?",
        default="list",
        type=reading(one_of("action", ("list", "clear"))),
        metavar="{list,clear}",
        help="(default: %(default)s)",
    )


def _inspect_options(inspect: _Sub) -> None:
    _takes_bundle(inspect, nargs="?")
    inspect.add_argument("--why", action="store_true", help="show what decided about its plan")
    inspect.add_argument(
        "--runtime", action="store_true", help="show what a bundle is loaded and run by here, and why; needs no BUNDLE"
    )


def _takes_bundle(sub: _Sub, **more: Any) -> None:
    sub.add_argument("bundle", metavar="BUNDLE", help="the folder NAME.splitload that 'splitload train' writes", **more)


def _install_options(install: _Sub) -> None:
    install.add_argument("source", metavar="SOURCE", help="the bundle to copy")
    install.add_argument("target", metavar="TARGET", help="where it goes; a bundle there is replaced in one step")


def _specialize_options(specialize: _Sub) -> None:
    _takes_bundle(specialize)
    specialize.add_argument(
        "--device",
        default="host",
        metavar="DEVICE",
        help="what it is for: host, or the address of a device on which 'splitload serve' runs (default: host)",
    )
    specialize.add_argument(
        "--add",
        action="store_true",
        help="keep the parts for other machines, each with its own weights: a bundle for a mixed fleet",
    )
    takes_input(specialize)


def _run_options(run: _Sub) -> None:
    from splitload.bundle.manifest import DEFAULT_TAIL

    _takes_bundle(run)
    takes_input(run)
    run.add_argument(
        "--device",
        metavar="DEVICE",
        help="run it in a fresh process: host, or the address of a device on which "
        "'splitload serve' runs (default: in this process)",
    )
    run.add_argument("--threads", type=_AT_LEAST_ONE, metavar="N", help="loading threads (default: the bundle's)")
    run.add_argument("--tail", default=DEFAULT_TAIL, metavar="NAME", help="whose last stage (default: %(default)s)")
    run.add_argument(
        "--residency",
        metavar="SIZE",
        help="how much of the model may be in memory at a time: all, stage, or a ceiling such as 48MB (default: the "
        "bundle's)",
    )
    run.add_argument(
        "-o",
        "--output",
        metavar="FOLDER",
        help="save each output as FOLDER/NAME.npy; outputs.json there says which is which",
    )


def _finetune_options(finetune: _Sub) -> None:
    from splitload.deploy.arguments import add_arguments

    add_arguments(finetune)


def _serve_options(serve: _Sub) -> None:
    from splitload.commands.serve import add_options

    add_options(serve)


def _crowd_options(crowd: _Sub) -> None:
    from splitload.commands.crowd import add_commands

    add_commands(crowd)


def _collaborate_options(collaborate: _Sub) -> None:
    from splitload.commands.collaborate import add_commands

    add_commands(collaborate)


_OF_MODEL = ("model", "max_blocks")  # settings that every command with a model takes


def _takes_model(sub: _Sub, **default: Any) -> None:
    from splitload.planner.request import SETTINGS

    model, *others = _OF_MODEL
    setting = SETTINGS[model]
    text = setting.help + (" (default: %(default)s)" if "default" in default else "")
    sub.add_argument(model, metavar=setting.metavar, help=text, **default)
    _takes_setting(sub, *others)
    takes_input(sub)


def _takes_setting(sub: _Sub, *names: str) -> None:
    """Add settings of a `TrainRequest` as options; those without a default are required."""
    from splitload.planner.request import DEFAULTS, SETTINGS

    for name in names:
        setting = SETTINGS[name]
        given: dict[str, Any] = {"default": DEFAULTS[name]} if name in DEFAULTS else {"required": True}
        sub.add_argument(
            *setting.flags, type=reading(setting.read), metavar=setting.metavar, help=setting.help, **given
        )


def takes_input(sub: _Sub) -> None:
    """Add the option that gives a model its inputs."""
    sub.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE.npy",
        help="a model input; made up where none is given",
    )


def _bench_options(bench: _Sub) -> None:
    from splitload.measure.arm_names import ARM_NAMES

    _takes_model(bench, nargs="?")
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
    bench.add_argument(
        "--device",
        default="host",
        metavar="DEVICE",
        help="where it is measured: host, or the address of a device on which 'splitload serve' runs (default: host)",
    )
    bench.add_argument("--cold", action="store_true", help="evict the files an arm reads before each of its samples")
    bench.add_argument(
        "--storage-mbps",
        type=reading(above_zero),
        metavar="X",
        help="cap what is read from storage at X million bytes per second; needs --cold, root and cgroups",
    )
    bench.add_argument("--bundle", metavar="BUNDLE", help="take this bundle instead of making one for this host")

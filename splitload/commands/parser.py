"""The options of every command, and which function does it."""

from __future__ import annotations

import argparse
from typing import Any

from splitload import __version__
from splitload.bundle.manifest import DEFAULT_TAIL
from splitload.commands.argument_types import (
    Parser,
    above_zero,
    at_least_one,
    count,
    one_of,
    some_of,
    split_points,
)
from splitload.deploy.arguments import add_arguments
from splitload.measure.arm_names import ARM_NAMES
from splitload.plan.graph import DEFAULT_MAX_BLOCKS
from splitload.planner.request import AGENTS, OBJECTIVES

DEFAULT_MODEL = "zoo:mobilenet_v1"


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

    train = add("train", "train:train", "search a partition on a device and write the bundle", cache=True)
    _takes_model(train, nargs="?", default=DEFAULT_MODEL)
    _takes_device(train)
    _search_options(train)

    profile = add("profile", "measure:profile", "measure or simulate what loading each block costs", cache=True)
    _takes_model(profile)
    _takes_device(profile)
    profile.add_argument("-o", "--output", metavar="FILE", help="write the profile here, for --device FILE")

    add("devices", "lists:devices", "list the devices")
    add("zoo", "lists:zoo", "list the models that are built in")
    add("cache", "cache:cache", "show what the user's cache folder holds, or clear it", cache=True).add_argument(
        "action",
        nargs="?",
        default="list",
        type=one_of("action", ("list", "clear")),
        metavar="{list,clear}",
        help="(default: %(default)s)",
    )

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

    run = add("run", "run:run", "load a bundle in parallel, infer once, show the timeline")
    run.add_argument("bundle", metavar="BUNDLE")
    _takes_input(run)
    run.add_argument("--threads", type=at_least_one, metavar="N", help="loading threads (default: the bundle's)")
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

    bench = add("bench", "measure:bench", "compare with what a user would do otherwise, in fresh processes", cache=True)
    _takes_model(bench, nargs="?")
    _bench_options(bench)
    return parser


def _takes_model(sub: argparse.ArgumentParser, **default: Any) -> None:
    text = ".onnx file, zoo:NAME or package.module:factory" + (
        " (default: %(default)s)" if "default" in default else ""
    )
    sub.add_argument("model", metavar="MODEL", help=text, **default)
    sub.add_argument(
        "--max-blocks",
        type=at_least_one,
        default=DEFAULT_MAX_BLOCKS,
        metavar="N",
        help="divide the model into at most this many blocks (default: %(default)s)",
    )
    _takes_input(sub)


def _takes_input(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=FILE.npy",
        help="a model input; made up where none is given",
    )


def _takes_device(sub: argparse.ArgumentParser) -> None:
    sub.add_argument(
        "--device", required=True, help="host, a simulated device's name (see 'splitload devices'), or a file"
    )


def _search_options(train: argparse.ArgumentParser) -> None:
    train.add_argument("-o", "--output", metavar="BUNDLE", help="where the bundle goes (default: NAME.splitload)")
    train.add_argument(
        "--agent",
        type=one_of("agent", AGENTS),
        default="q-learning",
        metavar="AGENT",
        help=f"who searches: {', '.join(AGENTS)} (default: %(default)s)",
    )
    train.add_argument(
        "--objective",
        type=one_of("objective", OBJECTIVES),
        default="balance",
        metavar="OBJECTIVE",
        help="balance: equal load times; ttfo: the shortest time to first output (default: %(default)s)",
    )
    train.add_argument(
        "--episodes", type=at_least_one, metavar="N", help="most episodes in all (default: agent's rule)"
    )
    train.add_argument("--seed", type=count, default=0, help="seed of the search (default: %(default)s)")
    train.add_argument(
        "--seeds",
        type=at_least_one,
        default=1,
        metavar="N",
        help="search with N seeds from --seed on, and take the best plan (default: %(default)s)",
    )
    train.add_argument(
        "--jobs", type=at_least_one, metavar="J", help="searches at a time (default: one for each available thread)"
    )
    train.add_argument(
        "--cluster", metavar="tcp://HOST:PORT", help="search on the workers of this Dask cluster, which is trusted"
    )
    train.add_argument(
        "--max-stages",
        type=at_least_one,
        metavar="K",
        help="the most stages (default: 8, or 16 where so many promise a twentieth)",
    )
    train.add_argument(
        "--budget",
        type=at_least_one,
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
        type=at_least_one,
        metavar="CLASSES",
        help="replace the last linear layer by a fresh one of so many classes, to be trained on the device; without "
        "--trainable it alone is trainable",
    )
    train.add_argument(
        "--split-points",
        type=split_points,
        metavar="P,P,...",
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


def _bench_options(bench: argparse.ArgumentParser) -> None:
    bench.add_argument(
        "--deep", type=at_least_one, metavar="N", help="instead of MODEL: a synthetic chain of N small nodes"
    )
    bench.add_argument(
        "--runs", type=at_least_one, default=9, metavar="N", help="samples of each arm (default: %(default)s)"
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
        type=above_zero,
        metavar="X",
        help="cap what is read from storage at X million bytes per second; needs --cold, root and cgroups",
    )
    bench.add_argument("--bundle", metavar="BUNDLE", help="take this bundle instead of making one for this host")

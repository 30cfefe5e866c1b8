"""`splitload collaborate`: one inference on two machines. So far: which operators of a model they can share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from splitload.commands.argument_types import Parser
from splitload.commands.console import Console


def add_commands(collaborate: argparse.ArgumentParser) -> None:
    """Add what `splitload collaborate` can do."""
    from splitload.commands.parser import takes_input, takes_output

    commands = collaborate.add_subparsers(
        metavar="COMMAND", dest="collaborate_command", required=True, parser_class=Parser
    )
    what = "count the operators of a model that two machines can share, and those that need everything"
    operators = commands.add_parser("operators", help=what, description=what, allow_abbrev=False)
    operators.set_defaults(function="collaborate:operators", takes_cache=True)
    takes_output(operators, default=argparse.SUPPRESS)
    operators.add_argument("model", metavar="MODEL", help="an .onnx file, zoo:NAME, or package.module:factory")
    takes_input(operators)


def operators(options: argparse.Namespace, console: Console, cache: Path) -> dict[str, Any]:
    """Show how many operators of a model are local and global; return what `--json` prints."""
    from splitload.collaborative.operators import count_operators
    from splitload.frontends import open_source
    from splitload.frontends.onnx import load_graph
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
    share = found.local_flops / found.flops if found.flops else 0.0
    console.print(
        f"{sum(found.local.values())} local, {sum(found.whole.values())} global operators; {share:.1%} of the "
        "floating-point operations are local"
    )
    if not found.local:
        console.note("no operator can be shared: a device and a server can only take turns between layers")
    return {"model": source.name, **found.to_json()}

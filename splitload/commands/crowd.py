"""`splitload crowd`: its commands, and their options."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from splitload.commands import crowd_run, crowd_worker
from splitload.commands.argument_types import Parser


def add_commands(crowd: argparse.ArgumentParser) -> None:
    """Add what `splitload crowd` can do."""
    from splitload.commands.parser import takes_output

    commands = crowd.add_subparsers(metavar="COMMAND", dest="crowd_command", required=True, parser_class=Parser)

    def add(
        name: str, function: str, text: str, options: Callable[[argparse.ArgumentParser], None], *, cache: bool = False
    ) -> None:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.set_defaults(function=function, takes_cache=cache)
        takes_output(sub, default=argparse.SUPPRESS)  # what was said before the command's name holds
        options(sub)

    what = "stream the inputs in a file through a bundle on a crowd of devices, or of processes on this machine"
    add("run", "crowd_run:run", what, crowd_run.run_options)
    what = "run a worker on this machine until it is ended"
    add("worker", "crowd_worker:worker", what, crowd_worker.worker_options, cache=True)
    what = "run the scheduler that workers and clients connect to, until it is ended"
    add("scheduler", "crowd_worker:scheduler", what, crowd_worker.scheduler_options)
    what = "make the certificates that the machines of one crowd know each other by"
    add("certificates", "crowd_worker:certificates", what, crowd_worker.certificate_options)

"""The command line: words in, one command run, exit code out. Commands live in `splitload.commands`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from splitload.commands.arguments import parser
from splitload.errors import SplitloadError, UsageError


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
    """Return the user's cache folder: `SPLITLOAD_CACHE`, or splitload's place among the user's caches."""
    if chosen := os.environ.get("SPLITLOAD_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "splitload"


def _failed(message: str, code: int) -> int:
    print(f"splitload: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return code


def _run(options: argparse.Namespace) -> Any:
    """Run the command of `options`, which is imported only now: each imports what it needs and no more."""
    from splitload.commands.console import Console

    module, _, name = options.function.partition(":")
    command = getattr(importlib.import_module(f"splitload.commands.{module}"), name)
    console = Console(json=options.json)
    return command(options, console, user_cache()) if options.takes_cache else command(options, console)


if __name__ == "__main__":
    raise SystemExit(main())

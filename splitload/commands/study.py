"""What the commands that make records share: types of arguments, and errors in one line."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from splitload.atomic import check_file
from splitload.errors import OutputError, SplitloadError, UsageError

Main = Callable[[Sequence[str] | None], int]


def at_least(least: int) -> Callable[[str], int]:
    """Return an argument type that takes whole numbers from `least` on."""

    def check(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"it must be a whole number of at least {least}, not '{word}'")
        return int(word)

    return check


def record_file(word: str) -> Path:
    """Return the path of a record, which can be written: that is asked before hours of measuring."""
    try:
        check_file(Path(word), "the record")
    except OutputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(word)


def one_line(main: Main) -> Callable[..., int]:
    """Let a command's `main` say what went wrong in one line, and return 1, or 2 where the request was wrong."""

    @functools.wraps(main)
    def run(words: Sequence[str] | None = None) -> int:
        try:
            return main(words)
        except SplitloadError as error:
            print(" ".join(str(error).split()), file=sys.stderr)  # noqa: T201
            return 2 if isinstance(error, UsageError) else 1
        except KeyboardInterrupt:
            print("interrupted; no record was written", file=sys.stderr)  # noqa: T201
            return 1

    return run

"""What the commands that make records share: arguments, profiles to search on, and errors in one line."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from splitload.base import interrupts
from splitload.base.errors import OutputError, SplitloadError, UsageError
from splitload.bundle.replace import check_output_file
from splitload.devices import open_device
from splitload.frontends import open_source
from splitload.frontends.onnx import Source, load_graph
from splitload.plan.profile import Profile
from splitload.studies.records import write_record

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
        check_output_file(Path(word), "the record")
    except OutputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return Path(word)


def study_parser(name: str, text: str | None) -> argparse.ArgumentParser:
    """Return the parser of `python -m splitload.studies.NAME`, which writes a record where `-o` says so."""
    parser = argparse.ArgumentParser(prog=f"python -m splitload.studies.{name}", description=text, allow_abbrev=False)
    parser.add_argument("-o", "--output", type=record_file, metavar="FILE", help="write the record here")
    return parser


def take_workers(parser: argparse.ArgumentParser) -> None:
    """Let a study run its searches beside each other, see `parallel.run_all`."""
    parser.add_argument("--jobs", type=at_least(1), metavar="J", help="searches at a time (default: available threads)")
    parser.add_argument("--cluster", metavar="tcp://HOST:PORT", help="search on the workers of this Dask cluster")


def check_workers(options: argparse.Namespace) -> None:
    """Raise `UsageError` where both processes and a cluster are asked for, before anything is read."""
    if options.jobs is not None and options.cluster is not None:
        raise UsageError("give --jobs or --cluster, not both: a cluster runs as many searches as it can")


def profile_of(model: str, device_name: str, cache: Path) -> tuple[Source, Profile]:
    """Return a model and its profile on a device.

    Raises:
        SplitloadError: If one of the two cannot be read, or the model not be measured.
    """
    device = open_device(device_name, cache)
    source = open_source(model, cache)
    return source, device.profile(load_graph(source, device.graph_kind, cache))


@contextlib.contextmanager
def growing_record(
    output: Path | None, kind: str, module: str, words: Sequence[str]
) -> Iterator[Callable[[Sequence[Any]], None]]:
    """Yield what takes rows as they are made; when the block ends well, they are the record.

    Until then they are kept beside it, in `NAME.partial`, and a record of before stays as it is: what is done is not
    lost when the study is stopped, and is no record that tables are made of.

    Args:
        output: Where the record goes; nothing is written without.
        kind: What it is a record of.
        module: The command `python -m module words`.
        words: Its words.

    Raises:
        OutputError: If it cannot be written.
    """
    rows: list[Any] = []
    written = 0
    partial = None if output is None else output.with_name(f"{output.name}.partial")

    def add(made: Sequence[Any]) -> None:
        nonlocal written
        rows.extend(made)
        if partial is not None:
            write_record(partial, kind, module, words, rows)
            written = len(rows)

    try:
        yield add
    except (KeyboardInterrupt, SplitloadError) as error:
        if not written or output is None:
            raise
        state = "as it was" if output.exists() else "not there"
        text = f"'{output}' is {state}, and the rows that were done ({written}) are in '{partial}'"
        raise type(error)(f"{str(error) or 'interrupted'}; {text}") from error
    if output is not None and partial is not None:
        write_record(output, kind, module, words, rows)
        partial.unlink(missing_ok=True)


def errors_in_one_line(main: Main) -> Callable[..., int]:
    """Let a command's `main` say what went wrong in one line, and return 1, 2 if the request was wrong, or 130."""

    @functools.wraps(main)
    def run(words: Sequence[str] | None = None) -> int:
        try:
            return main(words)
        except SplitloadError as error:
            print(" ".join(str(error).split()), file=sys.stderr)  # noqa: T201
            return 2 if isinstance(error, UsageError) else 1
        except KeyboardInterrupt as error:
            print(str(error) or "interrupted; no record was written", file=sys.stderr)  # noqa: T201
            return interrupts.EXIT_CODE

    return run

"""The command line: words in, one command run, exit code out. Commands live in `splitload.commands`."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from splitload.base import interrupts, packages
from splitload.base.errors import CacheWarning, DeviceWarning, LibraryWarning, OutputError, SplitloadError, UsageError
from splitload.commands import streams
from splitload.commands.console import Console, printable
from splitload.commands.parser import parser
from splitload.commands.text_layout import wrap

if TYPE_CHECKING:
    from pathlib import Path

_SHOWN = 80  # characters of a text that cannot be encoded: it may be a whole table


def main(words: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        words: The command line without the program's name; by default this process's.

    Returns:
        0, 1 if it failed, 2 if the request was wrong, or 130 if it was interrupted.
    """
    return interrupts.ending(lambda: _main(words))


def _main(words: Sequence[str] | None) -> int:
    streams.fill_missing()
    words = list(sys.argv[1:] if words is None else words)
    debug = "--debug" in words
    try:
        try:
            command = next((word for word in words if not word.startswith("-")), "")
            options = parser(command).parse_args(words)
        except SystemExit:  # --help and --version
            sys.stdout.flush()
            raise
        options.words = words
        _run(options)
    except KeyboardInterrupt as error:
        return _interrupted(error)
    except BrokenPipeError:
        streams.abandon(sys.stdout)  # the reader went away, which only a program misses
        return 1 if "--json" in words else 0
    except SplitloadError as error:
        _show_trace(debug)
        return _failed(str(error), 2 if isinstance(error, UsageError) else 1)
    except OSError as error:
        _show_trace(debug)
        streams.abandon(sys.stdout)
        where = f" '{error.filename}'" if error.filename else " the output"
        return _failed(f"cannot read or write{where}: {error.strerror or error}", 1)
    except UnicodeEncodeError as error:
        _show_trace(debug)
        return _failed(_not_encoded(error), 1)
    except Exception as error:
        if interrupts.is_interrupt(error):
            return _interrupted()
        _show_trace(debug)
        text = " ".join(f"{type(error).__name__}: {error}".split())
        return _failed(f"{text} (this should not happen; --debug shows where)", 1)
    return 0


def _show_trace(debug: bool) -> None:
    """Show the traceback of the error at hand, where that is asked for."""
    if debug:
        import traceback

        traceback.print_exc()


def _not_encoded(error: UnicodeEncodeError) -> str:
    """Return what to do where the system's encoding lacks a character, of the name of a file for example."""
    first, last = max(0, error.start - _SHOWN // 2), error.start + _SHOWN // 2
    part = error.object[first:last].encode("ascii", "backslashreplace").decode()
    text = f"{'…' * (first > 0)}{part}{'…' * (last < len(error.object))}"
    if error.encoding.lower() in ("utf-8", "utf8"):
        return (
            f"'{text}' is no Unicode text, as names of files in another encoding are, and cannot be written; rename it"
        )
    return (
        f"'{text}' cannot be written in {error.encoding}, the encoding of this process; set PYTHONUTF8=1, or LC_ALL to "
        "a locale with UTF-8 such as C.UTF-8"
    )


def _interrupted(error: KeyboardInterrupt | None = None) -> int:
    return _failed(str(error or "") or "interrupted; nothing was written", interrupts.EXIT_CODE)


def _failed(message: str, code: int) -> int:
    """Say in one line why a command failed."""
    line = wrap(printable(f"splitload: {' '.join(message.split())}"), streams.width_of(sys.stderr))
    try:
        streams.write(sys.stderr, line)
    except OSError:
        streams.abandon(sys.stderr)
    return code


def _run(options: argparse.Namespace) -> None:
    """Run the command of `options`, which is imported only now: each imports what it needs and no more.

    Raises:
        OSError: If what it had to say could not be written; it did its work all the same.
    """
    module, _, name = options.function.partition(":")
    console = Console(json=options.json)
    with packages.named(f"'splitload {options.command_name}'"), _warnings_as_notes(console):
        command: Callable[..., Any] = getattr(importlib.import_module(f"splitload.commands.{module}"), name)
        interrupts.work()
        if options.takes_cache:
            from splitload.base.cache import user_cache

            cache = user_cache()
            with _cache_named(cache):
                result = command(options, console, cache)
        else:
            result = command(options, console)
    if options.json:
        import json

        print(json.dumps(result), flush=True)  # noqa: T201
    elif console.error is not None:
        raise console.error


@contextlib.contextmanager
def _cache_named(cache: Path) -> Iterator[None]:
    """Say what to do where something in the cache cannot be read or written.

    Raises:
        OutputError: In place of the error that told of it.
    """
    try:
        yield
    except OSError as error:
        told = str(error) if isinstance(error, SplitloadError) else f"'{error.filename}': {error.strerror}"
        if not any(f"'{cache}{end}" in told for end in ("'", os.sep)):
            raise
        what = "" if isinstance(error, SplitloadError) else "cannot read or write "
        raise OutputError(f"{what}{told}; SPLITLOAD_CACHE=FOLDER takes another cache, one to write to") from error


@contextlib.contextmanager
def _warnings_as_notes(console: Console) -> Iterator[None]:
    """Tell what was damaged in the cache, or cannot be used, as a note in one line."""
    noted = (CacheWarning, DeviceWarning, LibraryWarning)

    def show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if issubclass(category, noted):
            console.note(str(message))
        else:
            before(message, category, *where, **more)

    with warnings.catch_warnings():
        before, warnings.showwarning = warnings.showwarning, show
        for each in noted:
            warnings.simplefilter("always", each)
        yield


if __name__ == "__main__":
    raise SystemExit(main())

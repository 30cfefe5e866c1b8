"""What the words of a command line may be: types of arguments, and a parser that names what is wrong in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn, TypeVar

from splitload.base.errors import UsageError, unknown_name
from splitload.base.sizes import read_bytes
from splitload.base.words import one_of, port

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, with near matches."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, once command and options are known to be there; argparse calls it for commands too."""
        commands = next((action.choices for action in self._actions if action.nargs == argparse.PARSER), None)
        if commands is not None and args and not args[0].startswith("-") and args[0] not in commands:
            raise unknown_name("command", args[0], commands)
        words = takewhile(lambda word: word.startswith("-"), args or ()) if commands is not None else args or ()
        self._check_options(takewhile(lambda word: word != "--", words))
        found, others = super().parse_known_args(args, namespace)
        if commands is None and others:  # argparse would send who reads on to the help of all commands
            self.error(f"unrecognized arguments: {' '.join(others)}")
        for action in self._actions:
            if getattr(found, action.dest, None) == "":  # as a path it would mean the current folder
                self.error(f"{[*action.option_strings, action.metavar][0]} needs a name, not ''")
        return found, others

    def _check_options(self, words: Iterable[str]) -> None:
        """Refuse an option that there is not before argparse misses one that is required."""
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                import difflib

                known = [option for option in self._option_string_actions if option.startswith("--")]
                near = difflib.get_close_matches(name[2:].lower(), [option[2:] for option in known], n=2)
                hint = f". Did you mean {' or '.join(f'--{each}' for each in near)}?" if near else ""
                self.error(f"unrecognized arguments: {name}{hint}")

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong as a `UsageError`."""
        if message.endswith("required: COMMAND"):
            message = "no command given"
        raise UsageError(f"{message} (see '{self.prog} --help')")


def reading(read: Callable[[str], T]) -> Callable[[str], T]:
    """Return an argument type that reads a word, and says what it must be where `read` raises ValueError."""

    def check(word: str) -> T:
        try:
            return read(word)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return check


def machine_name(word: str | None, what: str) -> str:
    """Return what a program on a machine is called, which is also the name of a folder of its own.

    Args:
        word: What was given; None for the machine's host name.
        what: What is called so, for errors.

    Raises:
        UsageError: If it is no such name.
    """
    import socket  # which other commands do without

    name = socket.gethostname() if word is None else word
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"a {what}'s name has letters, digits, dots, dashes and underscores, at most 63, and '{name:.80}' does not "
            "fit: give --name"
        )
    return name


def some_of(kind: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return an argument type that takes known names with commas between."""
    one = reading(one_of(kind, known))
    return lambda word: [one(part) for part in word.split(",")]


def takes_port(sub: argparse.ArgumentParser, default: int, text: str) -> None:
    """Add `--port` to a command that listens."""
    sub.add_argument("--port", type=reading(port), default=default, metavar="PORT", help=text)


def takes_cache_size(sub: argparse.ArgumentParser, default_bytes: int, text: str) -> None:
    """Add `--cache-size` to a command that keeps files on the disk."""
    sub.add_argument(
        "--cache-size",
        type=reading(read_bytes),
        default=default_bytes,
        metavar="SIZE",
        help=f"{text} (default: {default_bytes / 1e9:g}GB)",
    )

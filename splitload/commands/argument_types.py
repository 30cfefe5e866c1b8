"""What the words of a command line may be: types of arguments, and a parser that names what is wrong in one line."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Any, NoReturn

from splitload.base.errors import UsageError, unknown_name


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line, with near matches."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse, once command and options are known to be there; argparse calls it for commands too."""
        commands = next((action.choices for action in self._actions if action.dest == "command_name"), None)
        if commands is not None and args and not args[0].startswith("-") and args[0] not in commands:
            raise unknown_name("command", args[0], commands)
        words = takewhile(lambda word: word.startswith("-"), args or ()) if commands is not None else args or ()
        self._check_options(takewhile(lambda word: word != "--", words))
        return super().parse_known_args(args, namespace)

    def _check_options(self, words: Iterable[str]) -> None:
        """Refuse an option that there is not before argparse misses one that is required."""
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in self._option_string_actions:
                known = [option for option in self._option_string_actions if option.startswith("--")]
                near = difflib.get_close_matches(name[2:].lower(), [option[2:] for option in known], n=2)
                hint = f". Did you mean {' or '.join(f'--{each}' for each in near)}?" if near else ""
                self.error(f"unrecognized arguments: {name}{hint}")

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong as a `UsageError`."""
        if message.endswith("required: COMMAND"):
            message = "no command given"
        raise UsageError(f"{message} (see '{self.prog} --help')")


def one_of(kind: str, known: Sequence[str]) -> Callable[[str], str]:
    """Return an argument type that takes the known names."""

    def check(word: str) -> str:
        if word not in known:
            raise argparse.ArgumentTypeError(str(unknown_name(kind, word, known)))
        return word

    return check


def some_of(kind: str, known: Sequence[str]) -> Callable[[str], list[str]]:
    """Return an argument type that takes known names with commas between."""
    one = one_of(kind, known)
    return lambda word: [one(part) for part in word.split(",")]


def above_zero(word: str) -> float:
    """Return a finite number above 0."""
    try:
        value = float(word)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"it must be a number above 0, not '{word}'")
    return value


def at_least_one(word: str) -> int:
    """Return a whole number of at least 1."""
    if not word.isdecimal() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"it must be a whole number of at least 1, not '{word}'")
    return int(word)


def count(word: str) -> int:
    """Return a whole number of at least 0."""
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"it must be a whole number of at least 0, not '{word}'")
    return int(word)


def split_points(word: str) -> list[int]:
    """Return block numbers that were given with commas between."""
    parts = [part for part in word.split(",") if part]
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"it must be block numbers with commas between, not '{word}'")
    return [int(part) for part in parts]
